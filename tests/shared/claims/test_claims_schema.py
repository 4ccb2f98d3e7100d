"""The schema of claims.yaml: what it accepts, and the one line that it refuses with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from shared.claims.schema import (
    Claim,
    Monotone,
    Near,
    Ordering,
    Range,
    known_papers,
    load_claims,
    number_text,
    paper_folder,
    resolve_profile,
    values_text,
)
from shared.errors import UserError

PARAMS = "profile: embedded\nseed: 3\nsmoke: {steps: 1}\nembedded: {steps: 10}\ngpt2: {steps: 99}\n"
CLAIM = """\
- id: plateau
  figure: dimensionality
  statement: Antipodal pairs hold half a dimension.
  source: {place: "section 'Geometry'", kind: paper}
  metric: geometry.plateau
  expect: {value: 0.5, abs: 0.02}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "papers" / "toy"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "claims.yaml").write_text(CLAIM)
    return tmp_path


def load(root: Path, text: str) -> list[Claim]:
    (root / "papers" / "toy" / "claims.yaml").write_text(text, encoding="utf-8")
    return load_claims("toy", root)


def refusal(root: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load(root, text)
    message = str(caught.value)
    assert "\n" not in message
    return message


def expectation(expect: Any) -> Any:
    fields = TypeAdapter(Claim).validate_python(
        {
            "id": "a",
            "figure": "f",
            "statement": "s",
            "source": {"place": "p", "kind": "paper"},
            "metric": "m",
            "expect": expect,
        }
    )
    return fields.expect


def test_a_claim_with_its_defaults(root: Path) -> None:
    (claim,) = load_claims("toy", root)
    assert claim.id == "plateau"
    assert claim.source.kind == "paper"
    assert claim.expect == Near(value=0.5, abs=0.02)
    assert (claim.role, claim.profiles, claim.known_gap) == ("fidelity", ("embedded",), None)


def test_claims_are_frozen_and_keep_the_order_of_the_file(root: Path) -> None:
    claims = load(root, CLAIM + CLAIM.replace("plateau", "another"))
    assert [claim.id for claim in claims] == ["plateau", "another"]
    with pytest.raises(ValidationError):
        claims[0].id = "changed"


@pytest.mark.parametrize(
    ("expect", "model", "text"),
    [
        ({"value": 0.5, "abs": 0.02}, Near, "0.5 ± 0.02"),
        ({"value": 24, "rel": 0.05}, Near, "24 ± 5%"),
        ({"value": [1, 2], "abs": 0.5}, Near, "[1, 2] ± 0.5"),
        ({"value": [1, 2], "abs": [0.5, 1]}, Near, "[1, 2] ± [0.5, 1]"),
        ({"value": [1, 2], "rel": [0.5, 0.07]}, Near, "[1, 2] ± [50%, 7%]"),
        ({"value": 0.123456, "abs": 1e-5}, Near, "0.123456 ± 1e-05"),
        ({"value": 0, "abs": 0}, Near, "0 ± 0"),
        ({"min": 3}, Range, "≥ 3"),
        ({"max": 24576}, Range, "≤ 24576"),
        ({"min": 0, "max": 1.5}, Range, "0 to 1.5"),
        ({"min": 2, "max": 2}, Range, "2 to 2"),
        ({"above": "geometry.x"}, Ordering, "above geometry.x"),
        ({"below": "x", "by": -0.1}, Ordering, "below x by -0.1"),
        (
            {"above": "geometry.x", "by": 0.1, "confidence": 0.95},
            Ordering,
            "above geometry.x by 0.1 at 95% confidence",
        ),
        ({"monotone": "increasing"}, Monotone, "increasing"),
        ({"monotone": "decreasing", "slack": 0.01}, Monotone, "decreasing within 0.01"),
    ],
)
def test_each_form_of_expectation_and_its_text(expect: Any, model: type, text: str) -> None:
    parsed = expectation(expect)
    assert type(parsed) is model
    assert str(parsed) == text
    assert expectation(parsed) == parsed


@pytest.mark.parametrize(
    "expect",
    [
        {},
        3,
        None,
        {"abs": 0.1},
        {"value": 1},
        {"value": 1, "abs": 0.1, "rel": 0.1},
        {"value": 1, "abs": -0.1},
        {"value": 1, "abs": float("inf")},
        {"value": 1, "abs": float("nan")},
        {"value": float("nan"), "abs": 1},
        {"value": 10**400, "abs": 1},
        {"value": True, "abs": 1},
        {"value": "half", "abs": 1},
        {"value": None, "abs": 1},
        {"value": [], "abs": 1},
        {"value": [1, True], "abs": 1},
        {"value": [1, [2]], "abs": 1},
        {"value": [1, 2], "abs": [1]},
        {"value": [1, 2], "rel": [0.1, -0.1]},
        {"value": 1, "abs": [1]},
        {"value": 1, "abs": 1, "min": 0},
        {"min": 2, "max": 1},
        {"min": None},
        {"min": float("-inf")},
        {"above": "a", "below": "b"},
        {"above": "a..b"},
        {"above": None},
        {"above": "a", "by": float("nan")},
        {"above": "a", "confidence": 0.5},
        {"above": "a", "confidence": 1},
        {"above": "a", "confidence": 95},
        {"monotone": "up"},
        {"monotone": "increasing", "slack": -1},
        {"monotone": "increasing", "slack": float("inf")},
    ],
)
def test_expectations_that_are_refused(expect: Any) -> None:
    with pytest.raises(ValidationError):
        expectation(expect)


def test_numbers_that_yaml_reads_as_strings(root: Path) -> None:
    (claim,) = load(root, CLAIM.replace("0.02", "2e-2"))
    assert claim.expect == Near(value=0.5, abs=0.02)


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("abs: 0.02", "tol: 0.02", 6, "expect.tol is not a known key here"),
        ("abs: 0.02", "abs: -0.02", 6, "expect.abs should not be negative"),
        ("abs: 0.02", "abs: .nan", 6, "expect.abs should be a finite number, not nan"),
        ("abs: 0.02", "abs: small", 6, "expect.abs should be a number, not 'small'"),
        (", abs: 0.02", "", 6, "expect `value` needs exactly one of `abs` and `rel`"),
        ("{value: 0.5, abs: 0.02}", "0.5", 6, "expect needs `value` with"),
        ("{value: 0.5, abs: 0.02}", "\n    value: 0.5\n    abs: -1", 8, "expect.abs"),
        ("geometry.plateau", "geometry..plateau", 5, "metric 'geometry..plateau' is not a metric"),
        ("geometry.plateau", "geometry.", 5, "is not a metric path"),
        ("geometry.plateau", "geo metry", 5, "is not a metric path"),
        ("kind: paper", "kind: blog", 4, "source.kind"),
        ("  figure: dimensionality\n", "", 1, "figure is missing"),
        ("figure: dimensionality", "figure: ''", 2, "figure"),
        ("statement: Antipodal pairs hold half a dimension.", "statement: yes", 3, "statement"),
        ("metric:", "metrics: x\n  metric:", 5, "metrics is not a known key here"),
        ("expect:", "known_gap: ''\n  expect:", 6, "known_gap"),
        ("expect:", "role: both\n  expect:", 6, "role"),
        ("expect:", "profiles: []\n  expect:", 6, "profiles"),
        (
            "expect:",
            "profiles: [embeded]\n  expect:",
            6,
            "profiles holds the unknown 'embeded'; known profiles: smoke, embedded, gpt2",
        ),
    ],
)
def test_a_schema_error_names_file_line_and_claim(
    root: Path, old: str, new: str, line: int, problem: str
) -> None:
    # A good claim stands before, so that lines are of the file and not of the claim.
    before = CLAIM.replace("plateau", "first")
    message = refusal(root, before + CLAIM.replace(old, new))
    where = f"papers/toy/claims.yaml:{line + before.count(chr(10))}: claim 'plateau': "
    assert message.startswith(where), message
    assert problem in message


