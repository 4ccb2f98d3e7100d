"""The checker: which measured values meet which expectations, and what follows from it."""

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shared.claims.checker import Verdict, check_paper, gating_failures, judge
from shared.claims.schema import Claim
from shared.errors import UserError


def claim(expect: Any, **fields: Any) -> dict[str, Any]:
    source = {"place": "section 2", "kind": fields.pop("kind", "paper")}
    return {
        "id": "a",
        "figure": "f",
        "statement": "s",
        "source": source,
        "metric": "m",
        "expect": expect,
        **fields,
    }


def verdict(expect: Any, measured: Any, other: Any = None, **fields: Any) -> Verdict:
    metrics = {"m": measured, "o": other}
    return judge(Claim.model_validate(claim(expect, **fields)), metrics, "toy", "smoke")


def holds(expect: Any, measured: Any, other: Any = None) -> bool:
    result = verdict(expect, measured, other)
    assert result.status in ("reproduced", "failed"), result.reason
    assert (result.reason is None) == (result.status == "reproduced")
    return result.status == "reproduced"


def reason(expect: Any, measured: Any, other: Any = None) -> str:
    result = verdict(expect, measured, other)
    assert result.status == "failed"
    assert result.reason is not None
    return result.reason


# Numbers as people write them: up to four decimals.
decimals = st.integers(-100_000, 100_000).map(lambda n: Decimal(n) / 10_000)


@given(value=decimals, offset=decimals, tolerance=decimals.map(abs))
def test_absolute_tolerance_is_exact_in_decimals(
    value: Decimal, offset: Decimal, tolerance: Decimal
) -> None:
    expect = {"value": float(value), "abs": float(tolerance)}
    assert holds(expect, float(value + offset)) == (abs(offset) <= tolerance)


@given(value=decimals, fraction=decimals.map(abs), offset=decimals)
def test_relative_tolerance_is_exact_in_decimals(
    value: Decimal, fraction: Decimal, offset: Decimal
) -> None:
    expect = {"value": float(value), "rel": float(fraction)}
    assert holds(expect, float(value + offset)) == (abs(offset) <= fraction * abs(value))


@given(measured=st.lists(decimals, min_size=1, max_size=5), value=decimals, tolerance=decimals)
def test_one_value_is_held_against_every_element(
    measured: list[Decimal], value: Decimal, tolerance: Decimal
) -> None:
    expect = {"value": float(value), "abs": float(abs(tolerance))}
    each = [holds(expect, float(element)) for element in measured]
    assert holds(expect, [float(element) for element in measured]) == all(each)


@pytest.mark.parametrize("measured", [0.48, 0.5, 0.52])
def test_a_value_exactly_at_its_tolerance_holds(measured: float) -> None:
    assert holds({"value": 0.5, "abs": 0.02}, measured)
    assert holds({"value": 0.5, "rel": 0.04}, measured)


@pytest.mark.parametrize("measured", [math.nextafter(0.48, 0), math.nextafter(0.52, 1)])
def test_a_value_just_outside_its_tolerance_fails(measured: float) -> None:
    assert not holds({"value": 0.5, "abs": 0.02}, measured)


def test_relative_tolerance_of_a_negative_value() -> None:
    assert holds({"value": -10, "rel": 0.1}, -11)
    assert not holds({"value": -10, "rel": 0.1}, -11.1)


def test_lists_of_values_and_of_tolerances() -> None:
    assert holds({"value": [1, 2], "abs": [0.1, 0]}, [1.1, 2])
    assert reason({"value": [1, 2], "abs": [0.1, 0]}, [1.1, 2.5]) == (
        "element 1 (2.5) is off by 0.5, allowed 0"
    )
    assert reason({"value": [1, 2], "abs": 1}, [1, 2, 3]) == "has 3 values where 2 are expected"
    assert reason({"value": [1, 2], "abs": 1}, 1) == "has 1 values where 2 are expected"


