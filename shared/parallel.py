"""Independent jobs side by side, each process with its share of the cores."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

WORTH_SPAWNING = 3000
"""Training steps from which it pays that new processes first import what they need."""

RARELY = 200_000
"""Objects made between two collections of garbage; Python's own number is 700."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers(device: str, steps: int) -> int:
    """Return among how many processes to share out a training of `steps` steps.

    As many as there are cores; one on a GPU, which processes would only take turns on, and one
    for a short training. A step is that of one autoencoder, or of a batch of toy models.
    """
    return cores() if device == "cpu" and steps >= WORTH_SPAWNING else 1


def collect_rarely() -> None:
    """Let Python look for garbage seldom.

    Libraries make a million objects when they are imported, none of them garbage, and looking
    through them again and again takes a quarter of that time.
    """
    gc.set_threshold(RARELY)


def side_by_side(jobs: Mapping[Key, Callable[[], Result]], processes: int) -> dict[Key, Result]:
    """Run all jobs and return their results, under the same keys and in the same order.

    Up to `processes` jobs run at a time, in the order given, each in a process of its own that is
    spawned (forking one that has threads can lock up), so that jobs and results must be picklable.
    With one process or one job they run here, one after another.

    An exception of a job is raised here as soon as it happens. Whatever ends this function or this
    process, be it Ctrl-C or a kill, also ends the jobs.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        return {key: job() for key, job in jobs.items()}
    theirs, ours = Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=_start,
        initargs=(theirs, max(1, cores() // processes)),
    )
    # Closed in reverse order: our end of the pipe first, so that nothing waits for unfinished jobs.
    with pool, closing(theirs), closing(ours):
        futures = {key: pool.submit(job) for key, job in jobs.items()}
        for future in as_completed(futures.values()):
            future.result()
        return {key: future.result() for key, future in futures.items()}


def _start(parent: Connection, threads: int) -> None:
    """Prepare a worker: it ends when the other end of `parent` closes, and not by Ctrl-C itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    collect_rarely()
    import torch

    torch.set_num_threads(threads)


def _end_with(parent: Connection) -> None:
    parent.poll(None)
    os._exit(1)
