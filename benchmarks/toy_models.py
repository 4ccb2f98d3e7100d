"""How fast the batched toy models train: against a loop, against peers, against the machine.

All are given the same initial weights, densities, importances, batch size, number of steps and
Adam; each draws its inputs with its own code. They run in turns, and a ratio compares two
neighbouring runs. That they did the same work is checked by the loss that their models reach, on
inputs that none has seen.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.measuring import Rounds, Threads, compare, matmul_rate, parse_peers
from benchmarks.peers.protocol import WARM_UP, Task, synchronise
from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, ToyModels, create
from papers.toy_superposition.training import Recipe, generator, score, train
from shared.errors import UserError
from shared.files import ROOT, write_json
from shared.provenance import run_record
from shared.stages import device_name, guard, pick_device

DRIVERS = {"tms-kit": "benchmarks.peers.tms_kit", "occhio": "benchmarks.peers.occhio"}
LOOP = "loop"
OURS = "this repository"
LR = 1e-2  # high, so that a hundred steps already change the loss a lot
TARGET = 10.0  # times a loop over instances
LOSS_TOLERANCE = 0.02  # of the mean loss over all models


@dataclass(frozen=True)
class Setting:
    """Models of one of the paper's experiments; `groups` of `restarts` models share a density."""

    title: str
    n: int
    m: int
    densities: tuple[float, ...]
    restarts: int
    decay: float
    """Importance of feature i is decay^i."""
    looped: int
    """How many of the models the loop trains: its time is proportional to them."""
    batch: int = 1024

    @property
    def models(self) -> int:
        """How many models there are."""
        return len(self.densities) * self.restarts


SETTINGS = {
    "restarts": Setting("1000 restarts, n = 5, m = 2, p = 0.1", 5, 2, (0.1,), 1000, 0.9, looped=20),
    "densities": Setting(
        "20 densities, n = 200, m = 20",
        200,
        20,
        tuple(20 ** (-k / 19) for k in range(20)),
        1,
        1.0,
        looped=20,
    ),
}


@dataclass(frozen=True)
class Result:
    """One timed training: seconds per step of one model, and the models' weights."""

    seconds: float
    W: Tensor
    b: Tensor
    version: str


def task_of(setting: Setting, steps: int, seed: int, device: str) -> Task:
    """Draw the initial weights that everyone starts from."""
    start = create(Architecture(), setting.models, setting.n, setting.m, generator(seed, 0, device))
    density = torch.tensor(setting.densities).repeat_interleave(setting.restarts)
    importance = setting.decay ** torch.arange(setting.n)
    placed = density.to(device), importance.float().to(device)
    return Task(start.W, *placed, setting.batch, steps, LR, device)


def models_of(task: Task, W: Tensor, b: Tensor | None = None) -> ToyModels:
    """Make weights into models of the task."""
    importance = task.importance.expand(len(W), -1)
    bias = torch.zeros(len(W), W.shape[2]) if b is None else b
    return ToyModels(Architecture(), W.to(task.device), bias.to(task.device), importance)


def ours(task: Task, setting: Setting, seed: int) -> Result:
    """Train all models as one tensor."""
    inputs = SparseUniform(torch.tensor(setting.densities), setting.n, setting.batch)
    models = models_of(task, task.W)
    train(models, inputs, Recipe(steps=WARM_UP, lr=LR), seed, "warm-up")
    synchronise(task.device)
    start = time.perf_counter()
    trained = train(models, inputs, Recipe(steps=task.steps, lr=LR), seed, OURS)
    synchronise(task.device)
    seconds = time.perf_counter() - start
    return Result(seconds / task.steps / setting.models, trained.W, trained.b, "")


def loop(task: Task, setting: Setting, seed: int) -> Result:
    """Train models one after the other with autograd and torch.optim.AdamW."""
    source = generator(seed, 1, task.device)

    def fit(index: int, steps: int) -> tuple[Tensor, Tensor]:
        W = task.W[index].clone().requires_grad_()
        b = torch.zeros(setting.n, device=task.device, requires_grad=True)
        optimizer = torch.optim.AdamW([W, b], lr=task.lr, weight_decay=0.0)
        shape, p = (task.batch, setting.n), float(task.density[index])
        for _ in range(steps):
            value = torch.rand(shape, generator=source, device=task.device)
            active = torch.rand(shape, generator=source, device=task.device) < p
            x = value * active
            error = x - torch.relu(x @ W.mT @ W + b)
            optimizer.zero_grad()
            (task.importance * error.square()).sum(1).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return W.detach(), b.detach()

    fit(0, WARM_UP)
    synchronise(task.device)
    start = time.perf_counter()
    trained = [fit(index, task.steps) for index in range(setting.looped)]
    synchronise(task.device)
    seconds = time.perf_counter() - start
    W, b = (torch.stack(tensors) for tensors in zip(*trained, strict=True))
    return Result(seconds / task.steps / setting.looped, W, b, torch.__version__)


