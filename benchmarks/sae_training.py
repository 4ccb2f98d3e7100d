"""How fast sparse autoencoders train: against peers, against the machine, against their model.

All rivals get the same initial weights, the same batches of a language model's activations in the
same order, the converted penalty, Adam and its rate. They run in turns, and a ratio compares two
neighbouring runs. That they did the same work is checked by the loss on activations that nobody
trained on. See README.md here for what each number is.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.measuring import (
    Peer,
    Rounds,
    Short,
    Threads,
    compare,
    matmul_rate,
    parse_peers,
    say,
)
from benchmarks.peers.protocol import synchronise
from benchmarks.peers.sae_protocol import (
    Clock,
    Task,
    Weights,
    read_batches,
    read_weights,
    save_weights,
)
from shared.activations.sites import Site, read, width
from shared.activations.stream import ActivationStream
from shared.corpus.shards import Contexts, load_contexts
from shared.files import ROOT, write_json
from shared.language_models.load import BUNDLED, LanguageModel, load
from shared.memory import keep_freed_memory
from shared.provenance import run_record
from shared.saes.architecture import Architecture, SaeConfig, matmul_precision
from shared.saes.batchtopk import BatchTopKConfig
from shared.saes.gated import GatedConfig
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig
from shared.stages import device_name, guard, pick_device
from shared.training.engine import Job, train

MODEL = "one_layer_a"
CORPUS = ROOT / "artifacts" / "shared" / "embedded" / "corpus" / "train.safetensors"
SEED = 0
LR = 1e-3  # of what precedes the timed steps, and of the comparison of losses
TIMED_LR = 1e-5  # so small that steps leave the sparsity, which decides the speed, where it is
SWEEP = 8  # autoencoders
SWEEP_SPAN = 4.0  # largest λ or k over smallest
LOSS_TOLERANCE = 1e-3

TARGETS = {
    "sae-lens": 5.0,
    "sae-lens, autocast": 3.0,
    "share_of_matmul_rate": 0.7,
    "sweep": 4.0,
    "stream": 0.95,
}
"""Ratios to SAELens are geometric means over architectures and settings; "sweep" is to it too."""


@dataclass(frozen=True)
class Rival:
    """A peer in one of its modes."""

    package: str
    driver: str
    autocast: bool = False
    architecture: str | None = None
    """Trained whatever the task, for a peer that has no other; its loss is then no comparison."""


RIVALS = {
    "sae-lens": Rival("sae-lens", "benchmarks.peers.sae_lens"),
    "sae-lens, autocast": Rival("sae-lens", "benchmarks.peers.sae_lens", autocast=True),
    "dictionary-learning": Rival("dictionary-learning", "benchmarks.peers.dictionary_learning"),
    "eai-sparsify, topk": Rival("eai-sparsify", "benchmarks.peers.sparsify", architecture="topk"),
}
PACKAGES = tuple(dict.fromkeys(rival.package for rival in RIVALS.values()))


class Started(SaeConfig):
    """An architecture that goes on from saved weights; comes first among the bases."""

    weights: Path

    def create(self, device: str, matmul: torch.dtype) -> Architecture:
        """Return an autoencoder with the saved weights, which `start` leaves alone."""
        sae = super().create(device, matmul)
        saved = read_weights(self.weights)
        for name, tensor in sae.parameters.items():
            tensor.copy_(saved["W_enc"].T if name.endswith("_T") else saved[name])
        sae.start = lambda first: None
        return sae


class StartedStandard(Started, StandardConfig):
    """A standard autoencoder that goes on from saved weights."""


class StartedGated(Started, GatedConfig):
    """A gated autoencoder that goes on from saved weights."""


class StartedTopK(Started, TopKConfig):
    """A TopK autoencoder that goes on from saved weights, with the sum of squares as its loss."""


class StartedBatchTopK(Started, BatchTopKConfig):
    """A BatchTopK autoencoder that goes on from saved weights, with the same loss."""


class Outcome(NamedTuple):
    """What an autoencoder makes of inputs."""

    f: Tensor
    """[batch, d_sae]"""
    loss: float


@dataclass(frozen=True)
class Subject:
    """An architecture as it is benchmarked."""

    config: type[SaeConfig]
    started: type[Started]
    """The same, going on from `weights` (a path)."""
    knob: str
    """Name of what sets the sparsity: λ, or a number of features."""
    sparsity: float
    products: int
    """Matrix products of a dense step."""
    outcome: Callable[[Weights, Tensor, float], Outcome]
    """Given weights, inputs and sparsity, in float32 and free of our training code."""

    def settings(self, d_in: int, d_sae: int, sparsity: float) -> dict[str, Any]:
        """Return what `config` and `started` take."""
        return {"d_in": d_in, "d_sae": d_sae, "seed": SEED, self.knob: self.exact(sparsity)}

    def peer_sparsity(self, sparsity: float, d_in: int) -> float:
        """Return it for squared errors that are summed over d_in, as peers sum them."""
        return self.exact(sparsity) * (d_in if self.knob == "l1" else 1)

    def exact(self, sparsity: float) -> float:
        """Return it as it is set: a number of features is whole."""
        return sparsity if self.knob == "l1" else round(sparsity)


def unit(weights: Weights) -> Weights:
    """Return the same autoencoder with every feature in units of its decoder norm.

    SAELens leaves these norms free, and counts activations by them in penalties and selections.
    """
    norms = torch.linalg.vector_norm(weights["W_dec"], dim=1)
    whole = ("W_dec", "b_dec", "r_mag")
    scaled = {name: t * norms for name, t in weights.items() if name not in whole}
    return {**weights, **scaled, "W_dec": weights["W_dec"] / norms[:, None]}


def standard_outcome(weights: Weights, x: Tensor, l1: float) -> Outcome:
    """Return the outcome of a standard autoencoder: mean of squares and λ times the sum of f."""
    w = unit(weights)
    f = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    error = f @ w["W_dec"] + w["b_dec"] - x
    return Outcome(f, float(error.square().mean() + l1 * f.sum(1).mean()))


def gated_outcome(weights: Weights, x: Tensor, l1: float) -> Outcome:
    """Return the outcome of a gated autoencoder, the auxiliary loss included."""
    w = unit(weights)
    before = (x - w["b_dec"]) @ w["W_enc"]
    gate = torch.relu(before + w["b_gate"])
    f = (gate > 0) * torch.relu(before * w["r_mag"].exp() + w["b_mag"])
    squares = sum((g @ w["W_dec"] + w["b_dec"] - x).square().mean() for g in (f, gate))
    return Outcome(f, float(squares + l1 * gate.sum(1).mean()))


def topk_outcome(weights: Weights, x: Tensor, k: float, over_batch: bool = False) -> Outcome:
    """Return the outcome of a TopK or BatchTopK autoencoder: mean of squares."""
    w = unit(weights)
    z = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    rows = z.view(1, -1) if over_batch else z
    values, places = rows.topk(round(k) * len(x) // len(rows), dim=1)
    f = torch.zeros_like(rows).scatter_(1, places, values).view_as(z)
    error = f @ w["W_dec"] + w["b_dec"] - x
    return Outcome(f, float(error.square().mean()))


SUBJECTS = {
    "standard": Subject(StandardConfig, StartedStandard, "l1", 1e-3, 5, standard_outcome),
    "gated": Subject(GatedConfig, StartedGated, "l1", 1e-3, 7, gated_outcome),
    "topk": Subject(TopKConfig, StartedTopK, "k", 32, 5, topk_outcome),
    "batchtopk": Subject(
        BatchTopKConfig, StartedBatchTopK, "k", 32, 5, partial(topk_outcome, over_batch=True)
    ),
}


@dataclass(frozen=True)
class Setting:
    """Autoencoders of one shape."""

    title: str
    sites: tuple[Site, ...]
    """Read together; each is scaled to the mean square of the first."""
    d_sae: int
    batch: int
    warm_up: int
    steps: int
    before: int
    """Steps on batches of 512 that lead to the state "trained"."""
    before_batch: int = 512


NEURONS = Site("mlp_post", 0)
SETTINGS = {
    "small": Setting("d_in 512, d_sae 4096", (NEURONS,), 4096, 4096, 2, 6, 300),
    "large": Setting(
        "d_in 768, d_sae 24576",
        (NEURONS, Site("resid_pre", 0), Site("resid_post", 0)),
        24576,
        4096,
        1,
        1,
        300,
    ),
}


def shortened(setting: Setting) -> Setting:
    """Return a setting that takes seconds, to try the benchmark itself."""
    return replace(
        setting, title=f"{setting.title} / 16", d_sae=setting.d_sae // 16, batch=256, before=20
    )


class Activations:
    """Batches of a setting's activations, stored for everyone to read."""

    def __init__(self, model: LanguageModel, contexts: Contexts, setting: Setting, folder: Path):
        self.model, self.contexts, self.setting, self.folder = model, contexts, setting, folder
        self.d_in = sum(width(model, site) for site in setting.sites)
        self._scale: Tensor | None = None

    def batches(self, batch: int, count: int, seed: int) -> Iterator[Tensor]:
        """Return `count` batches [batch, d_in]."""
        stream = ActivationStream(self.model, self.contexts, self.setting.sites, batch, seed)
        for found in stream.batches(stop=count):
            values = [found[site] for site in self.setting.sites]
            if self._scale is None:
                rms = torch.stack([value.square().mean().sqrt() for value in values])
                self._scale = rms[0] / rms
            yield torch.cat(
                [value * s for value, s in zip(values, self._scale, strict=True)], dim=1
            )

    def store(self, name: str, batch: int, count: int, seed: int) -> Path:
        """Write `count` batches to an npy file [count, batch, d_in]."""
        path = self.folder / f"{name}.npy"
        np.save(path, torch.stack(list(self.batches(batch, count, seed))).cpu().numpy())
        return path