def test_the_reason_of_a_scalar() -> None:
    assert reason({"value": 0.5, "rel": 0.1}, 0.625) == "off by 0.125, allowed 0.05"


def test_range_includes_its_bounds_and_looks_at_every_element() -> None:
    assert holds({"min": 0.1, "max": 0.3}, [0.1, 0.3])
    assert holds({"min": 3}, 3)
    assert reason({"min": 0.1, "max": 0.3}, [0.2, 0.31]) == "element 1 (0.31) is above 0.3"
    assert reason({"min": 3}, 2.5) == "below 3"


@pytest.mark.parametrize(
    ("expect", "measured", "expected"),
    [
        ({"monotone": "increasing"}, [1, 1, 2], True),
        ({"monotone": "increasing"}, [1, 2, 1.9], False),
        ({"monotone": "increasing", "slack": 0.1}, [1, 2, 1.9], True),
        ({"monotone": "increasing", "slack": 0.1}, [0.5, 0.4, 0.3], True),
        ({"monotone": "increasing", "slack": 0.1}, [0.5, 0.3999], False),
        ({"monotone": "decreasing"}, [3, 3, 2], True),
        ({"monotone": "decreasing"}, [3, 3.1], False),
        ({"monotone": "decreasing", "slack": 0.1}, [3, 3.1], True),
    ],
)
def test_monotone(expect: Any, measured: list[float], expected: bool) -> None:
    assert holds(expect, measured) == expected


def test_monotone_needs_a_list() -> None:
    assert reason({"monotone": "increasing"}, 3) == "needs a list of at least 2 values"
    assert reason({"monotone": "increasing"}, [3]) == "needs a list of at least 2 values"
    assert reason({"monotone": "increasing"}, [3, 2]) == "falls from 3 to 2 at element 1"


def test_ordering_of_means_is_strict_and_exact() -> None:
    assert holds({"above": "o"}, 0.2, 0.1)
    assert not holds({"above": "o"}, 0.2, 0.2)
    assert not holds({"above": "o", "by": 0.1}, 0.4, 0.3)  # in binary 0.4 − 0.3 exceeds 0.1
    assert holds({"above": "o", "by": 0.1}, 0.4001, 0.3)
    assert holds({"below": "o", "by": 1}, 1, 2.5)
    assert not holds({"below": "o"}, 2, 1)
    assert holds({"above": "o", "by": -0.1}, 0.25, 0.3)


def test_ordering_compares_means_of_lists_of_any_length() -> None:
    assert holds({"above": "o"}, [1, 3], [1, 2, 2])
    assert holds({"above": "o"}, [1, 3], 1.5)
    assert reason({"above": "o", "by": 0.5}, [1, 3], 1.75) == (
        "the difference of the means is 0.25, which does not exceed 0.5"
    )


seeds = st.lists(st.tuples(decimals, decimals), min_size=3, max_size=8)


@given(pairs=seeds, confidence=st.sampled_from([0.6, 0.9, 0.95, 0.999]))
def test_confidence_is_the_lower_bound_of_the_paired_t_test(
    pairs: list[tuple[Decimal, Decimal]], confidence: float
) -> None:
    high, low = ([float(side) for side in sides] for sides in zip(*pairs, strict=True))
    if len({a - b for a, b in pairs}) == 1:
        return  # scipy divides by zero there; the case has its own test
    test = stats.ttest_rel(high, low, alternative="greater")
    bound = float(test.confidence_interval(confidence).low)
    margin = 1e-6 * (1 + abs(bound))
    expect = {"above": "o", "confidence": confidence}
    assert holds({**expect, "by": bound - margin}, high, low)
    assert not holds({**expect, "by": bound + margin}, high, low)
    mirrored = {"below": "o", "confidence": confidence, "by": bound - margin}
    assert holds(mirrored, low, high)


def test_without_variance_the_bound_is_the_difference() -> None:
    expect = {"above": "o", "confidence": 0.95}
    high, low = [0.3, 0.4, 0.6], [0.2, 0.3, 0.5]  # all differ by 0.1, though not in binary
    assert holds(expect, high, low)
    assert holds({**expect, "by": 0.0999}, high, low)
    assert not holds({**expect, "by": 0.1}, high, low)
    assert not holds(expect, high, high)


