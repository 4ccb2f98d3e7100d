"""`sae evaluate`: how good an autoencoder is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import console, to_json
from shared.features.options import DeviceOption, HookOption, JsonOption, ModelOption, opened

if TYPE_CHECKING:
    from rich.table import Table

    from shared.features.evaluate import Evaluation

EXAMPLE = "sae evaluate mini_gpt2_resid_2 --text embedded"


def table(evaluation: Evaluation) -> Table:
    """Return the measures beside what is usual, for a terminal."""
    from rich.table import Table

    from shared.features.evaluate import judged

    found = Table("measure", "value", "usual", "", "says who, and what to change")
    for one in judged(evaluation):
        found.add_row(
            one.measure,
            f"{one.value:.4g}",
            f"{one.low:g} to {one.high:g}",
            "✓" if one.within else "✗",
            one.source if one.within else f"{one.source}\n→ {one.hint}",
        )
    return found


def evaluate(
    sae: Annotated[
        str | None,
        typer.Argument(
            metavar="[SAE]",
            help="A bundled autoencoder (as by default), a folder in the format of SAELens, or "
            "RELEASE:ID of SAELens' list.",
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Text that the autoencoder was not trained on: a corpus (its split "
            "validation), a token shard, a .txt file, or a folder of text.",
        ),
    ] = "embedded",
    against: Annotated[
        str | None,
        typer.Option(metavar="SAE", help="The same with another seed, for MMCS."),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(metavar="N", help="Tokens for L0, FVU, dead and dense, about.", min=1),
    ] = 20_000,
    model: ModelOption = None,
    hook: HookOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure an autoencoder on held-out text, and say what is unusual and what to change.

    l0: active features of a vector, on average. fvu: E‖x − x̂‖² / E‖x − x̄‖². gamma: E‖x̂‖² / E[x·x̂],
    below 1 is shrinkage. recovered: (L_abl − L_SAE) / (L_abl − L), the loss L of the language
    model being ablated with zeros, or with the mean of x. dead, dense: share of features active on
    no vector, on more than a tenth of all.

    Stability is Σ min(f, f') / Σ max(f, f') of the features of the same text: repeated, alone and
    in a batch; counterfactual, after two different earlier documents. by chance is that of
    different texts, and moved the change E‖x − x'‖² / E‖x − x̄‖² of the language model's own
    activations. mmcs: mean over features of the largest cosine with a feature of --against.

    The usual ranges are ours, drawn around published numbers where there are any: the table says
    which, and for what is outside (✗) what to change.
    """
    from shared.features.evaluate import Size, judged
    from shared.features.evaluate import evaluate as measured
    from shared.features.text import contexts_of

    dictionary = opened(sae, model, hook, device)
    other = opened(against, model, hook, device) if against else None
    held_out = contexts_of(text, dictionary.model)
    result = measured(dictionary, held_out, other, Size(counted=tokens))
    if as_json:
        typer.echo(to_json({"evaluation": result, "judgements": judged(result)}))
        return
    console().print(table(result))
    typer.echo(
        f"{result.vectors} vectors; features of different texts are alike by "
        f"{result.by_chance:.2f}; the other document moves activations by {result.moved:.2f} of "
        f"their variance" + (f"; mmcs is {result.mmcs_by_chance:.2f} by chance" if other else "")
    )
