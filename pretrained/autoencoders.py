"""The autoencoders of a pretrained model: trained in one pass over the text, scored on other text.

Every vector loses its mean over d_in and is scaled to deviation 1 first (Gao et al. 2024, section
2.1), for all architectures. Llama's residual stream needs it: some tokens, one in thousands, are a
hundred times as long as the others, and would be most of the variance (Sun et al. 2024, "Massive
Activations in Large Language Models"). Errors are therefore those of the vectors so normalised.

Seeds are of the first weights: all autoencoders see the same vectors in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from shared.activations.sites import Site
from shared.activations.stream import ActivationStream
from shared.corpus.shards import Contexts, digest
from shared.errors import Diverged
from shared.experiment import Arrays, Config
from shared.features.dictionary import Dictionary
from shared.features.known import save_density
from shared.language_models.load import LanguageModel
from shared.metrics.downstream import Downstream, Effect
from shared.metrics.reconstruction import Fidelity, Reconstruction
from shared.metrics.sparsity import Firings, Sparsity
from shared.parallel import cores
from shared.progress import progress
from shared.saes.architecture import SaeConfig, matmul_precision
from shared.saes.gated import GatedConfig
from shared.saes.loading import load_sae
from shared.saes.preprocessing import for_activations, normalised
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig
from shared.saes.weights import save_sae
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Job, train
from shared.training.resampling import Resampling

Method = Literal["topk", "gated", "baseline"]

LR_WARMUP = 0.01
"""Share of training, of Gated and baseline, as in the engine."""
DEAD_AFTER = 0.2
"""Share of the vectors after which TopK's auxiliary loss takes a feature for dead."""
BLOCK = 4
"""Contexts that go through a language model together: few, so that they stay in the caches."""


class Parameters(Config):
    """What a profile sets."""

    model: str
    site: str
    text: str
    """See `shared.features.text.contexts_of`."""
    length: int = Field(ge=8)
    """Tokens in a context."""
    batch: int = Field(ge=1)
    steps: int = Field(ge=1)
    latents: int = Field(ge=1)
    seeds: int = Field(ge=1)
    lr: float = Field(gt=0)
    ema: float = Field(gt=0, lt=1)
    """Share of an average of the weights that a step keeps; the last ones swing."""
    methods: dict[Method, tuple[float, ...]]
    """The penalties of each: k, or λ."""
    resample_inputs: int = Field(ge=1)
    counted: int = Field(ge=1)
    """Contexts of held-out text on which L0 and errors are measured."""
    predicted: int = Field(ge=1)
    """The first of them, on which losses are measured."""
    examined: int = Field(ge=1)
    """Contexts in which the examples of features are looked for."""


class Planned(NamedTuple):
    """An autoencoder of a front."""

    method: Method
    penalty: float
    job: Job


def plan(config: Parameters, d_in: int) -> list[Planned]:
    """Return all autoencoders, for every method, penalty and seed one."""
    vectors = config.batch * config.steps

    def sae(method: Method, penalty: float, seed: int) -> SaeConfig:
        d_sae = config.latents
        if method == "topk":
            after = round(DEAD_AFTER * vectors)
            return TopKConfig(d_in=d_in, d_sae=d_sae, seed=seed, k=round(penalty), dead_after=after)
        kind = GatedConfig if method == "gated" else StandardConfig
        return kind(d_in=d_in, d_sae=d_sae, seed=seed, l1=penalty)

    def job(method: Method, number: int, penalty: float, seed: int) -> Job:
        common = Job(
            name=f"{method}_{number}_s{seed}",
            sae=sae(method, penalty, seed),
            lr=config.lr,
            ema=config.ema,
            resampling=None,
        )
        if method == "topk":
            return common
        recipe = {"betas": (0.0, 0.999), "lr_warmup": LR_WARMUP}
        again = Resampling(inputs=config.resample_inputs)
        return common.model_copy(update={**recipe, "resampling": again})

    return [
        Planned(method, penalty, job(method, number, penalty, seed))
        for seed in range(config.seeds)
        for method, penalties in config.methods.items()
        for number, penalty in enumerate(penalties)
    ]