def weights_of(sae: Architecture) -> Weights:
    """Return an autoencoder's weights as peers know them: BatchTopK trains without threshold."""
    tensors = sae.export().tensors
    return {name: tensor for name, tensor in tensors.items() if name != "threshold"}


def job_of(config: SaeConfig, lr: float, name: str = "sae") -> Job:
    """Return a job that only trains, since peers do not resample."""
    return Job(name=name, sae=config, lr=lr, resampling=None)


@dataclass(frozen=True)
class Result:
    """One timed training."""

    seconds: float
    """Per step."""
    weights: Weights
    version: str = ""


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    device: str
    folder: Path
    peers: dict[str, Peer]
    """By name of rival; those of a package share a process."""
    rounds: int

    def ask(self, name: str, task: Task) -> Result | str:
        """Return what a rival did, or how it failed."""
        rival = RIVALS[name]
        target = self.folder / "answer.npz"
        asked = replace(
            task,
            autocast=rival.autocast,
            architecture=rival.architecture or task.architecture,
            answer=str(target),
        )
        answer = self.peers[name].ask(asked.line())
        if "error" in answer:
            return str(answer["error"])
        version = f"{answer['version']}, torch {answer['torch']}"
        return Result(answer["seconds_per_step"], read_weights(target), version)

    def alternate(
        self, title: str, runs: dict[str, Callable[[], Result | str]]
    ) -> tuple[dict[str, list[Result]], dict[str, str]]:
        """Run all in turns, `rounds` times; who fails once is left out from then on."""
        results: dict[str, list[Result]] = {name: [] for name in runs}
        errors: dict[str, str] = {}
        for _ in range(self.rounds):
            for name, act in runs.items():
                if name in errors:
                    continue
                result = act()
                if isinstance(result, str):
                    errors[name] = result
                    say(f"{title}: {name} failed: {result}")
                else:
                    results[name].append(result)
                    say(f"{title}: {name}: {1e3 * result.seconds:.4g} ms")
        return {name: done for name, done in results.items() if name not in errors}, errors


