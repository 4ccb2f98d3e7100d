import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up_results import HOSTILE, RECORD

from shared.errors import UserError
from shared.figures.cite import cite, publication
from shared.files import ROOT


def parse(bibtex: str) -> list[tuple[str, str, dict[str, str]]]:
    """Entries (type, key, fields) of BibTeX, to which every brace counts, escaped or not."""
    entries = []
    while bibtex := bibtex.strip():
        head = re.match(r"@(\w+)\{([^\s,{}]+),", bibtex)
        assert head, f"no entry at {bibtex[:40]!r}"
        rest, fields = bibtex[head.end() :].lstrip(), {}
        while not rest.startswith("}"):
            field = re.match(r"(\w+)\s*=\s*\{", rest)
            assert field, f"no field at {rest[:40]!r}"
            depth, end = 1, field.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(rest[end], 0)
                end += 1
            fields[field[1]] = rest[field.end() : end - 1]
            rest = rest[end:].lstrip(", \n")
        entries.append((head[1], head[2], fields))
        bibtex = rest[1:]
    return entries


def test_cites_the_paper_and_the_figure(site):
    text = cite("toy_superposition/phase_diagram", root=site)
    original, ours = parse(text)
    assert original == (
        "article",
        "toy_superposition2022",
        {"title": "On toy superposition"},
    )
    assert ours == (
        "misc",
        "toy_superposition:phase_diagram:embedded",
        {
            "title": "{Phase diagram of two features in one dimension}",
            "author": "{The SAE Reproductions authors}",
            "howpublished": "SAE reproductions, version 0.1.0",
            "note": "Regenerates The toy superposition paper, Figure 7, section 'phase diagram'; "
            f"profile embedded; commit {RECORD['commit']}",
        },
    )
    assert text.endswith("}\n")


def test_another_profile_has_a_key_of_its_own(site):
    assert cite("gated_sae/pareto", root=site) == cite("gated_sae/pareto", "embedded", site)
    _, ours = parse(cite("gated_sae/pareto", "smoke", site))
    assert ours[1] == "gated_sae:pareto:smoke"
    assert "profile smoke" in ours[2]["note"]


def test_escapes_what_latex_would_read(site):
    _, ours = parse(cite("toy_superposition/geometry", root=site))
    title = ours[2]["title"]
    assert r"\& " in title
    assert r"100\% of \$x\_i\$ {\textbackslash} {\textbraceleft}braces{\textbraceright}" in title
    assert r"{\textasciitilde}{\textasciicircum}\#" in title
    assert HOSTILE.startswith("<script>")  # harmless in LaTeX, so left alone
    assert title.startswith("{<script>")


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"commit": "0123abc", "dirty": True}, "commit 0123abc with uncommitted changes"),
        ({"commit": "unknown", "dirty": True}, "commit unknown with uncommitted changes"),
        ({}, "commit unknown"),
    ],
)
def test_says_how_sure_the_commit_is(make_site, record, told):
    root = make_site(("gated_sae", "embedded"))
    path = root / "results/gated_sae/embedded/figures/pareto.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": record}))
    assert parse(cite("gated_sae/pareto", root=root))[1][2]["note"].endswith(told)


@pytest.mark.parametrize(
    ("figure", "profile", "message"),
    [
        ("phase_diagram", None, "did you mean toy_superposition/phase_diagram?"),
        ("", None, "expected PAPER/FIGURE, got ''"),
        ("/phase_diagram", None, "expected PAPER/FIGURE, got '/phase_diagram'"),
        ("toy_superposition/", None, "expected PAPER/FIGURE, got 'toy_superposition/'"),
        ("toy_superpositions/x", None, "unknown paper 'toy_superpositions'; did you mean toy_"),
        ("zzz/x", None, "unknown paper 'zzz'; there are: gated_sae, toy_superposition"),
        ("../papers/x", None, "unknown paper '..'"),
        ("toy_superposition/phase_diagrm", None, "did you mean phase_diagram?"),
        ("toy_superposition/zzz", None, "there are: dimensionality, geometry, phase_diagram, un"),
        ("toy_superposition/../x", None, "toy_superposition has no figure '../x'"),
        ("toy_superposition/phase_diagram", "smok", "unknown profile 'smok'"),
        ("toy_superposition/phase_diagram", "smoke", "of profile 'smoke'; there are none yet"),
    ],
)
def test_bad_names_become_one_line_with_near_matches(site, figure, profile, message):
    with pytest.raises(UserError) as error:
        cite(figure, profile, site)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unfinished_file_is_no_figure(make_site):
    root = make_site(("gated_sae", "embedded"))
    (root / "results/gated_sae/embedded/figures/.partial-x1.json").write_text("{")
    with pytest.raises(UserError, match="there are: pareto, shrinkage"):
        cite("gated_sae/.partial-x1", root=root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "papers/gated_sae/paper.yaml is missing"),
        ("title: [", "papers/gated_sae/paper.yaml: while parsing"),
        ("- title", "papers/gated_sae/paper.yaml: content: "),
        ("{title: a, short: a, authors: [b], year: 2024, url: u}", "`url` and `bibtex` belong"),
        ("{title: a, short: a, authors: [b], year: x, url: u, bibtex: c}", "paper.yaml: year: "),
    ],
)
def test_a_malformed_paper_becomes_one_line(make_site, content, message):
    root = make_site()
    path = root / "papers/gated_sae/paper.yaml"
    path.unlink()
    if content:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        publication("gated_sae", root)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(ROOT.glob("papers/*/paper.yaml")), ids=str)
def test_every_paper_of_the_repository_can_be_cited(path: Path):
    about = publication(path.parent.name)
    [(_, key, fields)] = parse(about.bibtex)
    assert key
    assert fields["title"].strip("{}") == about.title
    assert fields["year"] == str(about.year)
    assert len(fields["author"].split(" and ")) == len(about.authors)


def test_citation_file_holds_what_the_format_asks_for():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= content.keys()
    assert content["cff-version"] == "1.2.0"
    assert content["license"] == "MIT"
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{content["version"]}"' in pyproject


def test_citing_and_the_gallery_load_nothing_heavy():
    code = (
        "import sys, shared.figures.cite, shared.figures.gallery\n"
        "print({'matplotlib', 'seaborn', 'torch', 'pandas', 'scipy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (out.stdout, out.stderr) == ("set()\n", "")


def test_what_is_of_no_paper_cites_ours_alone(make_site):
    site = make_site(("gated_sae", "embedded"))
    about = {"title": "Reading features", "short": "Tutorials", "authors": ["Us"], "year": 2026}
    (site / "papers/gated_sae/paper.yaml").write_text(yaml.safe_dump(about))
    ((kind, _, fields),) = parse(cite("gated_sae/pareto", root=site))
    assert kind == "misc"
    assert fields["note"].startswith("Reading features; profile embedded; commit ")
