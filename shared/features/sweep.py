"""Sweeps: one recipe in many variations, trained here, side by side, or by a cluster.

Every run has a folder of its own, whose name ends in a hash of its recipe, and what became of it is
read from that folder alone. So a sweep that stopped anywhere goes on when it is given again: what
is finished is adopted, what was killed goes on from its checkpoint. A lock lets no two processes
work on one run: the second waits, and then finds it finished.
"""

from __future__ import annotations

import os
import subprocess
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import nan
from pathlib import Path
from re import sub
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from filelock import FileLock
from pydantic import Field
from safetensors import SafetensorError, safe_open

from shared.errors import Diverged, UserError
from shared.experiment import Config
from shared.features.train import CHECKPOINT, EVALUATION, Recipe, read_recipe, train
from shared.files import atomic, read_json, write_json, write_text
from shared.parallel import cores
from shared.progress import progress
from shared.provenance import content_hash
from shared.saes.weights import CONFIG

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from submitit import Job
    from submitit.core.utils import DelayedSubmission

Place = Literal["here", "local", "slurm"]
Status = Literal["trained", "adopted", "failed"]
FAILURE = "failure.txt"
"""In a run's folder: why it failed."""
LOGS = "logs"
"""In a sweep's folder: locks, submitit's files, and the numbers of Slurm's jobs."""
JOBS = "jobs.json"
LOCAL_EVERY_SECONDS, SLURM_EVERY_SECONDS = 0.5, 5.0
"""Between two looks at jobs."""


class Settings(Config):
    """Where and how the runs of a sweep are computed; nothing of it is part of a recipe."""

    on: Place = "here"
    """In this process, in processes of this machine, or by Slurm."""
    device: str = "cpu"
    """With "cuda", elsewhere than here, every run has a GPU of its own."""
    threads: int | None = Field(default=None, ge=1)
    """Of a run; by default all of this machine's here, and 1 elsewhere. The same bytes need the
    same number."""
    at_most: int | None = Field(default=None, ge=1)
    """Runs at a time; by default as many as there are GPUs or cores for, and on Slurm as it
    likes."""
    timeout_min: int = Field(default=24 * 60, ge=1)
    """Minutes after which a job ends; submitit then starts it again, up to three times."""
    slurm: Mapping[str, str] = {}
    """Options of sbatch by their long names: partition, account, mem, ..."""
    every_seconds: float = Field(default=30.0, ge=0)
    """Between two checkpoints of a run."""


