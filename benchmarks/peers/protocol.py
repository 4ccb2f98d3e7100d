"""What a peer is asked to do, and how it answers. Runs in the peer's own environment: torch only.

A driver is a module of this package, started from the root of the checkout as `python -m
benchmarks.peers.<driver> TASK ANSWER`. TASK is an npz file; the driver trains the models that it
holds, writes their weights to ANSWER, and prints the package, its version and the seconds per step
as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WARM_UP = 5


@dataclass(frozen=True)
class Task:
    """Models to train: initial weights, densities and importances, and the recipe."""

    W: Tensor
    """[models, m, n]"""
    density: Tensor
    """[models]"""
    importance: Tensor
    """[n]"""
    batch: int
    steps: int
    lr: float
    device: str

    def save(self, path: Path, threads: int) -> None:
        """Write the task, and how many threads to use."""
        tensors = {name: getattr(self, name).cpu() for name in ("W", "density", "importance")}
        settings = {name: getattr(self, name) for name in ("batch", "steps", "lr", "device")}
        np.savez(path, **tensors, **settings, threads=threads)


def load(path: Path) -> Task:
    """Read a task; its tensors are on its device."""
    with np.load(path) as file:
        torch.set_num_threads(int(file["threads"]))
        device = str(file["device"])
        W, density, importance = (
            torch.from_numpy(file[name]).to(device) for name in ("W", "density", "importance")
        )
        settings = int(file["batch"]), int(file["steps"]), float(file["lr"])
        return Task(W, density, importance, *settings, device)


def synchronise(device: str) -> None:
    """Wait for the device, so that the clock sees all of the work."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Session:
    """A peer's models, ready to train: what trains them, and what reads their W and b."""

    train: Callable[[int], object]
    weights: Callable[[], tuple[Tensor, Tensor]]


def answer(package: str, prepare: Callable[[Task], Session]) -> None:
    """Do the task of the command line: warm up on models of their own, train, report."""
    source, target = map(Path, sys.argv[1:3])
    task = load(source)
    with contextlib.redirect_stdout(sys.stderr):
        prepare(task).train(WARM_UP)
        session = prepare(task)
        synchronise(task.device)
        start = time.perf_counter()
        session.train(task.steps)
        synchronise(task.device)
        seconds = time.perf_counter() - start
    W, b = (tensor.detach().cpu().numpy() for tensor in session.weights())
    np.savez(target, W=W, b=b)
    report = {"version": version(package), "seconds_per_step": seconds / task.steps}
    print(json.dumps({"package": package, "torch": torch.__version__, **report}))