def train_all(
    config: Parameters,
    planned: Sequence[Planned],
    model: LanguageModel,
    text: Contexts,
    folder: Path,
) -> Checkpoint:
    """Train all autoencoders in one pass of the model over a text, and save them in a folder.

    The language model reads in one thread while the autoencoders train in another, each on half of
    the cores. A run that was stopped goes on where it was, and one that has ended only writes its
    autoencoders again, until the checkpoint that is returned is deleted.

    Raises:
        UserError: the text is too short, or the checkpoint is of other parameters.
        Diverged: one of them did not train to an end.
    """
    site = Site.parse(config.site)
    bfloat16 = matmul_precision(model.device) == torch.bfloat16
    stream = ActivationStream(
        model, text, (site,), config.batch, seed=0, block=BLOCK, bfloat16=bfloat16
    )
    torch.set_num_threads(max(1, cores() // 2))

    def batches(start: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        for vectors in stream.batches(start, config.steps):
            yield normalised(vectors[site])[0]

    checkpoint = Checkpoint(path=folder / "training.safetensors")
    trained = train(
        [one.job for one in planned],
        batches,
        config.steps,
        device=model.device,
        checkpoint=checkpoint,
        source={"text": digest(text), "model": model.name, "site": config.site},
        label="autoencoders",
    )
    torch.set_num_threads(cores())
    if stopped := [name for name, one in trained.items() if one.diverged_at is not None]:
        raise Diverged(f"autoencoders {', '.join(stopped)}")
    for one in planned:
        metadata = {
            "model_name": model.name,
            "hook_name": site.hook_name,
            "method": one.method,
            "training": {"steps": config.steps, **one.job.model_dump(mode="json")},
        }
        exported = for_activations(trained[one.job.name].sae.export())
        save_sae(folder / one.job.name, exported, metadata)
    return checkpoint


class Scores(NamedTuple):
    """What autoencoders do on held-out text, and the language model alone.

    table: a row for each, with the columns name, method, penalty, seed, l0, fvu and gamma (of
        normalised vectors), fvu_raw (of the vectors as they are), dead, and, of the loss, spliced,
        recovered (from mean ablation), recovered_zero and kl.
    effect: of all reconstructions, in the order of the table.
    """

    table: Arrays
    effect: Effect


def score(
    config: Parameters,
    planned: Sequence[Planned],
    model: LanguageModel,
    held_out: Contexts,
    folder: Path,
) -> Scores:
    """Measure autoencoders of a folder on text that they were not trained on.

    Beside each of them its features' densities are written.
    """
    found = [
        Dictionary(
            name := str(folder / one.job.name),
            model,
            Site.parse(config.site),
            load_sae(Path(name), model.device),
        )
        for one in planned
    ]
    counts = _counts(found, held_out.select(slice(config.counted)))
    for one, firings in zip(found, counts.firings, strict=True):
        save_density(Path(one.name), torch.from_numpy(firings.density))
    effect = _effect(found, held_out.select(slice(config.predicted)), counts.mean)
    table = {
        "name": np.array([one.job.name for one in planned]),
        "method": np.array([one.method for one in planned]),
        "penalty": np.array([one.penalty for one in planned]),
        "seed": np.array([one.job.sae.seed for one in planned]),
        "l0": np.array([one.l0 for one in counts.firings]),
        "dead": np.array([one.dead for one in counts.firings]),
        "fvu": np.array([one.fvu for one in counts.normalised]),
        "gamma": np.array([one.gamma for one in counts.normalised]),
        "fvu_raw": np.array([one.fvu for one in counts.raw]),
        "spliced": effect.spliced,
        "recovered": effect.recovered_mean,
        "recovered_zero": effect.recovered_zero,
        "kl": effect.kl,
    }
    return Scores(table, effect)


class _Counts(NamedTuple):
    firings: list[Firings]
    normalised: list[Fidelity]
    raw: list[Fidelity]
    mean: Float[Tensor, " d_in"]
    """Of the activations as they are."""


@torch.inference_mode()
def _counts(found: Sequence[Dictionary], text: Contexts) -> _Counts:
    sparsity = [Sparsity(one.d_sae) for one in found]
    errors = [Reconstruction() for _ in found]
    raw = [Reconstruction() for _ in found]
    total = torch.zeros(found[0].directions.shape[1], device=found[0].model.device)
    for tokens in _batches(text, found[0].model.device, "features"):
        x = found[0].activations(tokens)[:, 1:].flatten(0, 1)
        total += x.sum(0)
        inputs, statistics = normalised(x)
        for number, one in enumerate(found):
            f = one.encode(x)
            x_hat = one.decode(f, x)
            sparsity[number].update(f)
            raw[number].update(x, x_hat)
            errors[number].update(inputs, (x_hat - statistics.mean) / statistics.deviation)
    firings = [one.result() for one in sparsity]
    return _Counts(
        firings,
        [one.result() for one in errors],
        [one.result() for one in raw],
        total / firings[0].vectors,
    )


def _effect(found: Sequence[Dictionary], text: Contexts, mean: Float[Tensor, " d_in"]) -> Effect:
    downstream = Downstream(found[0].model, found[0].site, mean)
    for tokens in _batches(text, found[0].model.device, "losses"):
        with torch.inference_mode():
            x = found[0].activations(tokens)[:, 1:]
            reconstructions = [one.decode(one.encode(x), x) for one in found]
        downstream.update(tokens, reconstructions)
    return downstream.result()


def _batches(text: Contexts, device: str, label: str) -> Iterator[Int64[Tensor, "_ length"]]:
    whole = torch.from_numpy(text.tokens.astype(np.int64)).to(device)
    with progress(label, len(whole)) as advance:
        for batch in torch.split(whole, BLOCK):
            yield batch
            advance(len(batch))