@dataclass(frozen=True)
class Run:
    """One autoencoder of a sweep; submitit calls it where it is computed."""

    recipe: Recipe
    folder: Path
    """Its parent is the sweep's."""
    curve: str
    """What it shares with the runs that differ from it in the first field alone."""
    device: str = "cpu"
    threads: int | None = None
    every_seconds: float = 30.0

    @property
    def name(self) -> str:
        """How the run is called: as its folder."""
        return self.folder.name

    def evaluation(self) -> dict[str, Any] | None:
        """Return what was measured, if the folder holds a complete autoencoder of this recipe."""
        if not (self.folder / CONFIG).exists() or (self.folder / CHECKPOINT).exists():
            return None
        try:
            stored = read_json(self.folder / EVALUATION)
            same = stored["provenance"]["recipe"] == self.recipe.model_dump(mode="json")
        except (OSError, ValueError, KeyError):
            return None
        return stored["evaluation"] if same else None

    def steps(self) -> int:
        """Return how many steps are done, as far as files say."""
        if self.evaluation():
            return self.recipe.steps
        try:
            with safe_open(self.folder / CHECKPOINT, framework="numpy") as file:
                return int(file.metadata()["done"])
        except (OSError, SafetensorError):
            return 0

    def __call__(self) -> None:
        """Train, or go on, unless it is done; if that fails, leave the reason in FAILURE."""
        with FileLock(self.folder.parent / LOGS / f"{self.name}.lock"):
            if self.evaluation():
                return
            if self.threads:
                torch.set_num_threads(self.threads)
            try:
                train(self.recipe, self.folder, self.device, self.every_seconds)
            except (UserError, Diverged) as error:
                reason = str(error)
            except Exception as error:  # a run must not take the others with it
                traceback.print_exc()
                reason = f"{type(error).__name__}: {error}"
            else:
                return
            write_text(self.folder / FAILURE, " ".join(reason.split()) + "\n")

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit starts again when time is up or the job is preempted: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a run; of one that failed, the numbers are NaN."""

    run: str
    status: Status
    """"adopted" is what was finished before."""
    l0: float = nan
    fvu: float = nan
    recovered_zero: float = nan
    """See `shared.features.evaluate`."""
    reason: str = ""
    """Why it failed, in one line."""
    log: str = ""
    """Of a job that failed: the file with what it wrote to stderr."""


def grid(variations: Sequence[str]) -> dict[str, list[Any]]:
    """Return fields and their values; "sae.k=8,16" varies k.

    Raises:
        UserError: one of them is no FIELD=VALUE,VALUE in YAML, or a field comes twice.
    """
    found: dict[str, list[Any]] = {}
    for variation in variations:
        field, _, values = variation.partition("=")
        try:
            listed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            listed = []
        if not field or not listed:
            raise UserError(f"--vary {variation!r} is no FIELD=VALUE,..., such as sae.k=8,16")
        if field in found:
            raise UserError(f"--vary {field} comes twice: give all of its values in one list")
        found[field] = listed
    return found


def runs(
    recipe: Path, vary: Mapping[str, Sequence[Any]], into: Path, settings: Settings
) -> list[Run]:
    """Return the runs of a sweep: a recipe with every combination of values, the last fastest.

    Raises:
        UserError: one of the recipes is bad (see `read_recipe`), or two are the same.
    """
    found: dict[str, Run] = {}
    threads = settings.threads or (None if settings.on == "here" else 1)
    for values in product(*vary.values()):
        changes = dict(zip(vary, values, strict=True))
        varied = read_recipe(recipe, changes)
        words = [f"{field.removeprefix('sae.')}={_word(value)}" for field, value in changes.items()]
        name = "_".join([*words, content_hash(varied.model_dump(mode="json"))[:8]])
        if name in found:
            raise UserError(f"{name} comes twice: give every value once")
        found[name] = Run(
            recipe=varied,
            folder=into / name,
            curve=", ".join(words[1:]),
            device=settings.device,
            threads=threads,
            every_seconds=settings.every_seconds,
        )
    return list(found.values())


def _word(value: Any) -> str:
    """Return a value as part of a file name."""
    return sub(r"[^\w.+-]+", "-", str(value).strip("[] ./"))[-32:]


def sweep(runs: Sequence[Run], settings: Settings) -> list[Outcome]:
    """Train all runs but those that are finished; say what became of each, in their order.

    Ctrl-C ends the waiting, and leaves jobs that have started, or that Slurm has, alone. The same
    sweep given again takes them up.

    Raises:
        UserError: the place is not there: no submitit, no Slurm, no GPU, or sbatch refuses.
    """
    missing = {run.name: run for run in runs if not run.evaluation()}
    for run in missing.values():
        (run.folder / FAILURE).unlink(missing_ok=True)
    place = {"here": _here, "local": _local, "slurm": _slurm}[settings.on]
    logs = place(list(missing.values()), settings) if missing else {}
    return [_outcome(run, run.name in missing, logs.get(run.name, "")) for run in runs]


def _outcome(run: Run, tried: bool, log: str) -> Outcome:
    if found := run.evaluation():
        numbers = {key: found[key] for key in ("l0", "fvu", "recovered_zero")}
        known = {key: value for key, value in numbers.items() if value is not None}  # null is NaN
        return Outcome(run.name, "trained" if tried else "adopted", **known)
    try:
        reason = (run.folder / FAILURE).read_text(encoding="utf-8").strip()
    except OSError:
        reason = "it ended too early (killed, or out of memory or time): give the command again"
    return Outcome(run.name, "failed", reason=reason, log=log)


def _here(runs: Sequence[Run], settings: Settings) -> dict[str, str]:
    """Compute runs one after another."""
    for run in runs:
        run()
    return {}


def _local(runs: Sequence[Run], settings: Settings) -> dict[str, str]:
    """Compute runs in processes of this machine, some at a time; return their logs.

    submitit would start all at once, and give all of them the same GPUs.
    """
    slots = _slots(settings)
    waiting, running, logs = deque(runs), dict[int, "Job[None]"](), {}
    executor = _submitit(settings).LocalExecutor(runs[0].folder.parent / LOGS)
    # Ctrl-C in a terminal, and closing it, reach all processes of the command.
    executor.update_parameters(timeout_min=settings.timeout_min, setup=["trap '' INT HUP"])
    with _watched(runs) as look:
        while waiting or running:
            for slot, gpus in enumerate(slots):
                if slot in running and running[slot].done():
                    del running[slot]
                if slot not in running and waiting:
                    run = waiting.popleft()
                    executor.update_parameters(gpus_per_node=len(gpus), visible_gpus=gpus)
                    running[slot] = executor.submit(run)
                    logs[run.name] = str(running[slot].paths.stderr)
            look(LOCAL_EVERY_SECONDS)
    return logs


def _slots(settings: Settings) -> list[tuple[int, ...]]:
    """Return the GPUs of each run that is computed at a time on this machine."""
    if settings.device == "cpu":
        return [()] * (settings.at_most or max(1, cores() // (settings.threads or 1)))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = given.split(",") if given else map(str, range(torch.cuda.device_count()))
    try:
        gpus = [int(number) for number in numbers]
    except ValueError:
        raise UserError(f"CUDA_VISIBLE_DEVICES={given}: name GPUs by their numbers") from None
    if not gpus:
        raise UserError("no GPU here: choose --device cpu")
    return [(gpus[slot % len(gpus)],) for slot in range(settings.at_most or len(gpus))]


def _slurm(runs: Sequence[Run], settings: Settings) -> dict[str, str]:
    """Let Slurm compute runs, as an array, and wait for them; return their logs."""
    queued = _queued()
    into = runs[0].folder.parent
    logs = into / LOGS
    executor = _submitit(settings).SlurmExecutor(logs)
    from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

    threads = settings.threads or 1
    executor.update_parameters(
        job_name=into.name,
        time=settings.timeout_min,
        cpus_per_task=threads,
        # srun does not take this from sbatch since Slurm 22.05.
        srun_args=[f"--cpus-per-task={threads}"],
        gpus_per_node=None if settings.device == "cpu" else 1,
        array_parallelism=settings.at_most or len(runs),
        additional_parameters=dict(settings.slurm),
    )
    earlier = read_json(logs / JOBS) if (logs / JOBS).exists() else {}
    jobs = {run.name: earlier[run.name] for run in runs if earlier.get(run.name) in queued}
    if new := [run for run in runs if run.name not in jobs]:
        try:
            submitted = executor.submit_array(new)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch: {' '.join(str(error).split())}") from None
        jobs |= {run.name: job.job_id for run, job in zip(new, submitted, strict=True)}
        write_json(logs / JOBS, earlier | jobs)
    with _watched(runs) as look:
        while not _queued().isdisjoint(jobs.values()):
            look(SLURM_EVERY_SECONDS)
    return {name: str(JobPaths(logs, job).stderr) for name, job in jobs.items()}


def _queued() -> set[str]:
    """Return the numbers of this user's jobs that Slurm has yet to finish, as submitit has them.

    Unlike sacct, squeue needs no accounting.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("no Slurm here (no squeue): choose --on local, or log in to it") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue: {' '.join(error.stderr.split())}; jobs go on") from None
    return set(done.stdout.split())