OURS = "this repository"


def ours(jobs: Sequence[Job], batches: Iterator[Tensor], task: Task) -> tuple[float, list[Weights]]:
    """Train jobs on one stream; return the seconds of a step of all, and the weights."""
    clock = Clock(batches, task.device)
    trained = train(jobs, lambda _: clock, task.total, device=task.device, record_every=task.total)
    weights = [weights_of(trained[job.name].sae) for job in jobs]
    return clock.seconds_per_step(task), weights


def milliseconds(results: Sequence[Result]) -> list[float]:
    """Return times for the report."""
    return [round(1e3 * result.seconds, 3) for result in results]


def against(
    mine: Sequence[Result], theirs: Sequence[Result], rate: Callable[[Weights], float] | None
) -> dict[str, Any]:
    """Report a rival; `rate` is the loss on held-out inputs, where losses compare."""
    report: dict[str, Any] = {
        "version": theirs[0].version,
        "milliseconds": milliseconds(theirs),
        **compare([r.seconds for r in mine], [r.seconds for r in theirs]),
    }
    if rate is not None:
        own, other = rate(mine[-1].weights), rate(theirs[-1].weights)
        report |= {
            "loss": float(f"{other:.6g}"),
            "loss_of_ours": float(f"{own:.6g}"),
            "same_loss": abs(own / other - 1) <= LOSS_TOLERANCE,
        }
    return report


