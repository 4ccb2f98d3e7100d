"""What the benchmarks share: ratios, the machine's own speed, and the names of peers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.peers.protocol import synchronise
from shared.errors import UserError
from shared.files import ROOT

Rounds = Annotated[int, typer.Option(min=1, help="Alternations; the median counts.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of everyone; default: all.")]
Short = Annotated[bool, typer.Option(help="Small shapes: try the benchmark itself.")]


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


class Peer:
    """A peer's process, which answers requests until it is closed."""

    def __init__(self, driver: str, python: Path, log: Path):
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(python), "-m", driver],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, line: str) -> dict[str, Any]:
        """Return the answer to a line of JSON, {"error": ...} where the peer fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            # Packages may print while they are imported.
            reply = next((row for row in self.process.stdout if row.startswith("{")), "")
        except BrokenPipeError:
            reply = ""
        if not reply:
            last = (self.log.read_text().strip().splitlines() or ["it ended without a word"])[-1]
            return {"error": last}
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)
