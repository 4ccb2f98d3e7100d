"""What a peer that trains sparse autoencoders is asked, and how it answers.

A driver is a module of this package, started in the peer's environment from the root of the
checkout as `python -m benchmarks.peers.<driver>`. It reads tasks from standard input, one JSON
object a line, and answers each with one line: `{"version", "torch", "seconds_per_step"}` or
`{"error"}`. It stays up between tasks, so that only the first pays for its imports. Needs PyTorch
and NumPy, and nothing of ours.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec: float32, on the CPU. A gated autoencoder
has b_gate, b_mag and r_mag in place of b_enc."""


@dataclass(frozen=True)
class Task:
    """An autoencoder to train, from given weights on given activations.

    All batches are trained on. The clock runs from the request for batch `warm_up` to the request
    for the last one, so that setting up and saving do not count.
    """

    architecture: str
    start: str
    """npz file of the initial weights."""
    sparsity: float
    """λ for a squared error that is summed over d_in, or a whole number of active features."""
    active: int
    """Features active per input, for architectures that fix their number."""
    lr: float
    batch: int
    warm_up: int
    steps: int
    """Timed steps; there are warm_up + steps + 1 batches."""
    autocast: bool
    """Whether to use the package's own mixed precision."""
    device: str
    threads: int
    batches: str = ""
    """npy file [steps, batch, d_in], or nothing where a language model makes the activations."""
    model: str = ""
    """Folder of that model (Hugging Face layout)."""
    hook: str = ""
    """Where it is read (TransformerLens' name); position 0 of a context is left out."""
    tokens: str = ""
    """npy file of its contexts [contexts, length]."""
    answer: str = ""
    """npz file for the trained weights."""

    @property
    def total(self) -> int:
        """All steps, the untimed ones included."""
        return self.warm_up + self.steps + 1

    def line(self) -> str:
        """Return the task as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights."""
    np.savez(path, **{name: tensor.detach().cpu().numpy() for name, tensor in weights.items()})


def read_weights(path: Path) -> Weights:
    """Read weights."""
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def read_batches(path: str) -> Iterator[Tensor]:
    """Return stored batches one by one."""
    for batch in np.load(path, mmap_mode="r"):
        yield torch.from_numpy(np.array(batch))


class Clock:
    """Batches, and when each was asked for."""

    def __init__(self, batches: Iterator[Tensor], device: str):
        self.batches = batches
        self.device = device
        self.asked: list[float] = []

    def __iter__(self) -> Clock:
        return self

    def __next__(self) -> Tensor:
        self.stamp()
        return next(self.batches)

    def stamp(self) -> None:
        """Note the time at which a step begins."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.asked.append(time.perf_counter())

    def seconds_per_step(self, task: Task) -> float:
        """Return the median over the timed steps, which other programs disturb little.

        With a language model it is the mean, since only some steps refill a buffer.
        """
        asked = self.asked[task.warm_up : task.warm_up + task.steps + 1]
        steps = [later - earlier for earlier, later in pairwise(asked)]
        return statistics.fmean(steps) if task.model else statistics.median(steps)


Train = Callable[[Task, Weights], tuple[Weights, Clock]]


def answer_lines(answer: Callable[[str], dict[str, Any]]) -> None:
    """Answer every line of standard input with a line of JSON, an error where it fails."""
    replies = sys.stdout
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                reply = answer(line)
            except Exception as error:  # the others may go well
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()  # the next may need the memory
        print(json.dumps(reply), file=replies, flush=True)


def serve(package: str, train: Train) -> None:
    """Answer tasks until there are no more."""

    def answer(line: str) -> dict[str, Any]:
        task = Task(**json.loads(line))
        torch.set_num_threads(task.threads)
        weights, clock = train(task, read_weights(Path(task.start)))
        save_weights(Path(task.answer), weights)
        return {
            "version": version(package),
            "torch": torch.__version__,
            "seconds_per_step": clock.seconds_per_step(task),
        }

    answer_lines(answer)