def flops(subject: Subject, setting: Setting, d_in: int) -> int:
    """Floating-point operations of a dense step: products of 2 · batch · d_in · d_sae each."""
    return subject.products * 2 * setting.batch * d_in * setting.d_sae


def start_states(
    subject: Subject, setting: Setting, data: Activations, device: str
) -> dict[str, Path]:
    """Write the two states from which steps are timed: untrained, and trained for a while.

    The latter is as sparse as most of a training is.
    """
    config = subject.config(**subject.settings(data.d_in, setting.d_sae, subject.sparsity))
    states = {}
    for name, steps in {"untrained": 0, "trained": setting.before}.items():
        sae = config.create(device, matmul_precision(device))
        if steps:
            jobs = [job_of(config, LR)]
            batches = data.batches(setting.before_batch, steps, SEED)
            sae = train(
                jobs, lambda _, b=batches: b, steps, device=device, label=f"{setting.title}"
            )["sae"].sae
        else:
            sae.start(next(data.batches(setting.batch, 1, SEED)))
        states[name] = data.folder / f"{name}.npz"
        save_weights(states[name], weights_of(sae))
    return states


def active(f: Tensor) -> float:
    """Return the mean number of active features."""
    return float((f > 0).sum(1).float().mean())


def steps_of(
    bench: Bench, kind: str, setting: Setting, data: Activations, states: dict[str, Path]
) -> dict[str, Any]:
    """Time steps of one architecture and shape from each state."""
    subject = SUBJECTS[kind]
    held_out = next(data.batches(setting.batch, 1, SEED + 1)).cpu()
    batches = data.store("steps", setting.batch, setting.warm_up + setting.steps + 1, SEED + 2)

    def outcome(weights: Weights) -> Outcome:
        return subject.outcome(weights, held_out, subject.sparsity)

    usual = active(outcome(read_weights(states["trained"])).f)
    report = {}
    for state, path in states.items():
        task = Task(
            architecture=kind,
            start=str(path),
            sparsity=subject.peer_sparsity(subject.sparsity, data.d_in),
            active=max(1, round(usual)),
            lr=TIMED_LR,
            batch=setting.batch,
            warm_up=setting.warm_up,
            steps=setting.steps,
            autocast=False,
            device=bench.device,
            threads=torch.get_num_threads(),
            batches=str(batches),
        )
        settings = subject.settings(data.d_in, setting.d_sae, subject.sparsity)
        job = job_of(subject.started(**settings, weights=path), TIMED_LR)
        rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}

        def mine(job: Job = job, task: Task = task, rates: dict = rates) -> Result:
            for name, measured in rates.items():
                measured.append(matmul_rate(bench.device, dtype=getattr(torch, name)))
            seconds, (weights,) = ours([job], read_batches(task.batches), task)
            return Result(seconds, weights)

        runs: dict[str, Callable[[], Result | str]] = {OURS: mine}
        for name in bench.peers:
            runs[name] = lambda name=name, task=task: bench.ask(name, task)  # type: ignore[misc]
        results, errors = bench.alternate(f"{kind}, {setting.title}, {state}", runs)
        own = results.pop(OURS)
        per_step = statistics.median(result.seconds for result in own)
        used = str(matmul_precision(bench.device)).removeprefix("torch.")
        rate = {name: statistics.median(measured) for name, measured in rates.items()}
        share = flops(subject, setting, data.d_in) / per_step / rate[used]
        before, after = outcome(read_weights(path)), outcome(own[-1].weights)

        def held_out_loss(weights: Weights) -> float:
            return outcome(weights).loss

        report[state] = {
            "active_features": {
                "before": round(active(before.f), 1),
                "after": round(active(after.f), 1),
            },
            "milliseconds": milliseconds(own),
            "vectors_per_second": round(setting.batch / per_step),
            "loss_before": float(f"{before.loss:.6g}"),
            "matmul_gflops": {name: round(value / 1e9, 1) for name, value in rate.items()},
            "precision": used,
            "share_of_matmul_rate": round(share, 3),
            "rivals": {
                name: against(own, done, None if RIVALS[name].architecture else held_out_loss)
                for name, done in results.items()
            },
            "failed": errors,
        }
    return {"title": setting.title, "batch": setting.batch, "steps": setting.steps, **report}


