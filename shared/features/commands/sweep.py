"""`sae sweep`: many variations of a recipe, here or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shared.console import console, to_json
from shared.errors import UserError
from shared.features.options import DeviceOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from shared.features.sweep import Outcome

EXAMPLE = (
    "sae sweep shared/saes/bundled/mini_gpt2_resid_2.yaml --vary sae.k=8,16,32 "
    "--vary lr=0.002,0.004 --into build/sweep --on local"
)
SUMMARY, FRONT = "sweep.json", "front.png"


def _options(given: list[str]) -> dict[str, str]:
    """Return sbatch's options of "partition=gpu" and the like."""
    options = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not name or not equals:
            raise UserError(f"--slurm {one!r} is no OPTION=VALUE, such as partition=gpu")
        options[name.removeprefix("--")] = value
    return options


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file of `sae train`.")],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=VALUE,...",
            help="A field of the recipe and its values, such as sae.k=8,16. May be repeated: "
            "every combination is a run.",
        ),
    ],
    into: Annotated[
        Path, typer.Option("--into", metavar="FOLDER", help="Gets a folder for every run.")
    ],
    on: Annotated[
        Literal["here", "local", "slurm"],
        typer.Option(
            help="here: one after another in this process. local: in processes of this machine. "
            "slurm: as an array of jobs.",
        ),
    ] = "here",
    at_most: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Runs at a time; by default as many as this machine has GPUs or cores for, and "
            "with --on slurm as many as it lets.",
            min=1,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="CPU cores of a run; by default all with --on here, else 1.",
            min=1,
        ),
    ] = None,
    timeout_min: Annotated[
        int,
        typer.Option(
            metavar="MINUTES",
            help="Time of a job, after which it goes back to the queue and goes on, at most three "
            "times.",
            min=1,
        ),
    ] = 24 * 60,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUE",
            help="An option of sbatch: partition=gpu, account=me, mem=16G. May be repeated.",
        ),
    ] = None,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two checkpoints.", min=0)
    ] = 30.0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train autoencoders with every combination of some values in a recipe.

    Each run gets a folder as `sae train` writes it, named by what varies and a hash of its recipe.
    Give the same command again to go on: what is finished is adopted, what was killed goes on from
    its checkpoint, and what failed is tried anew. FOLDER gets sweep.json and front.png (FVU and CE
    recovered against L0). With --on local or slurm, Ctrl-C leaves running jobs alone, --device cuda
    gives every run a GPU of its own, and logs are in FOLDER/logs.

    Exit code 0: every run is trained or adopted. 1: one failed. 2: bad input.
    """
    if on != "here" and device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: with --on {on}, choose cpu, or cuda for one GPU a run")
    from shared.features import sweep as sweeps
    from shared.files import write_text

    settings = sweeps.Settings(
        on=on,
        device=device,
        threads=threads,
        at_most=at_most,
        timeout_min=timeout_min,
        slurm=_options(slurm or []),
        every_seconds=every,
    )
    runs = sweeps.runs(recipe, sweeps.grid(vary), into, settings)
    try:
        outcomes = sweeps.sweep(runs, settings)
    except KeyboardInterrupt:
        left = "" if on == "here" else "; jobs that have started, or that Slurm has, go on"
        typer.echo(f"sae: interrupted{left}: the same command takes up what there is", err=True)
        raise typer.Exit(130) from None
    found = to_json({"vary": vary, "runs": outcomes})
    write_text(into / SUMMARY, found + "\n")
    failed = [one for one in outcomes if one.status == "failed"]
    if len(failed) < len(outcomes):
        sweeps.save_front(into / FRONT, runs, outcomes)
    if as_json:
        typer.echo(found)
    else:
        console().print(_table(outcomes))
    for one in failed:
        log = f" (see {one.log})" if one.log else ""
        typer.echo(f"sae: {one.run} failed: {one.reason}{log}", err=True)
    if failed:
        raise typer.Exit(1)


def _table(outcomes: Sequence[Outcome]) -> Table:
    """Return what became of the runs, for a terminal."""
    from rich.table import Table

    table = Table("run", "status", "L0", "FVU", "CE recovered")
    for one in outcomes:
        numbers = (one.l0, one.fvu, one.recovered_zero)
        table.add_row(
            one.run, one.status, *(f"{x:.4g}" if one.status != "failed" else "" for x in numbers)
        )
    return table