def test_a_claim_without_a_usable_id(root: Path) -> None:
    assert refusal(root, CLAIM.replace("id: plateau", "id: 7")).startswith(
        "papers/toy/claims.yaml:1: a claim: id "
    )
    assert "papers/toy/claims.yaml:1: claim 'A b': id 'A b' should hold" in refusal(
        root, CLAIM.replace("id: plateau", "id: A b")
    )
    assert refusal(root, CLAIM + "- just words\n") == (
        "papers/toy/claims.yaml:7: a claim: should be a mapping"
    )


def test_a_duplicated_id_names_both_lines(root: Path) -> None:
    assert refusal(root, CLAIM + CLAIM) == (
        "papers/toy/claims.yaml:7: claim 'plateau': id is already used on line 1"
    )


def test_malformed_yaml_names_the_line(root: Path) -> None:
    message = refusal(root, CLAIM + "- id: [open\n  figure: x\n")
    assert message.startswith("papers/toy/claims.yaml:8: malformed YAML: ")


def test_a_forgotten_dash_does_not_swallow_a_claim(root: Path) -> None:
    assert refusal(root, CLAIM + CLAIM.replace("- id", "  id")) == (
        "papers/toy/claims.yaml:7: malformed YAML: key 'id' stands twice in one mapping"
    )


