"""`sae train`: an autoencoder of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from shared.console import console, to_json
from shared.errors import Diverged, UserError
from shared.features.options import DeviceOption, HookOption, JsonOption, ModelOption

EXAMPLE = (
    "sae train --model mini_gpt2 --hook blocks.2.resid_post --text embedded --architecture topk "
    "--d-sae 512 --set sae.k=16 --steps 500 --lr 0.004 --into build/my_sae"
)


def _value(setting: str) -> tuple[str, Any]:
    """Return field and value of "sae.k=16"."""
    import yaml

    field, equals, value = setting.partition("=")
    if not field or not equals:
        raise UserError(f"--set {setting!r} is no FIELD=VALUE, such as sae.k=16")
    try:
        return field, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {setting!r}: the value is no YAML") from None


def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="A YAML file; options change its fields."),
    ] = None,
    into: Annotated[
        Path, typer.Option("--into", metavar="FOLDER", help="Where the autoencoder is written.")
    ] = ...,  # type: ignore[assignment]  # required, though it stands behind an optional one
    model: ModelOption = None,
    hook: HookOption = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="A corpus (embedded), a token shard, a .txt file, or a folder of .txt, .jsonl "
            "and .parquet files.",
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="standard, gated, topk, batchtopk, jumprelu, or prolu."),
    ] = None,
    d_sae: Annotated[int | None, typer.Option(metavar="N", help="Number of features.")] = None,
    normalised: Annotated[
        bool | None,
        typer.Option("--normalised/--raw", help="Give inputs mean 0 and deviation 1 first."),
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Vectors in a batch.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Batches to train on.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Adam's learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of weights and order.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other field: sae.k (topk, batchtopk), sae.l1 (standard, gated, prolu), "
            "sae.l0 (jumprelu), ema, epsilon, clip, betas, lr_warmup, penalty_warmup, resampling, "
            "length. May be repeated.",
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Time between two checkpoints and plots.", min=0),
    ] = 30.0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train a sparse autoencoder on the activations of a language model.

    By a recipe (shared/saes/bundled/mini_gpt2_resid_2.yaml is one), by options, or by both.
    FOLDER gets cfg.json and sae_weights.safetensors in the format of SAELens, training.png (loss
    against L0, drawn again with every checkpoint), and, measured on held-out text,
    sparsity.safetensors (densities of features), evaluation.json and card.md.
    An interrupted training goes on where it stopped when the same command is given again.
    """
    from shared.features.train import read_recipe
    from shared.features.train import train as trained

    options = {
        "model": model,
        "hook": hook,
        "text": text,
        "architecture": architecture,
        "sae.d_sae": d_sae,
        "normalised": normalised,
        "batch": batch,
        "steps": steps,
        "lr": lr,
        "seed": seed,
    }
    changes = {field: value for field, value in options.items() if value is not None}
    chosen = read_recipe(recipe, changes | dict(map(_value, settings or [])))
    try:
        result = trained(chosen, into, device, every)
    except Diverged as error:
        typer.echo(f"sae: {error}: try a smaller lr", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(to_json(result))
        return
    from shared.features.commands.evaluate import table

    console().print(table(result.evaluation))
    typer.echo(f"{into}: read card.md, see training.png, try sae read --sae {into}")
