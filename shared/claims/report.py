"""Verdicts for people and programs: a terminal table, JSON, and Markdown for a README."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shared.claims.checker import Status, Verdict
from shared.claims.schema import values_text
from shared.errors import UserError

BLOCK = "verdicts"
"""The name of the block of a paper's README that holds its verdicts."""

# Symbol, word, style: the verdict has to be readable without colour.
_LABELS: dict[Status, tuple[str, str, str]] = {
    "reproduced": ("✓", "reproduced", "green"),
    "not_reproduced": ("○", "not reproduced", "yellow"),
    "failed": ("✗", "failed", "bold red"),
    "missing": ("?", "missing", "bold red"),
}


def _label(verdict: Verdict) -> str:
    symbol, word, _ = _LABELS[verdict.status]
    return f"{symbol} {word}"


def _measured(verdict: Verdict) -> str:
    return "none" if verdict.measured is None else values_text(verdict.measured)


def _note(verdict: Verdict) -> str | None:
    """What a reader should know beside the verdict: the reason and the known gap, if any."""
    notes = [verdict.reason]
    if verdict.status == "not_reproduced":
        notes.append(verdict.known_gap)
    if verdict.kind == "recalled" and verdict.status in ("not_reproduced", "missing"):
        notes.append("recalled, so not gating")
    return "; ".join(filter(None, notes)) or None


def summary(verdicts: Iterable[Verdict]) -> str:
    """One line of counts: '57 reproduced, 3 not reproduced (known gaps), 0 failed, 0 missing'."""
    verdicts = list(verdicts)
    counts = Counter(verdict.status for verdict in verdicts)
    excused = [verdict for verdict in verdicts if verdict.status == "not_reproduced"]
    gaps = sum(verdict.known_gap is not None for verdict in excused)
    why = (
        "known gaps"
        if gaps == len(excused)
        else f"known gaps: {gaps}, recalled: {len(excused) - gaps}"
    )
    return (
        f"{counts['reproduced']} reproduced, {counts['not_reproduced']} not reproduced ({why}), "
        f"{counts['failed']} failed, {counts['missing']} missing"
    )


def _by_run(verdicts: Sequence[Verdict]) -> list[tuple[str, str, list[Verdict]]]:
    """Verdicts in their order, cut where the paper or the profile changes."""
    runs = groupby(verdicts, key=lambda verdict: (verdict.paper, verdict.profile))
    return [(paper, profile, list(group)) for (paper, profile), group in runs]


def terminal(verdicts: Sequence[Verdict]) -> RenderableType:
    """One table per paper for a rich console, each with its notes and a line of counts."""
    parts: list[RenderableType] = []
    for paper, profile, group in _by_run(verdicts):
        table = Table(
            title=f"{paper} ({profile})", title_justify="left", title_style="bold", box=SIMPLE_HEAD
        )
        for column in ("claim", "figure", "source", "expected", "measured"):
            table.add_column(column, overflow="fold")
        table.add_column("verdict", no_wrap=True)
        for verdict in group:
            regression = " (regression)" if verdict.role == "regression" else ""
            # Text, since in a string rich takes square brackets for markup.
            table.add_row(
                Text(verdict.id + regression),
                Text(verdict.figure),
                Text(f"{verdict.source} ({verdict.kind})"),
                Text(verdict.expected),
                Text(_measured(verdict)),
                Text(_label(verdict), style=_LABELS[verdict.status][2]),
            )
        parts.append(table)
        for verdict in group:
            if note := _note(verdict):
                parts.append(Text(f"{_label(verdict)}: {verdict.id}: {note}"))
        parts.append(Text(f"{paper} ({profile}): {summary(group)}\n", style="bold"))
    return Group(*parts)


def to_json(verdicts: Sequence[Verdict]) -> str:
    """A JSON list of verdicts, in their order."""
    values = [verdict.model_dump(mode="json") for verdict in verdicts]
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """A compact Markdown table per paper under its line of counts, without a final newline."""
    lines: list[str] = []
    for paper, profile, group in _by_run(verdicts):
        lines += [
            f"**{paper}**, profile `{profile}`: {summary(group)}.",
            "",
            "| Claim | Figure | Source | Expected | Measured | Verdict |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for verdict in group:
            note = _note(verdict)
            cells = [
                verdict.statement + (" (regression)" if verdict.role == "regression" else ""),
                verdict.figure,
                f"{verdict.source} ({verdict.kind})",
                verdict.expected,
                _measured(verdict),
                _label(verdict) + (f": {note}" if note else ""),
            ]
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        lines.append("")
    return "\n".join(lines[:-1])


def _cell(text: str) -> str:
    """Text that neither ends its table cell nor opens an HTML tag or comment."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def splice(readme_text: str, block_name: str, content: str) -> str:
    """Replace what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` by `content`.

    Raises UserError unless each marker stands there once, in this order.
    """
    begin, end = (f"<!-- {block_name}:{edge} -->" for edge in ("begin", "end"))
    before, found_begin, rest = readme_text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in rest or end in before + after:
        raise UserError(f"needs the markers {begin} and {end}, each once and in this order")
    return f"{before}{begin}\n{content}\n{end}{after}"
