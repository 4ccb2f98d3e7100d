"""The command `sae read`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import console, to_json
from shared.features.options import (
    DeviceOption,
    HookOption,
    JsonOption,
    ModelOption,
    SaeOption,
    opened,
)

if TYPE_CHECKING:
    from rich.table import Table

    from shared.features.read import About, Quality, Reading, ReadToken

EXAMPLE = 'sae read "import numpy as np"'
UNKNOWN = "–"


def read(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model reads.")],
    top: Annotated[int, typer.Option("--top", metavar="K", help="Features per token.")] = 5,
    logits: Annotated[
        int, typer.Option("--logits", metavar="N", help="Promoted tokens per feature.")
    ] = 5,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Read a text by the features that it activates.

    First the tokens in columns, as the model sees them, each with its strongest features and their
    activations z. Then these features: the strongest z and its position, the density (share of all
    tokens with z > 0) and label where they are known, and the tokens that the feature promotes:
    those with the largest d · C diag(γ) W_U, d its decoder row, C the centring and γ the gain of
    the final LayerNorm. That is the direct path, without the layers in between.

    Last, how well all features together reconstruct this text: FVU = Σ‖x − x̂‖² / Σ‖x − x̄‖², and CE
    recovered = (L_abl − L_SAE) / (L_abl − L), against activations of zero and against their mean.
    Position 0, END_OF_TEXT, is left out.
    """
    from shared.features import read as reading

    found = reading.read(opened(sae, model, hook, device), text, top, logits)
    if as_json:
        typer.echo(to_json(found))
        return
    out = console()
    out.print(f"{found.sae}: features of {found.site} of {found.model}")
    for block in _blocks(found, out.width):
        out.print(block)
    out.print(_features(found.features))
    out.print(_quality(found.quality))


def _header(token: ReadToken) -> str:
    return f"{token.position}\n{token.text!r}"


def _cell(token: ReadToken, rank: int) -> str:
    return "{} {:.3g}".format(*token.active[rank]) if rank < len(token.active) else ""


def _blocks(found: Reading, width: int) -> list[Table]:
    """Return the tokens in columns, in as many tables as the width takes."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table

    depth = max(len(token.active) for token in found.tokens)
    columns = [(_header(token), [_cell(token, r) for r in range(depth)]) for token in found.tokens]
    blocks: list[list[tuple[str, list[str]]]] = []
    left = 0
    for head, cells in columns:
        needed = 2 + max(cell_len(line) for line in [*head.splitlines(), *cells])
        if needed > left:
            blocks.append([])
            left = width - 2
        blocks[-1].append((head, cells))
        left -= needed
    tables = []
    for block in blocks:
        table = Table(*(head for head, _ in block), box=SIMPLE_HEAD, pad_edge=False)
        for rank in range(depth):
            table.add_row(*(cells[rank] for _, cells in block))
        tables.append(table)
    return tables


def _features(features: tuple[About, ...]) -> Table:
    from rich.table import Table

    table = Table("feature", "strongest", "at", "density", "label", "promotes")
    for about in features:
        table.add_row(
            str(about.feature),
            f"{about.strength:.3g}",
            str(about.position),
            UNKNOWN if about.density is None else f"{about.density:.2%}",
            about.label or UNKNOWN,
            " ".join(repr(token) for token, _ in about.promoted) or UNKNOWN,
        )
    return table


def _quality(quality: Quality) -> str:
    return (
        f"L0 {quality.l0:.1f}, FVU {quality.fvu:.3f}; loss {quality.loss:.3f} nats per token, "
        f"{quality.spliced:.3f} with the reconstruction;\nCE recovered "
        f"{quality.recovered_zero:.3f} against zeros, {quality.recovered_mean:.3f} against the mean"
    )
