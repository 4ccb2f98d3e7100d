"""The command `sae attribute`."""

from __future__ import annotations

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

    from shared.features.attribute import Attribution

EXAMPLE = 'sae attribute "import numpy as" --target " np"'


def attribute(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the target follows.")],
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
    steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Points of the integrated gradient.")
    ] = 50,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Say which features the logit of a token is due to, by four methods.

    Feature i adds c = z_i·d_i to the activation at its position (times the
    deviation of the activation, where the autoencoder normalises its inputs).
    The score s of the target is its logit at the last position less that of
    --versus, or less the mean of all; s(a) is the score with every c times a,
    and the reconstruction error as it is. A feature is worth

    direct: (c − mean of c) · (γ ∘ u) / σ, at the last position.
    gradient: ∂s/∂a at a = 1.
    integrated: the mean of ∂s/∂a as all a go from 0 to 1; sums to s(1) − s(0).
    ablation: s less the score without the feature, the true effect.

    The direct way to the logits is past all later layers. u is the unembedding
    of the target less that of --versus or the mean, γ and σ are gain and
    deviation of the final LayerNorm; to hold σ is the approximation.

    Spearman's rank correlations tell how far the methods agree.
    """
    from shared.features.attribute import attribute as run
    from shared.features.parts import open_target

    dictionary = opened(sae, model, hook, device)
    found = run(dictionary, prompt, open_target(dictionary, target, versus), steps)
    tokens = dictionary.shown(dictionary.tokens(prompt)[0])
    if as_json:
        typer.echo(to_json(_report(found, tokens)))
        return
    against = "the mean of all logits" if versus is None else f"the logit of {versus!r}"
    out = console()
    out.print(f"Logit of {target!r} less {against}: {found.score:.3f}")
    out.print(
        f"Without any feature {found.without:.3f}; the integrated gradients of the "
        f"{len(found.features)} active ones sum to the difference but for {found.gap:.1e}."
    )
    out.print(_strongest(found, tokens, top))
    out.print(_ranks(found.rank_correlation(), "rank correlation, all positions"))
    out.print(_ranks(found.rank_correlation(last_only=True), "rank correlation, last position"))


def _report(found: Attribution, tokens: list[str]) -> dict[str, Any]:
    from shared.features.attribute import METHODS

    order = found.strongest(len(found.features))
    return {
        "score": found.score,
        "without": found.without,
        "gap": found.gap,
        "pairs": [
            {
                "position": found.positions[pair],
                "token": tokens[found.positions[pair]],
                "feature": found.features[pair],
                "activation": found.activations[pair],
                **dict(zip(METHODS, found.values[:, pair], strict=True)),
            }
            for pair in order
        ],
        "rank_correlation": {
            name: {
                one: dict(zip(METHODS, row, strict=True))
                for one, row in zip(METHODS, found.rank_correlation(last), strict=True)
            }
            for name, last in (("all_positions", False), ("last_position", True))
        },
    }


def _strongest(found: Attribution, tokens: list[str], top: int) -> Table:
    from rich.table import Table

    from shared.features.attribute import METHODS

    table = Table("position", "token", "feature", "activation", *METHODS)
    for pair in found.strongest(top):
        position = found.positions[pair]
        values = (found.activations[pair], *found.values[:, pair])
        table.add_row(
            str(position),
            repr(tokens[position]),
            str(found.features[pair]),
            *(f"{value:.3f}" for value in values),
        )
    return table


def _ranks(correlation: Any, title: str) -> Table:
    from rich.table import Table

    from shared.features.attribute import METHODS

    table = Table("", *METHODS, title=title)
    for method, row in zip(METHODS, correlation, strict=True):
        table.add_row(method, *(f"{value:.2f}" for value in row))
    return table