def _submitit(settings: Settings) -> ModuleType:
    """Import submitit. Raises UserError where it is missing."""
    try:
        import submitit
    except ImportError:
        raise UserError(
            f"--on {settings.on} needs submitit: pip install -e '.[cluster]' -c constraints.txt"
        ) from None
    return submitit


@contextmanager
def _watched(runs: Sequence[Run]) -> Iterator[Callable[[float], None]]:
    """Yield what waits for some seconds, and then shows how far the runs have come."""
    done = sum(run.steps() for run in runs)
    left = sum(run.recipe.steps for run in runs) - done
    with progress("steps of the sweep", left) as advance:

        def look(seconds: float) -> None:
            nonlocal done
            time.sleep(seconds)
            if (now := sum(run.steps() for run in runs)) > done:
                advance(now - done)
                done = now

        yield look


def draw(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> Figure:
    """Draw FVU and CE recovered against L0; a line joins runs that differ in the first field.

    Args:
        runs: of a sweep.
        outcomes: of the same, of which at least one has not failed.
    """
    from shared.figures.fronts import l0_axis
    from shared.figures.style import panel_labels, subplots

    figure, (panels,) = subplots(1, 2)
    for panel, measure in zip(panels, ("fvu", "recovered_zero"), strict=True):
        for curve in dict.fromkeys(run.curve for run in runs):
            points = sorted(
                (outcome.l0, getattr(outcome, measure))
                for run, outcome in zip(runs, outcomes, strict=True)
                if run.curve == curve and outcome.status != "failed"
            )
            panel.plot(*zip(*points, strict=True) if points else ((), ()), "o-", label=curve)
        l0_axis(panel)
    panels[0].set(ylabel="FVU")
    panels[1].set(ylabel="CE recovered")
    if any(run.curve for run in runs):
        panels[0].legend()
    panel_labels(panels)
    return figure


def save_front(path: Path, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    """Write the figure of `draw` atomically."""
    import matplotlib.pyplot as plt

    from shared.figures.style import use_style

    with use_style(), atomic(path) as temporary:
        figure = draw(runs, outcomes)
        figure.savefig(temporary, dpi=150, metadata={"Software": None})
        plt.close(figure)
