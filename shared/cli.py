"""The command `sae`: check claims, cite figures, build the gallery; read and steer features."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from shared.claims import report
from shared.claims.checker import Verdict, check_paper, gating_failures
from shared.claims.schema import known_papers, load_claims, paper_folder, resolve_profile
from shared.console import console
from shared.errors import UserError
from shared.features.commands import register
from shared.files import ROOT, write_text
from shared.parallel import collect_rarely


class _Commands(TyperGroup):
    """Commands whose expected errors end in one line on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader left, as in `sae check | head`
            raise
        except (UserError, OSError) as error:
            typer.echo(f"sae: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("sae: interrupted", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Check the claims of the papers against the results, cite the figures, and read and steer "
    "the features of autoencoders.",
)

Papers = Annotated[
    list[str] | None,
    typer.Argument(metavar="PAPER", help="Folders of papers/; all of them if none is named."),
]
Profile = Annotated[
    str | None, typer.Option(metavar="NAME", help="A profile of params.yaml, else its default.")
]


def _chosen(papers: list[str] | None) -> list[str]:
    chosen = list(dict.fromkeys(papers or known_papers(ROOT)))
    if not chosen:
        raise UserError(f"no paper in {ROOT / 'papers'} has a claims.yaml")
    return chosen


@app.command(epilog="Example: sae check toy_superposition --profile smoke")
def check(
    papers: Papers = None,
    profile: Profile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Read results from here instead of results/."),
    ] = None,
) -> None:
    """Hold the results against the claims of the papers.

    Exit code 0: every gating claim holds. 1: one fails, or its metric is missing. 2: bad input.
    """
    if as_json and as_markdown:
        raise UserError("choose one of --json and --markdown")
    verdicts = [
        verdict
        for paper in _chosen(papers)
        for verdict in check_paper(paper, profile, ROOT, results)
    ]
    if as_json:
        typer.echo(report.to_json(verdicts))
    elif as_markdown:
        typer.echo(report.markdown(verdicts))
    else:
        console().print(report.terminal(verdicts))
    if gating_failures(verdicts):
        raise typer.Exit(1)


@app.command(epilog="Example: sae readme toy_superposition --check")
def readme(
    papers: Papers = None,
    check_only: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a README would change.")
    ] = False,
) -> None:
    """Write the verdicts of the default profile into the README of each paper.

    They stand between the markers verdicts:begin and verdicts:end.
    """
    changes = {}
    for paper in _chosen(papers):
        path = paper_folder(paper, ROOT) / "README.md"
        old, new = _renewed(path, check_paper(paper, root=ROOT))
        if new != old:
            changes[path] = new
    for path, text in changes.items():
        if not check_only:
            write_text(path, text)
        typer.echo(f"{'out of date' if check_only else 'rewritten'}: {path.relative_to(ROOT)}")
    if check_only and changes:
        raise typer.Exit(1)


def _renewed(path: Path, verdicts: list[Verdict]) -> tuple[str, str]:
    """The text of a README as it is, and with these verdicts in its block."""
    try:
        old = path.read_text(encoding="utf-8")
        return old, report.splice(old, report.BLOCK, report.markdown(verdicts))
    except FileNotFoundError:
        raise UserError(f"{path.relative_to(ROOT)}: no such file") from None
    except UserError as error:
        raise UserError(f"{path.relative_to(ROOT)}: {error}") from None


@app.command(epilog="Example: sae cite toy_superposition/feature_geometry")
def cite(
    figure: Annotated[str, typer.Argument(metavar="PAPER/FIGURE", help="The figure to cite.")],
    profile: Profile = None,
) -> None:
    """Print BibTeX for the original paper and for the regenerated figure."""
    from shared.figures import cite as citing

    typer.echo(citing.cite(figure, profile, ROOT).rstrip("\n"))


@app.command(epilog="Example: sae gallery")
def gallery() -> None:
    """Build the page of all figures, results/index.html, and print its path."""
    from shared.figures import gallery as page

    typer.echo(page.build(ROOT))


@app.command(epilog="Example: sae papers")
def papers() -> None:
    """List the papers, their claims and where their default profile stands."""
    table = Table("paper", "default profile", "claims", "verdicts")
    for paper in _chosen(None):
        profile, claims = resolve_profile(paper, None, ROOT), load_claims(paper, ROOT)
        table.add_row(paper, profile, str(len(claims)), _standing(paper))
    console().print(table)


def _standing(paper: str) -> str:
    try:
        return report.summary(check_paper(paper, root=ROOT))
    except UserError as error:
        return str(error)


register(app)


def main() -> None:
    """Entry point of the command `sae`."""
    for stream in (sys.stdout, sys.stderr):
        # A symbol that the terminal's encoding lacks is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    collect_rarely()
    app()


if __name__ == "__main__":
    main()