def training_of(
    bench: Bench, kind: str, setting: Setting, data: Activations, states: dict[str, Path]
) -> dict[str, Any]:
    """Let everyone train from the untrained state, once, and compare where they arrive."""
    subject = SUBJECTS[kind]
    batch, steps = setting.before_batch, setting.before
    batches = data.store("training", batch, steps, SEED + 3)
    task = Task(
        architecture=kind,
        start=str(states["untrained"]),
        sparsity=subject.peer_sparsity(subject.sparsity, data.d_in),
        active=0,
        lr=LR,
        batch=batch,
        warm_up=0,
        steps=steps - 1,
        autocast=False,
        device=bench.device,
        threads=torch.get_num_threads(),
        batches=str(batches),
    )
    settings = subject.settings(data.d_in, setting.d_sae, subject.sparsity)
    job = job_of(subject.started(**settings, weights=states["untrained"]), LR)

    def mine() -> Result:
        seconds, (weights,) = ours([job], read_batches(task.batches), task)
        return Result(seconds, weights)

    runs: dict[str, Callable[[], Result | str]] = {OURS: mine}
    for name in bench.peers:
        if RIVALS[name].architecture is None:
            runs[name] = lambda name=name: bench.ask(name, task)  # type: ignore[misc]
    once = replace(bench, rounds=1)
    results, errors = once.alternate(f"training {kind}, {setting.title}", runs)
    own = results.pop(OURS)
    held_out = next(data.batches(4096, 1, SEED + 1)).cpu()

    def outcome(weights: Weights) -> Outcome:
        return subject.outcome(weights, held_out, subject.sparsity)

    def held_out_loss(weights: Weights) -> float:
        return outcome(weights).loss

    return {
        "title": f"{setting.title}, from untrained",
        "batch": batch,
        "steps": steps,
        "lr": LR,
        "milliseconds": milliseconds(own),
        "active_features_after": round(active(outcome(own[0].weights).f), 1),
        "loss_before": float(f"{held_out_loss(read_weights(states['untrained'])):.6g}"),
        "rivals": {name: against(own, done, held_out_loss) for name, done in results.items()},
        "failed": errors,
    }


