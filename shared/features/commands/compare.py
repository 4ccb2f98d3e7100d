"""The command `sae compare`."""

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
    from collections.abc import Sequence

    from rich.table import Table

    from shared.features.compare import Comparison, Summary

EXAMPLE = 'sae compare "import numpy as np" --figure build/compare.png'
SUFFIXES = (".png", ".svg", ".pdf")
READ = 200_000
"""Tokens read of one's own text."""


def compare(
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="What is explained; without it, the excerpts are."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="A single token, whose logit after the text is explained; by default the model's "
            "most likely one.",
        ),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="What its logit is measured against; by default the mean of all logits.",
        ),
    ] = None,
    removed: Annotated[
        str,
        typer.Option(
            metavar="WHAT", help="What a removed token loses: tokens or activations (at the site)."
        ),
    ] = "tokens",
    samples: Annotated[
        int, typer.Option(min=16, metavar="N", help="Sets that LIME and KernelSHAP try, each.")
    ] = 128,
    excerpts: Annotated[
        int, typer.Option(min=2, metavar="N", help="Held-out excerpts, if there is no TEXT.")
    ] = 20,
    length: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens in an excerpt.")] = 12,
    corpus: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Where other texts are from: a corpus, a token shard, a .txt file, or a folder of "
            ".txt, .jsonl and .parquet.",
        ),
    ] = "embedded",
    seed: Annotated[int, typer.Option(metavar="N", help="Of sampling and excerpts.")] = 0,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")
    ] = None,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Ask five methods which tokens a logit is due to; say what they cost, and which is right.

    v(S) is the score (the target's logit less that of --versus or the mean)
    when of the tokens only S stay, and other texts' stand in for the rest.

    probe: w·(x − mean x), w fitted to scores by ridge regression.
    lime: weights of a linear model of v around the whole text.
    shap: KernelSHAP's estimate of the Shapley values of v.
    patching: what is lost with another text's activation at one token.
    features: integrated gradients of the SAE features at a token, summed.
    recency: the position itself, a control.

    Deletion removes tokens from the highest value on, insertion puts them
    back. With A the area under the curve of v, judged on texts of its own,

    faithfulness = (A(insertion) − A(deletion)) / (v(all) − v(none))

    which is 0 for a random order, in expectation. Agreement is Spearman's rank
    correlation over tokens, cost the sequences run forward and backward.
    """
    from shared.errors import UserError
    from shared.features.compare import Settings, known, study, summary
    from shared.features.compare import compare as run
    from shared.features.parts import open_target
    from shared.features.text import divided

    if figure is not None and figure.suffix not in SUFFIXES:
        raise UserError(f"{figure}: a figure ends in .png, .svg or .pdf")
    if text is None and target is not None:
        raise UserError("--target asks about one text: give it")
    if versus is not None and target is None:
        raise UserError("--versus is what a target is measured against: give --target")
    settings = Settings(known(removed), samples, seed=seed)
    dictionary = opened(sae, model, hook, device)
    goal = None if target is None else open_target(dictionary, target, versus)
    tokens = None if text is None else dictionary.tokens(text)
    contexts = divided(corpus, dictionary.model, None, READ)
    if tokens is None:
        found = study(dictionary, *contexts, excerpts, length, settings)
    else:
        found = [run(dictionary, tokens, *contexts, goal, settings)]
    if figure is not None:
        _write(found, figure)
    mean = summary(found)
    if as_json:
        typer.echo(to_json(_report(found, mean)))
        return
    out = console()
    if text is not None:
        only = found[0]
        out.print(
            f"Score of {only.target!r}: {only.score:.3f}; with all {removed} of other texts "
            f"{only.nothing:.3f}. The probe explains {only.probe_r2:.0%} of the variance of scores."
        )
        out.print(_values(only))
    out.print(_methods(mean, len(found)))
    out.print(_agreement(mean))


def _write(found: Sequence[Comparison], path: Path) -> None:
    from shared.features.compare import draw
    from shared.figures.style import use_style
    from shared.files import atomic

    with use_style(), atomic(path) as temporary:
        draw(found).savefig(temporary, dpi=200)


def _report(found: Sequence[Comparison], mean: Summary) -> dict[str, Any]:
    from shared.features.compare import METHODS

    return {"methods": METHODS, "mean": mean, "texts": found}


def _values(found: Comparison) -> Table:
    from rich.table import Table

    from shared.features.compare import METHODS

    table = Table("token", *METHODS[:-1], "strongest feature")
    for token, values, feature in zip(
        found.tokens, found.values[:-1].T, found.strongest.tolist(), strict=True
    ):
        cells = (f"{value:.3f}" for value in values)
        table.add_row(repr(token), *cells, str(feature) if feature >= 0 else "")
    return table


def _methods(mean: Summary, texts: int) -> Table:
    from rich.table import Table

    from shared.features.compare import METHODS

    several = [f"90%, {texts} texts"] if texts > 1 else []
    table = Table("method", "faithfulness", *several, "forward", "backward")
    limits = mean.faithfulness
    for row, method in enumerate(METHODS):
        within = f"{limits.low[row]:.3f} to {limits.high[row]:.3f}"
        table.add_row(
            method,
            f"{limits.mean[row]:.3f}",
            *([within] if several else []),
            f"{mean.forward[row]:.0f}",
            f"{mean.backward[row]:.0f}",
        )
    return table


def _agreement(mean: Summary) -> Table:
    from rich.table import Table

    from shared.features.compare import METHODS

    table = Table("", *METHODS, title="rank correlation")
    for method, row in zip(METHODS, mean.agreement, strict=True):
        table.add_row(method, *(f"{value:.2f}" for value in row))
    return table
