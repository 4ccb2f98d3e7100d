"""The command `sae patch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

    from shared.features.patch import Patching, Recovered

EXAMPLE = 'sae patch "import numpy as" "import pandas as" --target " np" --versus " pd"'


def patch(
    clean: Annotated[str, typer.Argument(metavar="CLEAN", help="What the target follows.")],
    corrupted: Annotated[
        str,
        typer.Argument(metavar="CORRUPTED", help="As many tokens, which the target does not."),
    ],
    target: Annotated[
        str, typer.Option(metavar="TOKEN", help='A single token, with its space: " np".')
    ],
    versus: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="What its logit is measured against; by default the mean of all logits.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Features to show.")] = 10,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a heat map: .png, .svg or .pdf.")
    ] = None,
    transformer_lens: Annotated[
        bool,
        typer.Option(
            "--transformer-lens",
            help="Patch full activations by TransformerLens too, and compare: some seconds.",
        ),
    ] = False,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Move features of one prompt into the run of another: what does a logit do?

    The score s of the target is its logit at the last position less that of
    --versus, or less the mean of all. Patching some features at some positions
    recovers, where clean and corrupted stand for s of the prompts,

    denoising: (s(corrupted + clean features) − corrupted) / (clean − corrupted)
    noising: (clean − s(clean + corrupted features)) / (clean − corrupted)

    What a feature contributes in one prompt, z_i·d_i, replaces what it does in
    the other. The rest is what no feature stands for: the reconstruction error,
    and the mean of normalised inputs. All features and the rest are the full
    activation.
    """
    from shared.errors import UserError
    from shared.features.parts import open_target
    from shared.features.patch import full_by_transformer_lens
    from shared.features.patch import patch as run

    if figure is not None and figure.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{figure}: a figure ends in .png, .svg or .pdf")
    dictionary = opened(sae, model, hook, device)
    goal = open_target(dictionary, target, versus)
    found = run(dictionary, clean, corrupted, goal)
    theirs = (
        full_by_transformer_lens(dictionary, clean, corrupted, goal) if transformer_lens else None
    )
    if figure is not None:
        _write(found, figure, top)
    if as_json:
        typer.echo(to_json(_report(found, theirs)))
        return
    against = "the mean of all logits" if versus is None else f"the logit of {versus!r}"
    out = console()
    out.print(
        f"Logit of {target!r} less {against}: {found.clean:.3f} clean, {found.corrupted:.3f} "
        f"corrupted"
    )
    out.print(_strongest(found, top))
    out.print(_together(found))
    if theirs is not None:
        out.print(
            f"TransformerLens' activation patching agrees but for "
            f"{abs(theirs - found.full.denoising).max():.1e}."
        )


def _write(found: Patching, path: Path, top: int) -> None:
    from shared.features.patch import draw
    from shared.figures.style import use_style
    from shared.files import atomic

    with use_style(), atomic(path) as temporary:
        draw(found, top).savefig(temporary, dpi=200)


def _report(found: Patching, theirs: Any) -> dict[str, Any]:
    import numpy as np

    pairs = zip(found.positions, found.features, *found.pairs, strict=True)
    positions = zip(found.at, *found.all_features, *found.rest, *found.full, strict=True)
    wholes = [
        f"{what}_{way}" for what in ("features", "rest", "full") for way in found.full._fields
    ]
    return {
        "clean": found.clean,
        "corrupted": found.corrupted,
        "clean_tokens": found.clean_tokens,
        "corrupted_tokens": found.corrupted_tokens,
        "pairs": [
            dict(zip(("position", "feature", *found.pairs._fields), pair, strict=True))
            for pair in pairs
        ],
        "positions": [dict(zip(("position", *wholes), row, strict=True)) for row in positions],
        "everywhere": dict(zip(wholes, np.stack(found.everywhere, 1).ravel(), strict=True)),
        "full_by_transformer_lens": theirs,
    }


def _row(recovered: Recovered, case: int) -> list[str]:
    return [f"{way[case]:.3f}" for way in recovered]


def _strongest(found: Patching, top: int) -> Table:
    from rich.table import Table

    table = Table("position", "token", "feature", "denoising", "noising", title="one feature")
    for pair in found.order()[:top].tolist():
        position = int(found.positions[pair])
        table.add_row(
            str(position),
            found.label(position),
            str(found.features[pair]),
            *_row(found.pairs, pair),
        )
    return table


def _together(found: Patching) -> Table:
    from rich.table import Table

    ways = [f"{what} {way}" for what in ("features", "rest", "full") for way in ("den.", "nois.")]
    table = Table("position", "token", *ways, title="all features, the rest, and both (full)")
    for case, position in enumerate(found.at):
        wholes = (found.all_features, found.rest, found.full)
        cells = [cell for whole in wholes for cell in _row(whole, case)]
        table.add_row(str(position), found.label(int(position)), *cells)
    everywhere = [cell for case in range(3) for cell in _row(found.everywhere, case)]
    table.add_row("all", "", *everywhere, end_section=True)
    return table
