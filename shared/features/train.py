"""Training an autoencoder of one's own: any architecture, model, place and text, by one recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import yaml
from jaxtyping import Float
from pydantic import Field, ValidationError
from safetensors import safe_open
from torch import Tensor

from shared.activations.sites import Site, width
from shared.activations.stream import ActivationStream
from shared.console import to_json
from shared.corpus.shards import digest
from shared.errors import UserError
from shared.experiment import Config
from shared.features.dictionary import open_dictionary
from shared.features.evaluate import Evaluation, Size, judged, measure
from shared.features.known import save_density
from shared.features.text import divided
from shared.files import atomic, write_text
from shared.language_models.load import load
from shared.provenance import code_state, package_versions
from shared.saes.architecture import SaeConfig, matmul_precision
from shared.saes.batchtopk import BatchTopKConfig
from shared.saes.gated import GatedConfig
from shared.saes.jumprelu import JumpReLUConfig
from shared.saes.preprocessing import for_activations, normalised
from shared.saes.prolu import ProLUConfig
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig
from shared.saes.weights import CONFIG, save_sae
from shared.training.adam import EPSILON
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Job, Momentum, WarmUp
from shared.training.engine import train as train_jobs
from shared.training.resampling import Resampling, Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Architecture = Literal["standard", "gated", "topk", "batchtopk", "jumprelu", "prolu"]
ARCHITECTURES: dict[Architecture, type[SaeConfig]] = {
    "standard": StandardConfig,
    "gated": GatedConfig,
    "topk": TopKConfig,
    "batchtopk": BatchTopKConfig,
    "jumprelu": JumpReLUConfig,
    "prolu": ProLUConfig,
}
NAME = "autoencoder"  # of the one job
MEASURED = Size(counted=200_000, predicted=20_000, compared=10_000)
"""Of the held-out text, at the end."""
RECORDS = 100
"""Entries of a training's history, at the most."""
CHECKPOINT, PLOT, EVALUATION, CARD = (
    *("checkpoint.safetensors", "training.png", "evaluation.json", "card.md"),
)
"""What a folder holds besides the autoencoder; the checkpoint only while it is in training."""


class Recipe(Config):
    """An autoencoder, what it is of, and how it is trained.

    The seed decides on the order of the text and on the first weights.
    """

    model: str
    """A bundled language model, a folder, or a name on the hub."""
    hook: str
    """The place of the activations, "blocks.2.resid_post" or in TransformerLens' words."""
    text: str
    """See `shared.features.text.contexts_of`."""
    length: int | None = Field(default=None, ge=8)
    """Tokens in a context; by default those of a token shard, else 256 where the model reads so
    many."""
    architecture: Architecture
    sae: dict[str, Any]
    """The fields of the architecture's configuration, by name, d_in and seed excepted."""
    normalised: bool = False
    """Whether inputs get mean 0 and deviation 1 first (`shared.saes.preprocessing`)."""
    batch: int = Field(default=1024, ge=1)
    """Vectors in a batch."""
    steps: int = Field(ge=1)
    """Batches to train on. No vector comes twice."""
    lr: float = Field(gt=0, allow_inf_nan=False)
    """Adam's learning rate. This and what follows is explained in `shared.training.engine.Job`."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    epsilon: float = Field(default=EPSILON, gt=0, allow_inf_nan=False)
    clip: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    lr_warmup: WarmUp = 0
    penalty_warmup: WarmUp = 0
    dead_window: Share = 0.0125
    resampling: Resampling | None = None
    """When dead features start again; never by default, as TopK's auxiliary loss revives them."""
    seed: int = Field(default=0, ge=0)

    def site(self) -> Site:
        """Return the place. Raises UserError where there is no such place."""
        return Site.from_hook_name(self.hook) if "hook" in self.hook else Site.parse(self.hook)

    def job(self, d_in: int) -> Job:
        """Return what the engine trains.

        Raises:
            UserError: the architecture has no such field, or it does not take the value.
        """
        own = {"d_in": d_in, "seed": self.seed}
        if taken := own.keys() & self.sae.keys():
            raise UserError(f"sae.{min(taken)} follows from the rest of the recipe: leave it out")
        try:
            sae = ARCHITECTURES[self.architecture](**own, **self.sae)
        except ValidationError as error:
            raise UserError(_first(error, f"{self.architecture}: sae")) from None
        trained = Job.model_fields.keys() & Recipe.model_fields.keys() - {"sae"}
        return Job(name=NAME, **{key: getattr(self, key) for key in trained} | {"sae": sae})