def sweep_of(
    bench: Bench,
    kind: str,
    setting: Setting,
    data: Activations,
    start: Path,
    buffer: int = 4,
) -> dict[str, Any]:
    """Time a sweep over λ or k, language model included: ours at once, SAELens' one by one."""
    subject = SUBJECTS[kind]
    exponents = np.linspace(-0.5, 0.5, SWEEP)
    sparsities = [subject.exact(subject.sparsity * SWEEP_SPAN ** float(e)) for e in exponents]
    (site,) = setting.sites
    task = Task(
        architecture=kind,
        start=str(start),
        sparsity=0.0,
        active=0,
        lr=TIMED_LR,
        batch=setting.batch,
        warm_up=buffer,
        steps=2 * buffer,
        autocast=False,
        device=bench.device,
        threads=torch.get_num_threads(),
        model=str(BUNDLED / MODEL),
        hook=site.hook_name,
        tokens=str(data.folder / "tokens.npy"),
    )
    # Twice what is trained on, so that nobody runs out while filling buffers.
    length = data.contexts.tokens.shape[1]
    count = min(len(data.contexts), 2 * (task.total + 4 * buffer) * setting.batch // (length - 1))
    contexts = data.contexts.select(slice(0, count))
    np.save(task.tokens, contexts.tokens)
    jobs = [
        job_of(
            subject.started(**subject.settings(data.d_in, setting.d_sae, sparsity), weights=start),
            TIMED_LR,
            f"sae{i}",
        )
        for i, sparsity in enumerate(sparsities)
    ]

    def mine() -> Result:
        # Buffers go on being filled at the rate at which they are used up until the clock stops.
        stream = ActivationStream(
            data.model, contexts, setting.sites, setting.batch, SEED, buffer=buffer
        )
        seconds, weights = ours(jobs, (batch[site] for batch in stream.batches()), task)
        return Result(seconds / SWEEP, weights[0])

    runs: dict[str, Callable[[], Result | str]] = {OURS: mine}
    middle = subject.peer_sparsity(subject.sparsity, data.d_in)
    for name in bench.peers:
        if RIVALS[name].package == "sae-lens":
            runs[name] = lambda name=name: bench.ask(  # type: ignore[misc]
                name, replace(task, sparsity=middle)
            )
    results, errors = bench.alternate(f"sweep, {kind}, {setting.title}", runs)
    own = results.pop(OURS)
    return {
        "title": f"{SWEEP} autoencoders, {setting.title}, language model included",
        "batch": setting.batch,
        "steps": task.steps,
        "sparsities": [float(f"{value:.4g}") for value in sparsities],
        "milliseconds": milliseconds(own),
        "rivals": {name: against(own, done, None) for name, done in results.items()},
        "failed": errors,
    }


def stream_of(bench: Bench, data: Activations, setting: Setting, buffers: int) -> dict[str, Any]:
    """Time the stream of activations against the forward passes it consists of."""
    keep_freed_memory()  # as the stream does for the whole process
    (site,) = setting.sites
    model, device = data.model, bench.device
    stream = ActivationStream(model, data.contexts, (site,), setting.batch, SEED)
    each = data.contexts.tokens.shape[1] - 1
    vectors = buffers * stream.buffer * setting.batch
    blocks = math.ceil(vectors / each / stream.block)
    tokens = torch.from_numpy(data.contexts.tokens[: blocks * stream.block].astype(np.int64)).to(
        device
    )

    def bare() -> Result:
        synchronise(device)
        start = time.perf_counter()
        for block in tokens.split(stream.block):
            read(model, block, (site,))
        synchronise(device)
        return Result((time.perf_counter() - start) / (len(tokens) * each), {})

    def streamed() -> Result:
        synchronise(device)
        start = time.perf_counter()
        for _ in stream.batches(stop=buffers * stream.buffer):
            pass
        synchronise(device)
        return Result((time.perf_counter() - start) / vectors, {})

    results, _ = bench.alternate("stream", {"bare": bare, "stream": streamed})
    ratio = compare(
        [result.seconds for result in results["stream"]],
        [result.seconds for result in results["bare"]],
    )
    rate = {name: statistics.median(r.seconds for r in done) for name, done in results.items()}
    return {
        "title": f"activations at {site} of {model.name}",
        "vectors": vectors,
        "vectors_per_second": round(1 / rate["stream"]),
        "vectors_per_second_of_bare_model": round(1 / rate["bare"]),
        "share_of_bare_rate": ratio["ratio"],
        "share_range": ratio["ratio_range"],
    }


def geometric_means(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by state and rival how many times faster we are, over architectures and settings.

    A rival that failed anywhere has no mean.
    """
    means: dict[str, dict[str, float]] = {}
    for state in ("untrained", "trained"):
        found = [report[state]["rivals"] for report in steps.values()]
        everywhere = set.intersection(*(set(rivals) for rivals in found)) if found else set()
        means[state] = {
            name: round(statistics.geometric_mean([rivals[name]["ratio"] for rivals in found]), 2)
            for name in RIVALS
            if name in everywhere
        }
    return means


def table(results: dict[str, Any]) -> str:
    """Lay results out as a Markdown table."""
    rows = [
        "| work | who | ms per step | we are faster by | same loss |",
        "|---|---|---:|---:|---|",
    ]

    def add(title: str, report: dict[str, Any], note: str) -> None:
        ms = statistics.median(report["milliseconds"])
        rows.append(f"| {title} | {OURS} | {ms:.4g} | {note} | |")
        for name, rival in report["rivals"].items():
            low, high = rival["ratio_range"]
            same = "not compared"
            if "loss" in rival:
                gap = 100 * (rival["loss_of_ours"] / rival["loss"] - 1)
                same = f"{'yes' if rival['same_loss'] else 'no'} ({gap:+.2f}%)"
            rows.append(
                f"| | {name} ({rival['version']}) | {statistics.median(rival['milliseconds']):.4g} "
                f"| {rival['ratio']:.1f} ({low:.1f} to {high:.1f}) | {same} |"
            )
        rows.extend(f"| | {name} | failed: {why} | | |" for name, why in report["failed"].items())

    for key, report in results["steps"].items():
        for state in ("untrained", "trained"):
            one = report[state]
            share = f"{100 * one['share_of_matmul_rate']:.0f}% of the matmul rate"
            before = one["active_features"]["before"]
            add(f"{key.split('/')[0]}, {report['title']}, {state} (L0 {before:.0f})", one, share)
    for key, report in results["training"].items():
        kind = key.split("/")[0]
        add(f"training, {kind}, {report['title']}, {report['steps']} steps", report, "")
    for key, report in results["sweep"].items():
        add(f"{key.split('/')[0]}, {report['title']}", report, "")
    stream = results["stream"]
    rows.append(
        f"| {stream['title']} | {OURS} | {stream['vectors_per_second']:,} vectors/s "
        f"| {100 * stream['share_of_bare_rate']:.0f}% of the bare model | |"
    )
    for state, means in results["geometric_means"].items():
        rows.extend(
            f"| geometric mean, {state} | {name} | | {mean:.1f} | |" for name, mean in means.items()
        )
    return "\n".join(rows)


def measure(
    bench: Bench, corpus: Path, settings: dict[str, Setting], buffers: int
) -> dict[str, Any]:
    """Measure everything."""
    model, contexts = load(MODEL, bench.device), load_contexts(corpus)
    results: dict[str, Any] = {"steps": {}, "training": {}, "sweep": {}}
    for key, setting in settings.items():
        data = Activations(model, contexts, setting, bench.folder)
        if len(setting.sites) == 1 and "stream" not in results:
            results["stream"] = stream_of(bench, data, setting, buffers)
        for kind, subject in SUBJECTS.items():
            states = start_states(subject, setting, data, bench.device)
            name = f"{kind}/{key}"
            results["steps"][name] = steps_of(bench, kind, setting, data, states)
            if len(setting.sites) == 1:  # a language model's run reads one site
                results["training"][name] = training_of(bench, kind, setting, data, states)
                results["sweep"][name] = sweep_of(bench, kind, setting, data, states["trained"])
    results["geometric_means"] = geometric_means(results["steps"])
    return results


def main(
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PYTHON", help=f"A peer ({', '.join(PACKAGES)}) and its Python."),
    ] = None,
    rounds: Rounds = 3,
    threads: Threads = None,
    short: Short = False,
    corpus: Annotated[Path, typer.Option(help="Shard of tokens that activations are of.")] = CORPUS,
    into: Annotated[Path, typer.Option(help="Where the JSON goes.")] = ROOT
    / "results/benchmarks/sae_training.json",
) -> None:
    """Measure the training of sparse autoencoders against peers and the matmul rate."""
    pythons = parse_peers(peer or [], PACKAGES)
    if threads is not None:
        torch.set_num_threads(threads)
    device = pick_device()
    start = time.monotonic()
    settings = {k: shortened(s) if short else s for k, s in SETTINGS.items()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = {}
        for package, python in pythons.items():
            rival = next(rival for rival in RIVALS.values() if rival.package == package)
            processes[package] = Peer(rival.driver, python, folder / f"{package}.log")
            stack.callback(processes[package].close)
        peers = {
            name: processes[rival.package]
            for name, rival in RIVALS.items()
            if rival.package in processes
        }
        bench = Bench(device, folder, peers, rounds)
        results = measure(bench, corpus, settings, buffers=1 if short else 4)
    params = {
        "rounds": rounds,
        "short": short,
        "threads": torch.get_num_threads(),
        "lr": LR,
        "timed_lr": TIMED_LR,
    }
    record = run_record(
        params=params,
        seed=SEED,
        device=device_name(device),
        wall_seconds=time.monotonic() - start,
    )
    content = {
        "record": record,
        "targets": TARGETS,
        "peers_not_given": sorted(set(PACKAGES) - set(pythons)),
        **results,
    }
    write_json(into, content)
    print(table(results))


if __name__ == "__main__":
    guard(lambda: typer.run(main))
