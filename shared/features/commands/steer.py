"""`sae steer`: continue a prompt with and without features pushed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

    from shared.features.steer import Steering, Sweep

EXAMPLE = 'sae steer "The function returns" --feature 761 --feature 327:4 --mode add'


def steer(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the texts begin with.")],
    feature: Annotated[
        list[str],
        typer.Option(
            "--feature",
            "-f",
            metavar="I[:S]",
            help="A feature and the strength s, as often as there are features. Without s: what "
            "makes s·d_i as long as the activations of the prompt are on average; for scale, 2.",
        ),
    ],
    mode: Annotated[
        Literal["add", "scale", "clamp", "replace"], typer.Option(help="What is done; see above.")
    ] = "add",
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Where, such as 1-4,7,9-; END_OF_TEXT is 0 and never changed. Everywhere else by "
            "default, what is sampled included.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to add.")] = 40,
    samples: Annotated[int, typer.Option(metavar="N", help="Continuations.")] = 3,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampling.")] = 0,
    temperature: Annotated[float, typer.Option(metavar="T", help="0: the likeliest token.")] = 1.0,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,…",
            help="Try these strengths, of all features together, and print KL and perplexity.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Of a sweep, from --seed on.")] = 3,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Draw a sweep as PATH.png, .svg and .json."),
    ] = None,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with and without features pushed, side by side, with the same seed.

    With h the activation at the hook, z its features and d_i the decoder row of feature i (times
    the deviation of h, if the autoencoder normalises its inputs), the modes are

    add: h + s·d_i

    scale: h + (s − 1)·z_i·d_i, so that 1 changes nothing, to the bit

    clamp: h + (s − z_i)·d_i, so that z_i is s, and the reconstruction error stays

    replace: decode(z with z_i := s), the reconstruction without its error

    KL is that of the model's predictions from those under the intervention, in nats per token of
    the texts sampled without it. Perplexity is that of the sampled tokens to the model without it.
    """
    from shared.errors import UserError
    from shared.features import steer as steering
    from shared.features.edits import Edit, parse_feature, parse_positions, parse_strength

    if figure and not sweep:
        raise UserError("--figure draws a sweep: give its strengths with --sweep")
    dictionary = opened(sae, model, hook, device)
    ids = dictionary.tokens(prompt)
    sampling = steering.Sampling(tokens, samples, seed, temperature)
    where = parse_positions(positions, ids.shape[1] + tokens) if positions else None
    pushed = [parse_feature(text) for text in feature]
    if sweep:
        if any(strength is not None for _, strength in pushed):
            raise UserError("--sweep gives the strengths: leave them out of --feature")
        features, strengths = (
            [number for number, _ in pushed],
            [parse_strength(s) for s in sweep.split(",")],
        )
        found = steering.sweep(
            dictionary, [ids] * seeds, features, mode, strengths, sampling, where
        )
        if figure:
            _save(found, figure, prompt, dictionary.name)
        typer.echo(to_json(found)) if as_json else console().print(_swept(found))
        return

    def usual(number: int) -> float:
        return 2.0 if mode == "scale" else steering.natural_strength(dictionary, ids, number)

    edits = [Edit(i, mode, usual(i) if strength is None else strength) for i, strength in pushed]
    result = steering.steer(dictionary, prompt, edits, sampling, where)
    if as_json:
        typer.echo(to_json(result))
        return
    console().print(_texts(result))
    console().print(
        f"KL {result.kl:.3f} nats per token; perplexity {result.perplexity_before:.1f} without, "
        f"{result.perplexity:.1f} with"
    )


def _texts(result: Steering) -> Table:
    from rich.table import Table

    pushed = ", ".join(f"{edit.mode} {edit.feature}:{edit.strength:.3g}" for edit in result.edits)
    table = Table("without", f"with {pushed}", show_lines=True)
    for before, after in zip(result.before, result.after, strict=True):
        table.add_row(before, after)
    return table


def _swept(found: Sweep) -> Table:
    from rich.table import Table

    table = Table("strength", "KL", "perplexity", title=f"{found.mode} {list(found.features)}")
    table.add_row("without", "0", f"{found.plain_perplexity.mean():.1f}")
    for strength, kl, perplexity in zip(
        found.strengths, found.kl.mean(0), found.perplexity.mean(0), strict=True
    ):
        table.add_row(f"{strength:g}", f"{kl:.3f}", f"{perplexity:.1f}")
    return table


def _save(found: Sweep, figure: Path, prompt: str, sae: str) -> None:
    from dataclasses import asdict

    from shared.features.steer import draw
    from shared.figures.save import save

    names = ", ".join(map(str, found.features))
    save(
        draw(found),
        figure.name,
        asdict(found),
        directory=figure.parent,
        title=f"Steering with {names}",
        caption=f"Features {names} of {sae}, mode {found.mode}, on {prompt!r}. Points: seeds.",
        original="",
        record={"sae": sae, "prompt": prompt},
    )
