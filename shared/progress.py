"""Progress with an estimate of the time left, in a terminal and in a log alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Report that `steps` more steps are done."""

    def __call__(self, steps: int = 1) -> None:
        """Report it."""
        ...


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Show how far `total` steps of `label` have come and when they will be done.

    A terminal gets a bar; anything else, such as the log of a batch job, gets a line every ten
    seconds, so that work under ten seconds leaves no trace there. So does a job that runs beside
    others, whose bars would overwrite each other.
    """
    if sys.stderr.isatty() and parent_process() is None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
        ) as bar:
            task = bar.add_task(label, total=total)

            def advance_bar(steps: int = 1) -> None:
                bar.update(task, advance=steps)

            yield advance_bar
        return

    start = last = time.monotonic()
    done = 0

    def advance_log(steps: int = 1) -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance_log
