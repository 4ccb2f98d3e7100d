"""The autoencoders that this paper compares, and how each is trained (appendix D).

"baseline" has 1.5 times the latents of the others, because a gated autoencoder takes 1.5 times the
compute in training (section 4.1); "baseline_equal" has as many. Those called gated_* are the
ablations of section 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from shared.activations.sites import Site
from shared.errors import Diverged
from shared.experiment import Arrays, Config, Evaluation, Run
from shared.saes.architecture import SaeConfig
from shared.saes.gated import GatedConfig
from shared.saes.jumprelu import JumpReLUConfig
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig
from shared.saes.weights import save_sae
from shared.training.budget import Reading, parted
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Batches, Job, Trained, train
from shared.training.resampling import Resampling

WIDER = 1.5
BETAS = (0.0, 0.999)
LR_WARMUP = 1 / 300  # 1,000 steps of 300,000
PENALTY_WARMUP = 10 / 300  # of JumpReLU: 10,000 steps, taken as of 300,000 too
RECORDS = 100  # entries of a training history


class Method(Config):
    """How one kind of autoencoder is trained."""

    lr: float = Field(gt=0)
    penalties: tuple[float, ...] = Field(min_length=1)
    """The front: λ, or k."""
    settings: dict[str, float] = Field(default_factory=dict)
    """What else of its architecture is not at its default."""


class Training(Config):
    """What all kinds have in common."""

    latents: int = Field(ge=1)
    """Of all but the wider baseline."""
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    resample_inputs: int = Field(ge=1)
    """Inputs on which a resampling looks for large losses (Towards Monosemanticity: 819,200)."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Share of an average of the weights that a step keeps, for where the last ones swing."""
    methods: dict[str, Method]


def _jumprelu(d_in: int, d_sae: int, penalty: float, seed: int) -> JumpReLUConfig:
    return JumpReLUConfig(d_in=d_in, d_sae=d_sae, seed=seed, l0=penalty)


def _topk(d_in: int, d_sae: int, penalty: float, seed: int) -> TopKConfig:
    return TopKConfig(d_in=d_in, d_sae=d_sae, seed=seed, k=round(penalty))


def _standard(d_in: int, d_sae: int, penalty: float, seed: int) -> StandardConfig:
    return StandardConfig(d_in=d_in, d_sae=d_sae, seed=seed, l1=penalty)


def _gated(**ablation: bool) -> Callable[[int, int, float, int], GatedConfig]:
    def config(d_in: int, d_sae: int, penalty: float, seed: int) -> GatedConfig:
        return GatedConfig(d_in=d_in, d_sae=d_sae, seed=seed, l1=penalty, **ablation)

    return config


KINDS: dict[str, Callable[[int, int, float, int], SaeConfig]] = {
    "baseline": _standard,
    "baseline_equal": _standard,
    "gated": _gated(),
    "gated_unfrozen": _gated(frozen_aux=False),
    "gated_no_r_mag": _gated(rescaled=False),
    "gated_untied": _gated(tied=False),
    "jumprelu": _jumprelu,
    "topk": _topk,
}
UNRESAMPLED = ("jumprelu", "topk")
"""Kinds whose own papers have another remedy for dead latents, or none."""


@dataclass(frozen=True)
class Planned:
    """One autoencoder of a front, and its training."""

    method: str
    penalty: float
    """As the profile has it."""
    job: Job

    def renamed(self, method: str, job: Job) -> Planned:
        """Return another method's autoencoder at this penalty."""
        name = self.job.name.replace(self.method, method, 1)
        return Planned(method, self.penalty, job.model_copy(update={"name": name}))