def test_anchors_and_merges_work_and_keep_their_lines(root: Path) -> None:
    merged = "- &first\n" + CLAIM.replace("- id", "  id") + "- <<: *first\n  id: second\n"
    assert [claim.id for claim in load(root, merged)] == ["plateau", "second"]
    message = refusal(root, merged + "  role: both\n")
    assert message.startswith("papers/toy/claims.yaml:10: claim 'second': role")


@pytest.mark.parametrize("text", ["", "claims: []\n", "words\n"])
def test_a_file_that_is_not_a_list(root: Path, text: str) -> None:
    assert refusal(root, text) == "papers/toy/claims.yaml:1: should be a list of claims"


@pytest.mark.parametrize(
    "content", [b"- \xff\n", b"- \x00\n", b"- 2024-13-45\n", b"- !!python/x 1\n"]
)
def test_bytes_and_values_that_yaml_refuses(root: Path, content: bytes) -> None:
    (root / "papers/toy/claims.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"papers/toy/claims\.yaml.*malformed YAML"):
        load_claims("toy", root)


def test_an_empty_list_holds_no_claims(root: Path) -> None:
    assert load(root, "[]\n") == []


def test_papers_are_the_folders_with_claims(root: Path) -> None:
    (root / "papers" / "draft").mkdir()
    assert known_papers(root) == ["toy"]
    for name in ("draft", "../papers/toy", ""):
        with pytest.raises(UserError, match=r"unknown paper .*; known papers: toy"):
            load_claims(name, root)


def test_the_tutorials_stand_behind_the_papers(root: Path) -> None:
    shutil.copytree(root / "papers/toy", root / "tutorials")
    assert known_papers(root) == ["toy", "tutorials"]
    assert paper_folder("tutorials", root) == root / "tutorials"
    assert load_claims("tutorials", root) == load_claims("toy", root)


def test_without_papers_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="known papers: none"):
        load_claims("toy", tmp_path)


def test_profiles_are_the_blocks_of_params(root: Path) -> None:
    assert resolve_profile("toy", None, root) == "embedded"
    assert resolve_profile("toy", "gpt2", root) == "gpt2"
    for name in ("seed", "large", ""):
        with pytest.raises(UserError, match="known profiles: smoke, embedded, gpt2"):
            resolve_profile("toy", name, root)


@pytest.mark.parametrize("text", ["seed: 3\n", "profile: large\nsmoke: {}\n", "", "- 1\n"])
def test_params_without_a_default_profile(root: Path, text: str) -> None:
    (root / "papers/toy/params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"papers/toy/params\.yaml: `profile` should name one"):
        load_claims("toy", root)


def test_params_that_are_absent(root: Path) -> None:
    (root / "papers/toy/params.yaml").unlink()
    with pytest.raises(UserError, match=r"papers/toy/params\.yaml: no such file"):
        load_claims("toy", root)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (0.123456, "0.1235"),
        (-0.98765, "-0.9877"),
        (24576, "24576"),
        (12345.678, "12346"),
        (1.5e-6, "1.5e-06"),
        (2.5e12, "2.5e+12"),
    ],
)
def test_text_of_numbers(value: float, text: str) -> None:
    assert number_text(value) == text


def test_text_of_lists() -> None:
    assert values_text((1, 0.25)) == "[1, 0.25]"
    assert values_text(tuple(range(32))) == "[0, 1, 2, 3, …, 31] (32 values)"