def _first(error: ValidationError, *where: str) -> str:
    """Return the first complaint in one line."""
    first = error.errors()[0]
    place = ".".join([*where, *map(str, first["loc"])])
    given = "" if first["type"] == "missing" else f", not {first['input']!r}"
    return f"{place}: {first['msg'].lower()}{given}"


def read_recipe(path: Path | None, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe from a YAML file, some fields changed, or from these fields alone.

    Args:
        path: the file, if any.
        changes: values by field; "sae.k" is a field of the architecture.

    Raises:
        UserError: there is no such file, it is no mapping in YAML, or a field is missing, unknown
            or out of its range.
    """
    where = f"{path}: " if path else ""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise UserError(f"no recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where}no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("sae", {}), dict):
        raise UserError(f"{where}a recipe, and its sae, are mappings from fields to values")
    fields = {**fields, "sae": dict(fields.get("sae", {}))}
    for key, value in changes.items():
        inside = key.removeprefix("sae.")
        (fields if inside == key else fields["sae"])[inside] = value
    try:
        recipe = Recipe(**fields)
        recipe.site()
        recipe.job(d_in=1)
    except (ValidationError, UserError) as error:
        reason = _first(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{where}{reason}") from None
    return recipe


class Result(NamedTuple):
    """A trained autoencoder's folder, how it went, and what it does on held-out text."""

    folder: str
    history: Mapping[str, np.ndarray]
    """See `shared.training.engine.Trained`."""
    evaluation: Evaluation


def train(recipe: Recipe, folder: Path, device: str = "cpu", every_seconds: float = 30.0) -> Result:
    """Train an autoencoder, or go on with it after an interruption; write and evaluate it.

    Args:
        recipe: what and how.
        folder: gets cfg.json and sae_weights.safetensors in the format of SAELens, the densities
            of features on held-out text (sparsity.safetensors), the plot of the training, the
            evaluation on held-out text, and a card that says all this.
        device: where everything is computed.
        every_seconds: how often the state and the plot are written meanwhile.

    Raises:
        UserError: the folder holds a complete autoencoder or an interrupted one of another recipe;
            the model, the place or the text is not there; or the text is too short.
        Diverged: the loss is no longer finite.
    """
    checkpoint = Checkpoint(path=folder / CHECKPOINT, every_seconds=every_seconds)
    if (folder / CONFIG).exists() and not checkpoint.path.exists():
        raise UserError(f"{folder} holds an autoencoder: choose another folder, or delete it")
    model, site = load(recipe.model, device), recipe.site()
    job = recipe.job(width(model, site))
    text, held_out = divided(recipe.text, model, recipe.length, recipe.batch * recipe.steps)
    bfloat16 = matmul_precision(device) == torch.bfloat16
    stream = ActivationStream(model, text, (site,), recipe.batch, recipe.seed, bfloat16=bfloat16)
    plot = LivePlot(folder / PLOT, checkpoint.path, recipe.batch)

    def batches(start: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        for vectors in stream.batches(start, recipe.steps):
            plot.refresh()
            yield normalised(vectors[site])[0] if recipe.normalised else vectors[site]

    made_of = recipe.model_dump(include={"model", "hook", "batch", "normalised"})
    source = {"text": digest(text), **made_of}
    trained = train_jobs(
        [job],
        batches,
        recipe.steps,
        device=device,
        record_every=-(-recipe.steps // RECORDS),
        checkpoint=checkpoint,
        source=source,
        label=f"training {folder.name}",
    )[NAME]
    exported = trained.sae.export()
    metadata = {
        "model_name": recipe.model,
        "hook_name": site.hook_name,
        "recipe": recipe.model_dump(mode="json"),
        "text_sha256": source["text"],
    }
    save_sae(folder, for_activations(exported) if recipe.normalised else exported, metadata)
    plot.draw(trained.history)
    dictionary = open_dictionary(str(folder), device=device)
    evaluation, firings = measure(dictionary, held_out, size=MEASURED)
    save_density(folder, torch.from_numpy(firings.density))
    commit, dirty = code_state()
    record = {
        "recipe": metadata["recipe"],
        "commit": commit,
        "dirty": dirty,
        "versions": package_versions(),
        "device": device,
    }
    found = {"evaluation": evaluation, "history": trained.history, "provenance": record}
    write_text(folder / EVALUATION, to_json(found) + "\n")
    write_text(folder / CARD, card(recipe, folder.name, evaluation))
    checkpoint.path.unlink(missing_ok=True)
    return Result(str(folder), trained.history, evaluation)


def recorded(checkpoint: Path) -> dict[str, np.ndarray]:
    """Return the history in a checkpoint of the engine's, without reading its tensors."""
    with safe_open(checkpoint, framework="numpy") as file:
        history = json.loads(file.metadata()["jobs"])[NAME]["history"]
    return {key: np.array([entry[key] for entry in history]) for key in (history or [{}])[0]}


class LivePlot:
    """The plot of a training, drawn again whenever its checkpoint has been written.

    The checkpoint has all that is to be drawn, so that the plot too goes on where it stopped.
    """

    def __init__(self, path: Path, checkpoint: Path, batch: int):
        self.path = path
        self.checkpoint = checkpoint
        self.batch = batch
        self._drawn = 0

    def refresh(self) -> None:
        """Draw the plot if there is something new."""
        try:
            written = self.checkpoint.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if written != self._drawn:
            self._drawn = written
            if history := recorded(self.checkpoint):
                self.draw(history)

    def draw(self, history: Mapping[str, np.ndarray]) -> None:
        """Write the plot atomically."""
        import matplotlib.pyplot as plt

        from shared.figures.style import use_style

        with use_style(), atomic(self.path) as temporary:
            figure = draw(history, self.batch)
            figure.savefig(temporary, dpi=150, metadata={"Software": None})
            plt.close(figure)


def draw(history: Mapping[str, np.ndarray], batch: int) -> Figure:
    """Draw the loss against L0, and the loss and the dead features over training.

    Args:
        history: see `shared.training.engine.Trained`.
        batch: vectors in a step.
    """
    from shared.figures.fronts import plain_ticks
    from shared.figures.style import PALETTE, panel_labels, subplots

    vectors = history["step"] * batch
    figure, ((path, course),) = subplots(1, 2)
    path.plot(history["l0"], history["loss"], color="0.8", linewidth=0.8, zorder=1)
    points = path.scatter(history["l0"], history["loss"], c=vectors, s=8, zorder=2)
    path.set(xlabel="L0", ylabel="loss", yscale="log")
    figure.colorbar(points, ax=path, label="vectors")
    course.plot(vectors, history["loss"], color=PALETTE[0])
    course.set(xlabel="vectors", ylabel="loss", yscale="log")
    course.yaxis.label.set_color(PALETTE[0])
    dead = course.twinx()
    dead.plot(vectors, history["dead"], color=PALETTE[4])
    dead.set(ylim=(0, None))
    dead.grid(False)
    dead.set_ylabel("dead features", color=PALETTE[4])
    for panel in (path, course):
        plain_ticks(panel.yaxis, range(1, 10))
    panel_labels([path, course])
    return figure


def card(recipe: Recipe, name: str, evaluation: Evaluation) -> str:
    """Return what there is to say of an autoencoder, in Markdown."""
    rows = [
        f"| {one.measure} | {one.value:.4g} | {one.low:g} to {one.high:g} | "
        f"{'' if one.within else one.hint} |"
        for one in judged(evaluation)
    ]
    fields = yaml.safe_dump(
        recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=100
    )
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A sparse autoencoder ({recipe.architecture}) of {recipe.site()} of {recipe.model}, "
            f"in the format of SAELens: `sae_lens.SAE.load_from_disk`, or `sae read --sae FOLDER`.",
            "",
            "## Training",
            "",
            f"On {recipe.batch * recipe.steps:,} activations, none of them twice, by "
            f"`sae train RECIPE --into FOLDER` with this recipe:",
            "",
            "```yaml",
            fields.rstrip("\n"),
            "```",
            "",
            "## Evaluation",
            "",
            f"On {evaluation.vectors:,} activations of held-out text, beside what is usual "
            f"(`sae evaluate --help` says what is what, and `sae evaluate` whose word that is).",
            "",
            "| measure | value | usual | hint |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
