"""The command `sae algebra`."""

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

    from shared.features.algebra import Combination
    from shared.features.logits import Promoted
    from shared.features.steer import Steering

EXAMPLE = 'sae algebra "327 - 1125 + 0.5*761" --steer "The function returns"'


def algebra(
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPRESSION",
            help="Feature numbers with + and −, such as '12 - 7 + 0.5*40'; after -- if it begins "
            "with a minus.",
        ),
    ],
    top: Annotated[int, typer.Option("--top", metavar="K", help="Nearest features.")] = 10,
    logits: Annotated[
        int, typer.Option("--logits", metavar="N", help="Promoted tokens of each direction.")
    ] = 5,
    prompt: Annotated[
        str | None,
        typer.Option("--steer", metavar="PROMPT", help="Also continue this text with s·v added."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength", metavar="S", help="s; by default s·v is as long as the activations."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Tokens to add.")] = 30,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Continuations.")] = 2,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the sampling.")] = 0,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Combine the directions of features, and see what the result is near.

    Of "I - J + K" the direction is v = Σ c_i d_i / |d_i|, d_i the decoder rows: word-vector
    arithmetic (Mikolov, Yih and Zweig 2013) with features. Shown are the cosines of v with its
    terms and with the nearest other features, beside the cosine that the nearest of as many random
    directions would have (its median), and the tokens that v / |v| promotes and suppresses along
    the direct path: v · C diag(γ) W_U, C the centring and γ the gain of the final LayerNorm.

    --steer continues a text with h + s·v at every position but 0, beside the same random numbers
    without it. v is multiplied by the deviation of h where the autoencoder normalises its inputs.
    """
    from shared.features import algebra as combining
    from shared.features.steer import Sampling, steer

    sampling = Sampling(steps, samples, seed)
    dictionary = opened(sae, model, hook, device)
    coefficients = combining.parse(expression)
    found = combining.combine(dictionary, coefficients, top, logits)
    steered = None
    if prompt is not None:
        if strength is None:
            strength = combining.natural_strength(dictionary, coefficients, prompt)
        edits = combining.edits(dictionary, coefficients, strength)
        steered = steer(dictionary, prompt, edits, sampling)
    if as_json:
        typer.echo(to_json({"combination": found, "strength": strength, "steering": steered}))
        return
    out = console()
    out.print(f"{dictionary.name}: v = {_sum(found)}, |v| = {found.length:.3f}")
    out.print(_near(found))
    out.print(f"the nearest of as many random directions: {found.chance:.3f}")
    out.print(f"v promotes {_tokens(found.promoted)}\nand suppresses {_tokens(found.suppressed)}")
    if steered is not None:
        out.print(_continuations(steered))
        out.print(
            f"s = {strength:.3g}: KL {steered.kl:.3f} nats per token, perplexity "
            f"{steered.perplexity:.1f} instead of {steered.perplexity_before:.1f}"
        )


def _sum(found: Combination) -> str:
    return " ".join(
        f"{'+' if amount >= 0 else '−'} {abs(amount):g}·d{feature}"
        for feature, amount in found.coefficients.items()
    ).removeprefix("+ ")


def _tokens(promoted: tuple[Promoted, ...]) -> str:
    return " ".join(repr(token) for token, _ in promoted) or "–"


def _near(found: Combination) -> Table:
    from rich.table import Table

    table = Table("", "feature", "cosine", "label", "promotes")
    for name, group in (("term", found.terms), ("near", found.nearest)):
        for near in group:
            row = (str(near.feature), f"{near.cosine:+.3f}", near.label or "–")
            table.add_row(name, *row, _tokens(near.promoted))
    return table


def _continuations(steered: Steering) -> Table:
    from rich.table import Table

    table = Table("without", "with s·v", show_lines=True)
    for pair in zip(steered.before, steered.after, strict=True):
        table.add_row(*pair)
    return table