def plan(
    method: str, training: Training, site: Site, d_in: int, seed: int, scale: float = 1.0
) -> list[Planned]:
    """Return the front of a method at a site of width `d_in`, an autoencoder for every penalty.

    `scale` is what penalties are multiplied with: λ of an L1 penalty is in units of the
    activations.
    """
    chosen = training.methods[method]
    d_sae = round(training.latents * (WIDER if method == "baseline" else 1))
    return [
        Planned(
            method,
            penalty,
            Job(
                name=f"{method}_{site.kind}.{site.layer}_{number}_s{seed}",
                sae=KINDS[method](d_in, d_sae, penalty * scale, seed).model_copy(
                    update=chosen.settings
                ),
                site=str(site),
                lr=chosen.lr,
                # TopK's paper has Adam's default betas and a constant learning rate.
                betas=(0.9, 0.999) if method == "topk" else BETAS,
                lr_warmup=0 if method == "topk" else LR_WARMUP,
                penalty_warmup=PENALTY_WARMUP if method == "jumprelu" else 0,
                ema=training.ema,
                resampling=None
                if method in UNRESAMPLED
                else Resampling(inputs=training.resample_inputs),
            ),
        )
        for number, penalty in enumerate(chosen.penalties)
    ]


def train_and_save(
    planned: Sequence[Planned],
    reading: Reading,
    batches: Batches,
    run: Run,
    into: str,
    source: Mapping[str, Any],
) -> Arrays:
    """Train autoencoders on one stream and save them; return a table of them.

    Args:
        planned: the autoencoders, whose jobs `reading` has.
        reading: its label is shown with the progress, and is the name of the checkpoint. It is
            done in parts where memory is short.
        batches: the stream that it is of.
        run: its folder and device.
        into: the folder in that of the run, where each has a folder with its name.
        source: what else the stream was made from.

    Returns:
        For each autoencoder its name, method, model, site, penalty, d_sae and seed, and the means
        of the last hundredth of its training: loss, mse, l0.

    Raises:
        Diverged: one of them did not train to an end.
    """
    trained: dict[str, Trained] = {}
    checkpoints = []
    for number, part in enumerate(parted(reading, run.max_gpu_memory_gb)):
        label = f"{reading.label}_{number}" if number else reading.label
        checkpoint = Checkpoint(path=run.folder / "training" / f"{label}.safetensors")
        trained |= train(
            part.jobs,
            batches,
            part.steps,
            device=run.device,
            record_every=max(1, part.steps // RECORDS),
            rows=part.rows(run.max_gpu_memory_gb),
            checkpoint=checkpoint,
            source={**source, "model": part.model.name},
            label=label.replace("_", " "),
        )
        if stopped := [name for name, one in trained.items() if one.diverged_at is not None]:
            raise Diverged(f"{label}: {', '.join(stopped)}")
        checkpoints.append(checkpoint.path)
    for one in planned:
        metadata = {
            "model_name": reading.model.name,
            "hook_name": Site.parse(one.job.site).hook_name,
            "method": one.method,
            "training": {"steps": reading.steps, **one.job.model_dump(mode="json")},
            "source": dict(source),
        }
        save_sae(run.folder / into / one.job.name, trained[one.job.name].sae.export(), metadata)
    for path in checkpoints:
        path.unlink(missing_ok=True)
    return {
        "name": np.array([one.job.name for one in planned]),
        "method": np.array([one.method for one in planned]),
        "model": np.full(len(planned), reading.model.name),
        "site": np.array([one.job.site for one in planned]),
        "penalty": np.array([one.penalty for one in planned]),
        "d_sae": np.array([one.job.sae.d_sae for one in planned]),
        "seed": np.array([one.job.sae.seed for one in planned]),
        **{
            key: np.array([trained[one.job.name].history[key][-1] for one in planned])
            for key in ("loss", "mse", "l0")
        },
    }


def joined(tables: Iterable[Arrays]) -> Arrays:
    """Return the rows of all tables as one."""
    tables = list(tables)
    return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}


def endings(config: Training, arrays: Arrays) -> Evaluation:
    """Report how the trainings ended: by method and penalty, the mean over seeds."""
    metrics = {
        method: {
            key: [
                arrays[key][(arrays["method"] == method) & (arrays["penalty"] == penalty)].mean()
                for penalty in np.unique(arrays["penalty"][arrays["method"] == method])
            ]
            for key in ("loss", "mse", "l0")
        }
        for method in np.unique(arrays["method"])
    }
    return Evaluation(metrics, {})
