"""The command `sae kinds`."""

from __future__ import annotations

from pathlib import Path
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

    from shared.features.kinds import KindShare

EXAMPLE = "sae kinds arabic --figure build/arabic"


def kinds(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="arabic, russian, dna, hex, base64, …")
    ],
    contexts: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of the corpus, to find the feature in.")
    ] = 48,
    tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to add.")] = 16,
    prompts: Annotated[int, typer.Option(min=1, metavar="N", help="Of each seed.")] = 6,
    seed: Annotated[int, typer.Option(metavar="N", help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Seeds.")] = 3,
    figure: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw it as PATH.png, .svg and .json.")
    ] = None,
    sae: SaeOption = None,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Find the feature of a kind of text, steer with it, and count that kind in the samples.

    The feature is the one whose activation correlates most with the label, on contexts of the
    corpus' split "select", half of which hold the kind. Its strength s is added, h + s·d_i, while
    the model continues plain prompts of the split "score": from half to one and a half times what
    makes s·d_i as long as the activations of the prompts. The share of the kind in the samples is
    counted by a rule on characters, whose own errors are measured on "score". Gain is that share,
    over the greater of the share in samples without steering and in all of "score". Perplexity is
    that of the samples to the model as it is.
    """
    from shared.corpus.shards import corpus_folder, load_contexts
    from shared.features import kinds as kinds_of_text
    from shared.features.steer import Sampling

    kinds_of_text.known_kind(kind)
    folder = corpus_folder("embedded")
    found = kinds_of_text.kind_share(
        opened(sae, model, hook, device),
        kind,
        kinds_of_text.half(load_contexts(folder / "select.safetensors"), kind, contexts),
        load_contexts(folder / "score.safetensors"),
        Sampling(tokens, 1, seed),
        seeds=seeds,
        prompts=prompts,
    )
    if figure:
        _save(found, figure, sae)
    if as_json:
        typer.echo(to_json(found))
        return
    specific, detection = found.specific, found.detection
    console().print(
        f"feature {specific.feature}: correlation {specific.correlation:.3f} with {kind}; of the "
        f"tokens above two thirds of its maximum of {specific.maximum:.3g}, "
        f"{specific.precision:.1%} are {kind}\n"
        f"rule: counts {detection.found:.1%} of the characters of {kind} and "
        f"{detection.mistaken:.2%} of those of other text; {detection.share:.2%} of all"
    )
    console().print(_table(found))


def _table(found: KindShare) -> Table:
    from rich.table import Table

    sweep, table = found.sweep, Table("strength", found.kind, "gain", "perplexity", "KL")
    table.add_row(
        "without",
        f"{sweep.plain_share.mean():.2%}",
        "",
        f"{sweep.plain_perplexity.mean():.1f}",
        "0",
    )
    for row, strength in enumerate(sweep.strengths):
        table.add_row(
            f"{strength:.3g}",
            " ".join(f"{x:.2%}" for x in sweep.share[:, row]),
            " ".join(f"{x:.1f}" for x in found.gain[:, row]),
            f"{sweep.perplexity[:, row].mean():.1f}",
            f"{sweep.kl[:, row].mean():.3f}",
        )
    return table


def _save(found: KindShare, figure: Path, sae: str | None) -> None:
    from dataclasses import asdict

    from shared.features.dictionary import DEFAULT
    from shared.features.steer import draw
    from shared.figures.save import save

    specific = found.specific
    save(
        draw(found.sweep),
        figure.name,
        {
            **asdict(found.sweep),
            "specific": specific._asdict(),
            "detection": found.detection._asdict(),
        },
        directory=figure.parent,
        title=f"Steering towards {found.kind}",
        caption=(
            f"Feature {specific.feature} of {sae or DEFAULT} is added to plain text. Points: "
            f"seeds; line: mean; dashed: without steering."
        ),
        original="",
        record={"sae": sae or DEFAULT, "kind": found.kind, "seeds": list(found.sweep.seeds)},
    )
