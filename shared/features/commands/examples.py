"""The command `sae examples`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import console, to_json
from shared.errors import UserError
from shared.features.options import (
    DeviceOption,
    HookOption,
    JsonOption,
    ModelOption,
    SaeOption,
    opened,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shared.features.examples import Example, Portrait, Specificity

EXAMPLE = "sae examples 761 327 --pages build/features"
FIRE = "bold reverse"


def examples(
    features: Annotated[
        list[int] | None, typer.Argument(metavar="[FEATURE]...", help="Numbers of features.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All features of the autoencoder; only with --pages.")
    ] = False,
    pages: Annotated[
        Path | None,
        typer.Option("--pages", metavar="DIR", help="Write a page for each and an index here."),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            "--text",
            metavar="TEXT",
            help="A corpus, a token shard, a .txt file, or a folder of .txt, .jsonl and .parquet.",
        ),
    ] = "embedded",
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="Which part of a corpus.")
    ] = "select",
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, help="About how many are read.")
    ] = 32_000,
    top: Annotated[int, typer.Option("--top", metavar="N", help="Strongest examples.")] = 10,
    quantiles: Annotated[
        int, typer.Option("--quantiles", metavar="N", help="Parts by strength, of 3 examples.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draws the examples.")] = 0,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Show what features fire on, from one pass over a text.

    The strongest examples come from different contexts; those by strength are drawn uniformly from
    all distinct ones, and shown in parts of equal size. Examples are the same if the token where
    the feature fires and the seven before it are. Position 0, END_OF_TEXT, is left out.

    Of a token or kind of text: share, of the sum of the feature's activations, that on it;
    precision, the share of it in the tokens on which the feature fires; recall, the share of it on
    which the feature fires; base, its share in all tokens. Nearest features are those with the
    greatest cosine between decoder rows, and promoted tokens those of `sae read`.
    """
    from shared.features.examples import Panels, portraits
    from shared.features.firing import spread
    from shared.features.pages import write_pages
    from shared.features.text import contexts_of

    if every == bool(features) or (every and pages is None):
        raise UserError("name features, or ask for --all of them with --pages DIR")
    panels = Panels(top=top, quantiles=quantiles, seed=seed)
    dictionary = opened(sae, model, hook, device)
    chosen = list(dict.fromkeys(features or range(dictionary.d_sae)))
    for feature in chosen:
        dictionary.feature(feature)
    contexts = spread(contexts_of(text, dictionary.model, split=split, tokens=tokens), tokens)
    found = portraits(dictionary, contexts, chosen, panels)
    if pages is not None:
        index = write_pages(pages, dictionary, text, found)
    if as_json:
        typer.echo(to_json(found))
    elif pages is not None:
        typer.echo(index)
    else:
        out = console()
        for one in found:
            _print(out, one)


def _print(out: Console, one: Portrait) -> None:
    label = f": {one.label}" if one.label else ""
    out.print(f"feature {one.feature}{label}", style="bold")
    out.print(
        f"active on {one.firings} of {one.tokens} tokens (density {one.density:.2%}), mean "
        f"{one.mean:.3g} there, maximum {one.maximum:.3g}"
    )
    if one.link:
        out.print(one.link)
    for example in one.top:
        out.print(_line(example), no_wrap=True, overflow="ellipsis")
    for quantile in one.quantiles:
        out.print(f"from {quantile.high:.3g} down to {quantile.low:.3g}", style="italic")
        for example in quantile.examples:
            out.print(_line(example), no_wrap=True, overflow="ellipsis")
    out.print(_specific("token", one.words))
    out.print(_specific("kind of text", one.kinds))
    near = ", ".join(f"{near.feature} ({near.cosine:.2f})" for near in one.nearest)
    out.print(f"nearest by cosine: {near}")
    for name, pairs in (("promotes", one.promoted), ("suppresses", one.suppressed)):
        words = " ".join(token for token, _ in pairs)
        out.print(f"{name}: {words or 'no direct path to the logits'}")


def _line(example: Example) -> Text:
    """Return an example, where the feature fires marked by colour, or in a file by brackets."""
    import sys

    from rich.text import Text

    line = Text(f"{example.strength:8.2f}  ")
    marked = sys.stdout.isatty()
    for at, (token, activation) in enumerate(zip(example.tokens, example.activations, strict=True)):
        if activation <= 0:
            line.append(token)
        elif marked:
            line.append(token, FIRE if at == example.at else "reverse")
        else:
            line.append(f"⟪{token}⟫" if at == example.at else f"⟨{token}⟩")
    return line


def _specific(name: str, rows: tuple[Specificity, ...]) -> Table:
    from rich.table import Table

    table = Table(name, "share", "precision", "recall", "base")
    for row in rows:
        table.add_row(row.name, *(f"{value:.1%}" for value in row[1:]))
    return table
