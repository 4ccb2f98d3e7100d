"""Reports of verdicts: for a terminal, as JSON, as Markdown inside a README."""

import json
from typing import Any

import pytest
from rich.console import Console

from shared.claims.checker import Verdict
from shared.claims.report import markdown, splice, summary, terminal, to_json
from shared.errors import UserError


def verdict(**fields: Any) -> Verdict:
    defaults: dict[str, Any] = {
        "paper": "toy",
        "profile": "embedded",
        "id": "plateau",
        "role": "fidelity",
        "kind": "paper",
        "source": "section 2",
        "expected": "0.5 ± 0.02",
        "measured": 0.512345,
        "status": "reproduced",
        "known_gap": None,
        "figure": "dimensionality",
        "statement": "Pairs hold half a dimension.",
        "reason": None,
    }
    return Verdict.model_validate({**defaults, **fields})


GAP = {"status": "not_reproduced", "known_gap": "the model is small", "reason": "off by 1"}


def shown(*verdicts: Verdict) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(terminal(verdicts))
    return capture.get()


def test_the_summary_counts_every_status() -> None:
    verdicts = [verdict(), verdict(), verdict(**GAP), verdict(status="missing")]
    assert summary(verdicts) == ("2 reproduced, 1 not reproduced (known gaps), 0 failed, 1 missing")


def test_the_summary_tells_recalled_claims_from_known_gaps() -> None:
    recalled = verdict(status="not_reproduced", kind="recalled")
    assert "2 not reproduced (known gaps: 1, recalled: 1)" in summary([verdict(**GAP), recalled])


def test_the_terminal_shows_verdicts_by_word_and_symbol() -> None:
    text = shown(
        verdict(),
        verdict(id="gap", **GAP),
        verdict(id="bad", status="failed", reason="off by 3", role="regression"),
        verdict(id="gone", status="missing", measured=None, reason="m is not in the metrics"),
    )
    for label in ("✓ reproduced", "○ not reproduced", "✗ failed", "? missing"):
        assert label in text
    assert "0.5123" in text
    assert "bad (regression)" in text
    assert "○ not reproduced: gap: off by 1; the model is small" in text
    assert "✗ failed: bad: off by 3" in text
    assert "? missing: gone: m is not in the metrics" in text
    assert "toy (embedded): 1 reproduced, 1 not reproduced (known gaps), 1 failed, 1 mis" in text


def test_brackets_are_text_and_not_markup() -> None:
    text = shown(verdict(expected="[bold] ± [1]", measured=[1, 2], statement="[red]"))
    assert "[bold] ± [1]" in text
    assert "[1, 2]" in text


def test_each_paper_has_its_own_table_and_summary() -> None:
    text = shown(verdict(), verdict(paper="gated", status="failed"))
    assert "toy (embedded): 1 reproduced" in text
    assert "gated (embedded): 0 reproduced" in text


def test_recalled_claims_say_that_they_do_not_gate() -> None:
    text = shown(verdict(kind="recalled", status="missing", measured=None, reason="m is gone"))
    assert "m is gone; recalled, so not gating" in text


def test_json_keeps_order_and_values() -> None:
    values = json.loads(to_json([verdict(), verdict(id="b", measured=[1, 2.5], **GAP)]))
    assert [value["id"] for value in values] == ["plateau", "b"]
    assert values[0]["measured"] == 0.512345
    assert values[1]["measured"] == [1, 2.5]
    assert list(values[0])[:10] == [
        "paper",
        "profile",
        "id",
        "role",
        "kind",
        "source",
        "expected",
        "measured",
        "status",
        "known_gap",
    ]
    assert to_json([]) == "[]"


def test_markdown() -> None:
    assert markdown([verdict(), verdict(id="gap", measured=None, **GAP)]) == (
        "**toy**, profile `embedded`: "
        "1 reproduced, 1 not reproduced (known gaps), 0 failed, 0 missing.\n"
        "\n"
        "| Claim | Figure | Source | Expected | Measured | Verdict |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| Pairs hold half a dimension. | dimensionality | section 2 (paper) | 0.5 ± 0.02 "
        "| 0.5123 | ✓ reproduced |\n"
        "| Pairs hold half a dimension. | dimensionality | section 2 (paper) | 0.5 ± 0.02 "
        "| none | ○ not reproduced: off by 1; the model is small |"
    )


def test_markdown_cells_cannot_break_out() -> None:
    text = markdown([verdict(statement="a | b\n<!-- verdicts:end -->")])
    assert "a \\| b &lt;!-- verdicts:end -->" in text
    assert "<!--" not in text


README = "# Toy\n<!-- verdicts:begin -->\nold\n<!-- verdicts:end -->\nrest\n"


def test_splice_replaces_only_the_block() -> None:
    new = splice(README, "verdicts", "new")
    assert new == README.replace("old", "new")
    assert splice(new, "verdicts", "new") == new


@pytest.mark.parametrize(
    "text",
    [
        "# Toy\n",
        README.replace("<!-- verdicts:end -->", ""),
        README.replace("<!-- verdicts:begin -->", ""),
        "<!-- verdicts:end -->\n<!-- verdicts:begin -->\n",
        README + README,
        "<!-- verdicts:end -->\n" + README,
    ],
)
def test_splice_needs_both_markers_once_and_in_order(text: str) -> None:
    with pytest.raises(UserError, match="<!-- verdicts:begin --> and <!-- verdicts:end -->"):
        splice(text, "verdicts", "new")