def test_confidence_needs_paired_seeds() -> None:
    expect = {"above": "o", "confidence": 0.95}
    assert reason(expect, [1, 2], [0, 0]) == "a confidence needs at least 3 seeds, not 2"
    assert "differ in length: 3 and 4" in reason(expect, [5, 6, 7], [1, 1, 1, 1])
    below = {"below": "o", "confidence": 0.95}
    assert "differ in length: 3 and 4" in reason(below, [5, 6, 7], [1, 1, 1, 1])
    assert "needs a list over seeds on both sides" in reason(expect, 5, [1, 1, 1])
    assert "needs a list over seeds on both sides" in reason(expect, [5, 5, 5], 1)


def test_seeds_that_scatter_do_not_reach_confidence() -> None:
    expect = {"above": "o", "confidence": 0.95}
    message = reason(expect, [1, 5, 0.5], [0.5, 1, 2])
    assert message.startswith("the lower bound of the difference at 95% confidence is -")


@pytest.mark.parametrize(
    ("measured", "problem"),
    [
        (math.nan, "m is not finite"),
        (math.inf, "m is not finite"),
        (10**400, "m is not finite"),
        ([1, -math.inf], "m is not finite"),
        (None, "m is not a number or a list of numbers"),
        (True, "m is not a number or a list of numbers"),
        ("0.5", "m is not a number or a list of numbers"),
        ({"value": 0.5}, "m is not a number or a list of numbers"),
        ([0.5, None], "m is not a number or a list of numbers"),
        ([0.5, False], "m is not a number or a list of numbers"),
        ([[0.5]], "m is not a number or a list of numbers"),
        ([], "m is an empty list"),
    ],
)
def test_a_metric_that_is_no_finite_number_is_missing(measured: Any, problem: str) -> None:
    result = verdict({"value": 0.5, "abs": 9}, measured)
    assert (result.status, result.measured, result.reason) == ("missing", None, problem)
    other = verdict({"above": "o"}, 1, measured)
    assert (other.status, other.measured) == ("missing", 1)
    assert other.reason == problem.replace("m is", "o is", 1)


@pytest.mark.parametrize("path", ["absent", "m.deeper", "nested.absent", "list.0"])
def test_a_metric_path_that_leads_nowhere_is_missing(path: str) -> None:
    metrics = {"m": 0.5, "nested": {"x": 1}, "list": [1, 2]}
    here = judge(Claim.model_validate(claim({"min": 0}, metric=path)), metrics, "toy", "smoke")
    assert (here.status, here.reason) == ("missing", f"{path} is not in the metrics")
    there = judge(Claim.model_validate(claim({"above": path})), metrics, "toy", "smoke")
    assert (there.status, there.measured) == ("missing", 0.5)


@pytest.mark.parametrize(
    ("fields", "measured", "status", "gating"),
    [
        ({}, 1, "reproduced", False),
        ({}, 9, "failed", True),
        ({}, None, "missing", True),
        ({"role": "regression"}, 9, "failed", True),
        ({"known_gap": "too small"}, 9, "not_reproduced", False),
        ({"known_gap": "too small"}, None, "missing", True),
        ({"known_gap": "too small"}, 1, "reproduced", False),
        ({"kind": "recalled"}, 9, "not_reproduced", False),
        ({"kind": "recalled"}, None, "missing", False),
        ({"kind": "recalled"}, 1, "reproduced", False),
    ],
)
def test_status_and_gating(
    fields: dict[str, Any], measured: Any, status: str, gating: bool
) -> None:
    result = verdict({"value": 1, "abs": 0.5}, measured, **fields)
    assert result.status == status
    assert gating_failures([result]) == ([result] if gating else [])


