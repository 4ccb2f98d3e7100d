import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_results import FIGURES, HOSTILE, LONG_CAPTION

from shared.errors import UserError
from shared.figures import gallery
from shared.figures.cite import cite
from shared.files import ROOT

TEMPLATE = ROOT / "shared/figures/gallery.html.j2"
VOID = {"meta", "link", "img", "input", "path", "circle", "rect", "use"}


class Page(HTMLParser):
    """Elements of a page as (tag, attributes, text), refusing tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        for index in self.open:
            self.elements[index][2].append(data)

    def find(self, tag, **attributes):
        """Attributes and text of the elements with this tag and these attributes."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            (attrs, " ".join("".join(text).split()))
            for name, attrs, text in self.elements
            if name == tag and wanted.items() <= attrs.items()
        ]


@pytest.fixture(scope="module")
def page(site) -> Page:
    return Page(gallery.build(site).read_text(encoding="utf-8"))


def test_every_figure_is_there_in_the_order_of_the_claims(page, site):
    cards = [attrs["id"] for attrs, _ in page.find("article")]
    toy, gated = "toy_superposition.embedded.", "gated_sae.embedded."
    assert cards == [
        *(toy + name for name in ("phase_diagram", "dimensionality", "geometry", "unclaimed", "")),
        *(gated + name for name in ("pareto", "shrinkage")),
        *("gated_sae.smoke." + name for name in ("pareto", "shrinkage")),
    ]
    images = [attrs for attrs, _ in page.find("img")]
    assert len(images) == len(FIGURES["toy_superposition"]) + 2 * len(FIGURES["gated_sae"])
    for attrs in images:
        assert (site / "results" / attrs["src"]).is_file()
        assert int(attrs["width"]) > 0
        assert int(attrs["height"]) > 0
        assert attrs["loading"] == "lazy"
    assert LONG_CAPTION in [attrs["alt"] for attrs in images]


def test_links_lead_somewhere(page, site):
    ids = [attrs["id"] for tag, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs, _ in page.find("a"):
        href = attrs["href"]
        if href.startswith("#"):
            assert href[1:] in ids
        elif not href.startswith("https://"):
            assert (site / "results" / href).is_file()


def test_claims_stand_with_verdict_expected_and_measured(page):
    rows = [text for attrs, text in page.find("tr", role="row")]
    assert any(
        "Reproduced" in row and "0.5 ± 0.02" in row and "0.5031" in row and "paper" in row
        for row in rows
    )
    [gap] = [row for row in rows if "Known gap." in row]
    assert "Not reproduced" in gap
    assert "2.5 ± 0.3" in gap
    assert "3.7" in gap
    assert "The exact loss crosses" in gap
    assert any("recalled, so not gating" in row for row in rows)
    assert any("Failed" in row and "0.9 to 1" in row and "0.71" in row for row in rows)
    assert any("Missing" in row and "absent is not in the metrics" in row for row in rows)


def test_a_claim_whose_figure_is_not_drawn_is_not_hidden(page):
    [(_, text)] = page.find("article", id="toy_superposition.embedded.")
    assert "Claims whose figure is not drawn" in text
    assert "The orphan number" in text


def test_totals_and_counts_by_paper(page):
    numbers = [int(text) for attrs, text in page.find("td") if "role" not in attrs]
    rows = [numbers[start : start + 5] for start in range(0, len(numbers), 5)]
    # figures, reproduced, not reproduced, failed, missing
    assert rows == [[4, 6, 2, 0, 0], [2, 1, 0, 1, 1], [2, 0, 0, 0, 0], [8, 7, 2, 1, 1]]
    assert any("6 reproduced 2 not reproduced" in text for _, text in page.find("header"))


def test_citations_are_those_of_the_command(page, site):
    boxes = {attrs["aria-label"]: text for attrs, text in page.find("textarea")}
    expected = " ".join(cite("gated_sae/shrinkage", "smoke", site).split())
    assert expected in [text for _, text in page.find("textarea")]
    assert "BibTeX for Relative reconstruction bias" in boxes


def test_provenance_is_shown_whatever_its_keys(page):
    records = [text for attrs, text in page.find("details", class_="record")]
    assert all("3f2c1b0a9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f40" in text for text in records)
    assert "1.0, 0.3, 0.1" in records[0]
    assert "wall seconds" in records[0]


def test_text_cannot_become_markup(page):
    assert len(page.find("script")) == 2
    assert not any("within" in text for _, text in page.find("b"))
    assert any(HOSTILE in text for _, text in page.find("h3"))
    assert any("<b>within</b> tolerance" in text for _, text in page.find("td"))


def test_needs_no_network(site):
    text = gallery.build(site).read_text(encoding="utf-8")
    assert not re.findall(r"@import|url\(|<iframe|<object|fetch\(|XMLHttpRequest", text)
    page = Page(text)
    assert [attrs for attrs, _ in page.find("script") if "src" in attrs] == []
    assert all(attrs["href"].startswith("data:") for attrs, _ in page.find("link"))
    assert not any(attrs["src"].startswith(("http", "//", "/")) for attrs, _ in page.find("img"))


def test_same_inputs_give_the_same_bytes(site, make_site):
    first = gallery.build(site).read_bytes()
    (site / "results" / "index.html").unlink()
    assert gallery.build(site).read_bytes() == first
    assert str(site).encode() not in first


def test_without_results_says_how_to_make_some(make_site, tmp_path):
    for root in (make_site(), tmp_path):
        path = gallery.build(root)
        assert path == root / "results" / "index.html"
        page = Page(path.read_text(encoding="utf-8"))
        assert page.find("pre") == [({}, "dvc repro")]
        assert page.find("article") == []


def test_an_unfinished_file_is_no_figure(make_site):
    root = make_site(("gated_sae", "embedded"))
    (root / "results/gated_sae/embedded/figures/.partial-x1.json").write_text("{")
    assert "partial" not in gallery.build(root).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("results/gated_sae/embedded/figures/pareto.png", "draw the figures again"),
        ("results/gated_sae/embedded/metrics.json", "no results for profile 'embedded'"),
        ("papers/gated_sae/paper.yaml", "papers/gated_sae/paper.yaml is missing"),
        ("papers/gated_sae/claims.yaml", "unknown paper 'gated_sae'"),
    ],
)
def test_what_is_lost_is_named_and_the_old_page_stays(make_site, lost, message):
    root = make_site(("gated_sae", "embedded"))
    old = gallery.build(root).read_bytes()
    (root / lost).unlink()
    with pytest.raises(UserError, match=message):
        gallery.build(root)
    assert (root / "results" / "index.html").read_bytes() == old


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_aa(theme):
    blocks = re.findall(r":root \{(.*?)\}", Path(TEMPLATE).read_text(encoding="utf-8"), re.S)
    colours = dict(re.findall(r"--(\w+): (#\w+);", blocks[theme]))
    colours = {name: f"#{c[1] * 2}{c[2] * 2}{c[3] * 2}" if len(c) == 4 else c
               for name, c in colours.items()}  # fmt: skip
    for text in ("ink", "quiet", "link", *gallery.STATUSES):
        for ground in ("page", "field", "shade"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["focus"], colours["page"]) >= 3
