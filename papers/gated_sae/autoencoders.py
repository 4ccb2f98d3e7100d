"""The autoencoders of one MLP layer's neurons, which most figures of the paper are about.

Sections 4.1 and 5: fronts of a one-layer model's MLP neurons (the paper's model is GELU-1L, ours
the bundled one-layer ReLU model), with the ablations, the rescale-and-shift of a frozen baseline,
and beside them JumpReLU, TopK and SAELens' own gated autoencoder. Those of one seed see the same
activations in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import Field

from papers.gated_sae.methods import BETAS, Planned, Training, endings, joined, plan, train_and_save
from papers.gated_sae.rescaled_baseline import RescaledConfig
from papers.gated_sae.sae_lens_gated import variants
from shared.activations.sites import Site, width
from shared.activations.stream import ActivationStream
from shared.corpus.shards import corpus_folder, load_contexts, shard_record
from shared.experiment import Arrays, Experiment, Run
from shared.language_models.load import load
from shared.parallel import side_by_side, workers
from shared.training.budget import Reading, parted
from shared.training.engine import Job

FROZEN = "baseline_equal"  # what rescale-and-shift starts from
FAMILIES = {
    "baselines": ("baseline", FROZEN),  # the longest first
    "gated": ("gated", "gated_unfrozen"),
    "variants": ("gated_no_r_mag", "gated_untied"),
    "thresholds": ("jumprelu", "topk"),
}
"""What trains together, in a process of its own; "sae_lens" is a family too."""


class Parameters(Training):
    """What a profile sets."""

    model: str
    site: str
    """Written as in "blocks.0.mlp_post"."""
    seeds: int = Field(ge=1)
    """Trainings of every method and penalty."""
    rescaled_steps: int = Field(ge=1)
    """Of rescale-and-shift, which trains two numbers per latent."""
    rescaled_lr: float = Field(gt=0)
    sae_lens: tuple[int, ...]
    """Penalties of "gated", by number, at which SAELens' own class is trained, of one seed."""
    sae_lens_path: tuple[int, ...]
    """Those at which what lies between that class and ours is trained too."""


def plan_family(family: str, config: Parameters, d_in: int, seed: int) -> list[Planned]:
    """Return what is trained of a family with one seed."""
    site = Site.parse(config.site)
    if family != "sae_lens":
        chosen = [method for method in FAMILIES[family] if method in config.methods]
        return [one for method in chosen for one in plan(method, config, site, d_in, seed)]
    found = []
    for number, one in enumerate(plan("gated_unfrozen", config, site, d_in, seed)):
        path = variants(one.job)
        if number not in config.sae_lens_path:
            path = {"sae_lens_gated": path["sae_lens_gated"]}
        if number in config.sae_lens:
            found += [one.renamed(method, job) for method, job in path.items()]
    return found


def plan_rescaled(frozen: Sequence[Planned], config: Parameters, folder: Path) -> list[Planned]:
    """Return the rescale-and-shift of baselines that are trained and saved in a folder."""
    return [
        one.renamed(
            "rescaled",
            Job(
                name=one.job.name,
                sae=RescaledConfig(
                    **one.job.sae.model_dump(include={"d_in", "d_sae", "seed"}),
                    frozen=folder / one.job.name,
                ),
                site=one.job.site,
                lr=config.rescaled_lr,
                betas=BETAS,
                ema=config.ema,
                resampling=None,
            ),
        )
        for one in frozen
    ]


def read_family(family: str, place: int, config: Parameters, run: Run) -> Reading:
    """Return what trains of a family with one of the run's seeds."""
    model, site = load(config.model, run.device), Site.parse(config.site)
    seed = run.seed * config.seeds + place
    planned = plan_family(family, config, width(model, site), seed)
    jobs = tuple(one.job for one in planned)
    return Reading(f"{family}_{seed}", jobs, config.steps, config.batch, model, (site,))


def train_family(family: str, place: int, config: Parameters, run: Run) -> Arrays:
    """Train and save the autoencoders of one family and one of the run's seeds."""
    reading = read_family(family, place, config, run)
    (site,) = reading.sites
    shard = corpus_folder(run.folder.name) / "train.safetensors"
    seed = run.seed * config.seeds + place
    contexts = load_contexts(shard)
    stream = ActivationStream(reading.model, contexts, reading.sites, config.batch, seed)
    source = {
        "corpus": shard_record(shard)["sha256"],
        "batch": config.batch,
        "seed": seed,
    }

    def trained(planned: list[Planned], reading: Reading) -> Arrays:
        return train_and_save(
            planned,
            reading,
            lambda start: (batch[site] for batch in stream.batches(start, reading.steps)),
            run,
            "autoencoders",
            source,
        )

    planned = plan_family(family, config, width(reading.model, site), seed)
    table = trained(planned, reading)
    frozen = [one for one in planned if one.method == FROZEN]
    if not frozen:
        return table
    rescaled = plan_rescaled(frozen, config, run.folder / "autoencoders")
    jobs = tuple(one.job for one in rescaled)
    label, steps = f"rescaled_{seed}", config.rescaled_steps
    again = replace(reading, label=label, jobs=jobs, steps=steps)
    return joined([table, trained(rescaled, again)])


def chosen_families(config: Parameters) -> list[tuple[str, int]]:
    """Return the families that a profile has autoencoders of, and the numbers of their seeds."""
    families = [name for name, methods in FAMILIES.items() if config.methods.keys() & methods]
    return [
        *([("sae_lens", 0)] if config.sae_lens else []),
        *((family, place) for family in families for place in range(config.seeds)),
    ]


def readings(config: Parameters, run: Run) -> list[Reading]:
    """Return all that is read and trained, but for rescale-and-shift."""
    return [
        part
        for family, place in chosen_families(config)
        for part in parted(read_family(family, place, config, run), run.max_gpu_memory_gb)
    ]


def run(config: Parameters, run: Run) -> Arrays:
    """Train all autoencoders, families and seeds side by side; return a table of them."""
    chosen = chosen_families(config)
    tables = side_by_side(
        {key: partial(train_family, *key, config, run) for key in chosen},
        workers(run.device, config.steps * len(chosen)),
    )
    return joined(tables.values())


EXPERIMENT = Experiment(
    config=Parameters, train=run, evaluate=endings, figures=(), readings=readings
)
