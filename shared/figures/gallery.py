"""The gallery: one static page with every figure, what it claims, and where it comes from."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from shared.claims.checker import Verdict, check_paper
from shared.claims.schema import load_claims, resolve_profile, values_text
from shared.errors import UserError
from shared.figures.cite import Publication, cite, publication
from shared.files import ROOT, read_json, write_text

STATUSES = {
    "reproduced": "Reproduced",
    "not_reproduced": "Not reproduced",
    "failed": "Failed",
    "missing": "Missing",
}
"""The statuses of a claim and the words for them, in the order of every summary."""

_CSS_PIXELS = 1.4 * 96 / 300
"""Figures are shown 1.4 times the size of print: a screen is read from further away."""


@dataclass(frozen=True)
class Card:
    """A figure on the page, with the verdicts on the claims that it carries."""

    name: str
    folder: str
    """The folder of the figure's files, as seen from the page."""
    title: str
    caption: str
    original: str
    width: int
    height: int
    provenance: dict[str, Any]
    citation: str
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Section:
    """What one profile of one paper gave."""

    paper: str
    profile: str
    about: Publication
    cards: Sequence[Card]
    verdicts: Sequence[Verdict]

    @property
    def unshown(self) -> list[Verdict]:
        """Verdicts on claims whose figure is not among the cards."""
        shown = {card.name for card in self.cards}
        return [verdict for verdict in self.verdicts if verdict.figure not in shown]


def build(root: Path = ROOT) -> Path:
    """Write `results/index.html` from the figures and claims under `root`; return its path.

    The page needs no network, and the same inputs give the same bytes. Raises UserError for
    results whose paper, claims or metrics are missing or malformed.
    """
    folders = sorted(path.parent for path in root.glob("results/*/*/figures"))
    sections = [_section(folder, root) for folder in folders]
    # Papers by year; of each paper, the default profile before the others.
    sections.sort(
        key=lambda section: (
            section.about.year,
            section.paper,
            section.profile != resolve_profile(section.paper, None, root),
        )
    )
    page = root / "results" / "index.html"
    write_text(page, render(sections))
    return page


def render(sections: Sequence[Section]) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(counts=_counts, values=values_text)
    template = environment.get_template("gallery.html.j2")
    return template.render(
        sections=sections,
        verdicts=[verdict for section in sections for verdict in section.verdicts],
        papers={section.paper: section.about.short for section in sections},
        profiles={section.profile: section.profile for section in sections},
        statuses=STATUSES,
    )


def _section(folder: Path, root: Path) -> Section:
    paper, profile = folder.parent.name, folder.name
    claimed = any(profile in claim.profiles for claim in load_claims(paper, root))
    verdicts = check_paper(paper, profile, root) if claimed else []
    # Figures stand in the order in which the claims mention them, and the rest by name.
    rank = {verdict.figure: index for index, verdict in reversed(list(enumerate(verdicts)))}
    paths = sorted(
        folder.glob("figures/[!.]*.json"),
        key=lambda path: (rank.get(path.stem, len(verdicts)), path.stem),
    )
    cards = [
        _card(path, root, [verdict for verdict in verdicts if verdict.figure == path.stem])
        for path in paths
    ]
    return Section(paper, profile, publication(paper, root), cards, verdicts)


def _card(path: Path, root: Path, verdicts: Sequence[Verdict]) -> Card:
    document = read_json(path)
    paper, profile = path.parts[-4:-2]
    width, height = _png_size(path.with_suffix(".png"))
    return Card(
        name=path.stem,
        folder=path.parent.relative_to(root / "results").as_posix(),
        title=document["title"],
        caption=document["caption"],
        original=document["original"],
        width=round(width * _CSS_PIXELS),
        height=round(height * _CSS_PIXELS),
        provenance=document["provenance"],
        citation=cite(f"{paper}/{path.stem}", profile, root),
        verdicts=verdicts,
    )


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header that every PNG starts with."""
    if not path.exists():
        raise UserError(f"{path} is missing, though its numbers are there: draw the figures again")
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width, height


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many verdicts there are of each status, none left out."""
    found: Counter[str] = Counter(verdict.status for verdict in verdicts)
    return {status: found[status] for status in STATUSES}
