"""BibTeX for a regenerated figure and for the paper that it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from shared.claims.schema import known_papers, paper_folder, resolve_profile
from shared.errors import UserError
from shared.files import ROOT, read_json

_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "#$%&_"}
    # BibTeX counts braces even behind a backslash, so a lone one needs its name.
    | {"{": r"{\textbraceleft}", "}": r"{\textbraceright}"}
    | {"\\": r"{\textbackslash}", "~": r"{\textasciitilde}", "^": r"{\textasciicircum}"}
)


class Publication(BaseModel):
    """What `paper.yaml` says of the original paper; the tutorials have no address and no BibTeX."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    short: str
    authors: list[str]
    year: int
    url: str | None = None
    arxiv: str | None = None
    bibtex: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Publication:
        if (self.url is None) != (self.bibtex is None):
            raise ValueError("`url` and `bibtex` belong together")
        return self


def publication(paper: str, root: Path = ROOT) -> Publication:
    """Read a paper's `paper.yaml`. Raises UserError where it is missing or malformed."""
    path = paper_folder(paper, root) / "paper.yaml"
    name = path.relative_to(root)
    try:
        return Publication.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{name} is missing") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise UserError(f"{name}: {where}: {first['msg'].lower()}") from None


def cite(figure: str, profile: str | None = None, root: Path = ROOT) -> str:
    """Return BibTeX entries for the original paper and for a figure, named `<paper>/<figure>`.

    The figure is that of `profile`, or of the paper's default profile. Raises UserError, with
    near matches, for a paper, profile or figure that is not there.
    """
    paper, _, name = figure.partition("/")
    if not (paper and name):
        everything = root.glob("results/*/*/figures/[!.]*.json")
        known = {f"{path.parents[2].name}/{path.stem}" for path in everything}
        raise UserError(f"expected PAPER/FIGURE, got {figure!r}{_near(figure, known)}")
    papers = known_papers(root)
    if paper not in papers:
        raise UserError(f"unknown paper {paper!r}{_hint(paper, papers)}")
    profile = resolve_profile(paper, profile, root)
    paths = {path.stem: path for path in root.glob(f"results/{paper}/{profile}/figures/[!.]*.json")}
    if name not in paths:
        raise UserError(
            f"{paper} has no figure {name!r} of profile {profile!r}{_hint(name, paths)}"
        )
    document = read_json(paths[name])
    original = publication(paper, root)
    ours = _entry(f"{paper}:{name}:{profile}", document, original, profile, root)
    theirs = "" if original.bibtex is None else f"{original.bibtex.strip()}\n\n"
    return f"{theirs}{ours}\n"


def _entry(
    key: str, document: dict[str, Any], original: Publication, profile: str, root: Path
) -> str:
    software = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    record = document["provenance"]
    changes = " with uncommitted changes" if record.get("dirty") else ""
    regenerated = f"Regenerates {original.title}, {document['original']}"
    fields = {
        "title": f"{{{_escape(document['title'])}}}",
        "author": " and ".join(f"{{{_escape(author['name'])}}}" for author in software["authors"]),
        "howpublished": _escape(f"{software['title']}, version {software['version']}"),
        "note": _escape(
            f"{original.title if original.bibtex is None else regenerated}; "
            f"profile {profile}; commit {record.get('commit', 'unknown')}{changes}"
        ),
    }
    if "url" in software:
        fields["url"] = software["url"]
    lines = "".join(f"  {field:12} = {{{value}}},\n" for field, value in fields.items())
    return f"@misc{{{key},\n{lines}}}"


def _escape(text: str) -> str:
    return " ".join(text.split()).translate(_SPECIAL)


def _hint(word: str, known: Iterable[str]) -> str:
    """End an error message with the nearest of the known names, else with all of them."""
    known = sorted(known)
    everything = f"; there are: {', '.join(known)}" if known else "; there are none yet"
    return _near(word, known) or everything


def _near(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, sorted(known), cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