def peer(name: str, python: Path, task: Task, setting: Setting) -> Result:
    """Train all models with a peer, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "task.npz", Path(folder) / "answer.npz"
        task.save(source, torch.get_num_threads())
        command = [str(python), "-m", DRIVERS[name], str(source), str(target)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{name} failed in {python}: {last}")
        report = json.loads(done.stdout)
        with np.load(target) as file:
            W, b = torch.from_numpy(file["W"]), torch.from_numpy(file["b"])
    seconds = report["seconds_per_step"] / setting.models
    return Result(seconds, W, b, f"{report['version']}, torch {report['torch']}")


def mean_loss(
    task: Task, setting: Setting, W: Tensor, b: Tensor | None, count: int | None = None
) -> float:
    """Score the first `count` models on inputs that nobody trained on; the mean over models."""
    count = len(W) if count is None else count
    models = models_of(task, W[:count], None if b is None else b[:count])
    densities = task.density[:count].cpu() if setting.restarts == 1 else setting.densities
    inputs = SparseUniform(torch.as_tensor(densities), setting.n, 4096)
    return float(score(models, inputs, 10, seed=0, stream=3).mean())


def flops(setting: Setting) -> int:
    """Floating-point operations of the matrix products of one model's step.

    Forward two products of [m, n] with [n, batch], backward three: 2 m n batch each.
    """
    return 5 * 2 * setting.m * setting.n * setting.batch


def measure(
    setting: Setting, peers: dict[str, Path], steps: int, rounds: int, device: str
) -> dict[str, Any]:
    """Alternate between us and every rival for `rounds` rounds."""
    task = task_of(setting, steps, 0, device)
    runs: dict[str, Callable[[int], Result]] = {
        OURS: lambda seed: ours(task, setting, seed),
        LOOP: lambda seed: loop(task, setting, seed),
    }
    for name, python in peers.items():
        runs[name] = lambda seed, name=name, python=python: peer(  # type: ignore[misc]
            name, python, task, setting
        )
    results: dict[str, list[Result]] = {name: [] for name in runs}
    rates = []
    for seed in range(rounds):
        rates.append(matmul_rate(device))
        for name, act in runs.items():
            results[name].append(act(seed))
            micros = 1e6 * results[name][-1].seconds
            print(f"{setting.title}: {name}: {micros:.3g} µs", file=sys.stderr, flush=True)
    seconds = {name: [result.seconds for result in done] for name, done in results.items()}
    rate = statistics.median(rates)
    share = flops(setting) / statistics.median(seconds[OURS]) / rate
    untrained = mean_loss(task, setting, task.W, None)
    rivals = {}
    for name in list(runs)[1:]:
        count = len(results[name][0].W)
        own, other = (
            statistics.mean(
                mean_loss(task, setting, result.W, result.b, count) for result in results[who]
            )
            for who in (OURS, name)
        )
        rivals[name] = {
            "version": results[name][0].version,
            "microseconds": [round(1e6 * value, 4) for value in seconds[name]],
            **compare(seconds[OURS], seconds[name]),
            "loss": float(f"{other:.4g}"),
            "loss_of_ours": float(f"{own:.4g}"),
            "same_loss": abs(other / own - 1) <= LOSS_TOLERANCE,
        }
    return {
        "title": setting.title,
        "models": setting.models,
        "batch": setting.batch,
        "steps": steps,
        "microseconds": [round(1e6 * value, 4) for value in seconds[OURS]],
        "loss_at_start": float(f"{untrained:.4g}"),
        "matmul_gflops": round(rate / 1e9, 1),
        "share_of_matmul_rate": float(f"{share:.3g}"),
        "rivals": rivals,
    }


def table(tasks: dict[str, dict[str, Any]]) -> str:
    """Lay results out as a Markdown table; times are of one step of one model."""
    rows = [
        "| work | who | µs per model and step | we are faster by | loss, ours | same loss |",
        "|---|---|---:|---:|---:|---|",
    ]
    for task in tasks.values():
        share = f"{100 * task['share_of_matmul_rate']:.1f}% of the matmul rate"
        rows.append(
            f"| {task['title']} | {OURS} | {statistics.median(task['microseconds']):.3g} "
            f"| {share} | | |"
        )
        for name, rival in task["rivals"].items():
            low, high = rival["ratio_range"]
            rows.append(
                f"| | {name} ({rival['version']}) | {statistics.median(rival['microseconds']):.3g} "
                f"| {rival['ratio']:.1f} ({low:.1f} to {high:.1f}) "
                f"| {rival['loss']:.4g}, {rival['loss_of_ours']:.4g} "
                f"| {'yes' if rival['same_loss'] else 'no'} |"
            )
    return "\n".join(rows)


def main(
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PYTHON", help=f"A peer ({', '.join(DRIVERS)}) and its Python."),
    ] = None,
    rounds: Rounds = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 100,
    threads: Threads = None,
    into: Annotated[Path, typer.Option(help="Where the JSON goes.")] = ROOT
    / "results/benchmarks/toy_models.json",
) -> None:
    """Measure training of toy models against a loop, peers and the matmul rate."""
    peers = parse_peers(peer or [], DRIVERS)
    if threads is not None:
        torch.set_num_threads(threads)
    device = pick_device()
    start = time.monotonic()
    tasks = {
        key: measure(setting, peers, steps, rounds, device) for key, setting in SETTINGS.items()
    }
    params = {"rounds": rounds, "steps": steps, "threads": torch.get_num_threads(), "lr": LR}
    record = run_record(
        params=params,
        seed=0,
        device=device_name(device),
        wall_seconds=time.monotonic() - start,
    )
    write_json(into, {"record": record, "target": TARGET, "tasks": tasks})
    print(table(tasks))


if __name__ == "__main__":
    guard(lambda: typer.run(main))
