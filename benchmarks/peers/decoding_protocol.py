"""What decoding a batch and its gradients are, and how a peer is asked for them.

A driver reads requests from standard input, one JSON object a line, and answers each with one line:
`{"version", "torch", "seconds"}` or `{"error"}`. Needs PyTorch and NumPy, and nothing of ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.protocol import synchronise
from benchmarks.peers.sae_protocol import answer_lines

T = TypeVar("T")


class Work(NamedTuple):
    """Activations of a batch, and what their decoding and its gradients are computed from."""

    values: Tensor
    """[batch, k], over 0"""
    features: Tensor
    """[batch, k], different in each row"""
    W_dec: Tensor
    """[d_sae, d_in]"""
    x: Tensor
    """[batch, d_in], the inputs that were encoded"""
    at_output: Tensor
    """[batch, d_in], the gradient at the reconstruction"""

    def save(self, path: Path) -> None:
        """Write it."""
        np.savez(path, **{name: tensor.cpu().numpy() for name, tensor in self._asdict().items()})


def load_work(path: str, device: str) -> Work:
    """Read it."""
    with np.load(path) as file:
        return Work(**{name: torch.from_numpy(file[name]).to(device) for name in file.files})


class Products(NamedTuple):
    """The reconstruction and all gradients."""

    output: Tensor
    """[batch, d_in]: f W_dec"""
    activations: Tensor
    """[batch, k]: the gradient at the values"""
    W_dec: Tensor
    """[d_sae, d_in]"""
    W_enc_T: Tensor
    """[d_sae, d_in]: where the values are (x − b_dec) W_enc, b_dec being 0"""


@dataclass(frozen=True)
class Request:
    """A measurement."""

    work: str
    """npz file of the work."""
    answer: str
    """npz file for the products."""
    device: str
    threads: int

    def line(self) -> str:
        """Return the request as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def timed(act: Callable[[], T], device: str) -> tuple[float, T]:
    """Do it once for warming up and once more; return the seconds of that, and what came out."""
    act()
    synchronise(device)
    start = time.perf_counter()
    result = act()
    synchronise(device)
    return time.perf_counter() - start, result


def serve(package: str, way: Callable[[Work], Products]) -> None:
    """Answer requests until there are no more."""

    def answer(line: str) -> dict[str, Any]:
        request = Request(**json.loads(line))
        torch.set_num_threads(request.threads)
        work = load_work(request.work, request.device)
        seconds, products = timed(lambda: way(work), request.device)
        tensors = {name: tensor.cpu().numpy() for name, tensor in products._asdict().items()}
        np.savez(request.answer, **tensors)
        return {"version": version(package), "torch": torch.__version__, "seconds": seconds}

    answer_lines(answer)
