"""What the benchmarks share: ratios, the machine's own speed, and the names of peers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.protocol import synchronise
from shared.errors import UserError


def compare(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return how many times faster we are: the median over the rounds, and their range."""
    ratios = [their / my for my, their in zip(mine, theirs, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def matmul_rate(
    device: str, size: int = 2048, repeats: int = 5, dtype: torch.dtype = torch.float32
) -> float:
    """Return the machine's best rate, in operations per second, of a square product."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        a @ a
        synchronise(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def parse_peers(values: Sequence[str], known: Iterable[str]) -> dict[str, Path]:
    """Read NAME=PYTHON pairs. Raises UserError for an unknown name or a missing interpreter."""
    peers = {}
    for value in values:
        name, _, python = value.partition("=")
        if name not in known:
            raise UserError(f"unknown peer {name!r}; there are: {', '.join(known)}")
        if not Path(python).is_file():
            raise UserError(f"--peer {value}: no interpreter at {python!r}; give NAME=PYTHON")
        peers[name] = Path(python).absolute()
    return peers