def test_a_known_gap_that_does_not_show_is_still_told() -> None:
    result = verdict({"min": 0}, 1, known_gap="too small")
    assert result.status == "reproduced"
    assert result.reason is not None
    assert result.reason == "it holds in this run; known gap: too small"


def write(root: Path, claims: list[dict[str, Any]], metrics: str | None) -> Path:
    folder = root / "papers" / "toy"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("profile: embedded\nsmoke: {}\nembedded: {}\n")
    (folder / "claims.yaml").write_text(yaml.safe_dump(claims))
    if metrics is not None:
        path = root / "results" / "toy" / "embedded" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(metrics)
    return root


def test_check_paper_from_files(tmp_path: Path) -> None:
    claims = [
        claim({"value": 0.5, "abs": 0.02}, id="b", metric="geometry.plateau"),
        claim({"above": "geometry.low"}, id="a", metric="geometry.seeds", known_gap="why"),
        claim({"min": 0}, id="c", profiles=["smoke"]),
    ]
    metrics = {"geometry": {"plateau": 0.52, "seeds": [1, 2.5], "low": 3}}
    first, second = check_paper("toy", root=write(tmp_path, claims, json.dumps(metrics)))
    assert first.model_dump(mode="json") == {
        "paper": "toy",
        "profile": "embedded",
        "id": "b",
        "role": "fidelity",
        "kind": "paper",
        "source": "section 2",
        "expected": "0.5 ± 0.02",
        "measured": 0.52,
        "status": "reproduced",
        "known_gap": None,
        "figure": "f",
        "statement": "s",
        "reason": None,
    }
    assert (second.id, second.status, second.measured) == ("a", "not_reproduced", (1, 2.5))


def test_other_profile_and_other_results(tmp_path: Path) -> None:
    write(tmp_path, [claim({"min": 0}, profiles=["smoke"])], None)
    elsewhere = tmp_path / "elsewhere"
    path = elsewhere / "toy" / "smoke" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"m": 1}')
    (result,) = check_paper("toy", "smoke", tmp_path, elsewhere)
    assert (result.profile, result.status) == ("smoke", "reproduced")


def test_no_results_names_the_command(tmp_path: Path) -> None:
    write(tmp_path, [claim({"min": 0}, profiles=["smoke", "embedded"])], None)
    with pytest.raises(UserError, match=r"run `dvc repro papers/toy/dvc\.yaml`"):
        check_paper("toy", root=tmp_path)
    with pytest.raises(UserError, match=r"`dvc exp run -S papers/toy/params\.yaml:profile=smoke "):
        check_paper("toy", "smoke", tmp_path)


def test_a_profile_without_claims_and_an_unknown_one(tmp_path: Path) -> None:
    write(tmp_path, [claim({"min": 0})], "{}")
    with pytest.raises(UserError, match="toy has no claims for profile 'smoke'"):
        check_paper("toy", "smoke", tmp_path)
    with pytest.raises(UserError, match="known profiles: smoke, embedded"):
        check_paper("toy", "large", tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{\n"m": 1,\n}', r"metrics\.json:3: malformed JSON"),
        ("", r"metrics\.json:1: malformed JSON"),
        ("[1]", "should be a JSON object"),
    ],
)
def test_metrics_that_cannot_be_read(tmp_path: Path, text: str, problem: str) -> None:
    write(tmp_path, [claim({"min": 0})], text)
    with pytest.raises(UserError, match=problem):
        check_paper("toy", root=tmp_path)


def test_nan_in_the_file_is_missing(tmp_path: Path) -> None:
    write(tmp_path, [claim({"min": 0})], '{"m": NaN}')
    (result,) = check_paper("toy", root=tmp_path)
    assert (result.status, result.measured) == ("missing", None)


def test_no_results_of_the_tutorials_name_their_session(tmp_path: Path) -> None:
    write(tmp_path, [claim({"min": 0})], None)
    (tmp_path / "papers" / "toy").rename(tmp_path / "tutorials")
    with pytest.raises(UserError, match="run `nox -s tutorials`"):
        check_paper("tutorials", root=tmp_path)
