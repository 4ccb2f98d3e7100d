"""Train the bundled language models: `python -m shared.language_models --help`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError

from shared.errors import UserError
from shared.files import ROOT
from shared.language_models.load import BUNDLED
from shared.stages import guard

PARAMS = ROOT / "shared" / "params.yaml"

app = typer.Typer(
    help="The language models that the repository brings along.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """The language models that the repository brings along."""


@app.command("train")
def train_command(
    name: Annotated[str, typer.Argument(help="One of the models in shared/params.yaml.")],
    profile: Annotated[str, typer.Option(help="A block of shared/params.yaml.")] = "embedded",
    into: Annotated[Path, typer.Option(help="Where the model's folder is written.")] = BUNDLED,
    threads: Annotated[int | None, typer.Option(help="Processor threads, else all.")] = None,
) -> None:
    """Train one model on the corpus of a profile; a stopped run goes on where it was."""
    guard(lambda: _train(name, profile, into, threads))


def _train(name: str, profile: str, into: Path, threads: int | None) -> None:
    import torch

    from shared.corpus.shards import load_contexts, shard_record
    from shared.corpus.tokenizer import load_tokenizer
    from shared.language_models.train import ModelConfig, mean_loss, save_model, train_model
    from shared.provenance import package_versions, processor

    if threads:
        torch.set_num_threads(threads)
    models = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))[profile]["language_models"]
    if name not in models:
        raise UserError(f"no model {name!r} in shared/params.yaml; there are: {', '.join(models)}")
    try:
        config = ModelConfig(**models[name])
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"shared/params.yaml: {name}: {first['loc'][0]}: {first['msg']}") from None
    corpus = ROOT / "artifacts" / "shared" / profile / "corpus"
    contexts = load_contexts(corpus / "train.safetensors")
    vocabulary = load_tokenizer(BUNDLED / "tokenizer.json").get_vocab_size()
    start = time.monotonic()
    checkpoint = ROOT / "artifacts" / "shared" / profile / "training" / name
    model = train_model(config, contexts, vocabulary, checkpoint, name)
    seconds = time.monotonic() - start
    model.half().float()  # type: ignore[no-untyped-call]  # what is measured is what is stored
    record = {
        "params": config.model_dump(mode="json"),
        "corpus": shard_record(corpus / "train.safetensors")["sha256"],
        "tokens": config.steps * config.batch * contexts.tokens.shape[1],
        "validation_loss": round(
            mean_loss(model, load_contexts(corpus / "validation.safetensors")), 4
        ),
        "wall_seconds": round(seconds),
        "device": processor(),
        "versions": package_versions(),
    }
    save_model(model, into / name, record)


if __name__ == "__main__":
    app(prog_name="python -m shared.language_models")
