"""The command `sae ablate`."""

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

    from shared.features.ablate import Ablation, Owed, Shift

EXAMPLE = 'sae ablate "import numpy as" --feature 327 --feature 1219:2'


def ablate(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model reads.")],
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            "-f",
            metavar="I[:V]",
            help="A feature and the value v it is set to, 0 if none is given; as often as there "
            "are features. Without any, all that the text activates are ablated one by one.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Rows to print.")] = 10,
    candidates: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Features to try one by one, the strongest first."),
    ] = 256,
    tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to add.")] = 30,
    samples: Annotated[int, typer.Option(metavar="N", help="Continuations.")] = 2,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampling.")] = 0,
    temperature: Annotated[float, typer.Option(metavar="T", help="0: the likeliest token.")] = 1.0,
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Where features are set, such as 1-4,7,9-; END_OF_TEXT is 0 and never changed. "
            "Everywhere else by default, what is sampled included.",
        ),
    ] = None,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Set features to zero, or to a value, and show what the predictions owed to them.

    At the hook h becomes h + (v − z_i)·d_i: z_i is the activation of feature i and d_i its decoder
    row (times the deviation of h, if the autoencoder normalises its inputs); the reconstruction
    error stays. KL is that of the model's predictions from those under ablation, in nats per token
    of the text; the rise of the loss is in the same unit.

    With --feature: all of these at once, the probabilities of the next token that change most, and
    the text continued with and without, with the same seed. Without: a ranking by KL of the
    features that the text activates, each ablated alone.
    """
    from shared.features import ablate as ablation
    from shared.features.edits import parse_feature, parse_positions
    from shared.features.steer import Sampling

    dictionary = opened(sae, model, hook, device)
    out = console()
    if not feature:
        ranked = ablation.rank(dictionary, text, candidates=candidates)[:top]
        typer.echo(to_json(ranked)) if as_json else out.print(_ranking(ranked))
        return
    length = dictionary.tokens(text).shape[1] + tokens
    found = ablation.ablate(
        dictionary,
        text,
        {number: value or 0.0 for number, value in map(parse_feature, feature)},
        Sampling(tokens, samples, seed, temperature),
        parse_positions(positions, length) if positions else None,
        top,
    )
    if as_json:
        typer.echo(to_json(found))
        return
    for block in _blocks(found):
        out.print(block)


def _chance(shift: Shift) -> str:
    return f"{shift.token!r} {shift.before:.3f} → {shift.after:.3f}"


def _ranking(ranked: list[Owed]) -> Table:
    from rich.table import Table

    table = Table(
        "feature", "strongest", "at", "KL", "KL at end", "loss", "lowered at end", "raised at end"
    )
    for owed in ranked:
        table.add_row(
            str(owed.feature),
            f"{owed.activation:.3g}",
            str(owed.position),
            f"{owed.kl:.4f}",
            f"{owed.next_kl:.4f}",
            f"{owed.loss:+.4f}",
            _chance(owed.lowered),
            _chance(owed.raised),
        )
    return table


def _blocks(found: Ablation) -> list[Table | str]:
    from rich.table import Table

    values = ", ".join(f"{edit.feature} := {edit.strength:g}" for edit in found.edits)
    shifts = Table("next token", "p", f"p with {values}")
    for token, before, after in found.shifts:
        shifts.add_row(repr(token), f"{before:.3f}", f"{after:.3f}")
    texts = Table("continued", f"with {values}", show_lines=True)
    for pair in zip(found.before, found.after, strict=True):
        texts.add_row(*pair)
    was = ", ".join(
        f"{edit.feature}: {z:.3g}" for edit, z in zip(found.edits, found.activations, strict=True)
    )
    return [
        f"strongest activations without ablation: {was}",
        f"KL {sum(found.kl) / len(found.kl):.4f} nats per token, {found.kl[-1]:.4f} at the end; "
        f"loss {found.loss_before:.3f}, {found.loss:.3f} with ablation",
        shifts,
        texts,
    ]
