"""The command `sae`: what it prints, where, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import shared.cli
from shared.errors import UserError

CLAIMS = """\
- id: plateau
  figure: dimensionality
  statement: Pairs hold half a dimension.
  source: {place: section 2, kind: paper}
  metric: geometry.plateau
  expect: {value: 0.5, abs: 0.02}
  profiles: [smoke, embedded]
"""
README = "# Toy\n<!-- verdicts:begin -->\n<!-- verdicts:end -->\n"


def add_paper(root: Path, paper: str, plateau: float) -> None:
    folder = root / "papers" / paper
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("profile: embedded\nsmoke: {}\nembedded: {}\n")
    (folder / "claims.yaml").write_text(CLAIMS)
    (folder / "README.md").write_text(README)
    add_results(root / "results", paper, "embedded", plateau)


def add_results(results: Path, paper: str, profile: str, plateau: float) -> None:
    path = results / paper / profile / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"geometry": {"plateau": plateau}}))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    add_paper(tmp_path, "good", 0.52)
    add_paper(tmp_path, "poor", 0.9)
    monkeypatch.setattr(shared.cli, "ROOT", tmp_path)
    return tmp_path


def sae(*arguments: str) -> Result:
    return CliRunner().invoke(shared.cli.app, list(arguments))


def refused(result: Result) -> str:
    """The one line on stderr of a command that met bad input."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("sae: ")
    return line


def test_check_exits_0_when_every_claim_holds(root: Path) -> None:
    result = sae("check", "good")
    assert result.exit_code == 0
    assert "✓ reproduced" in result.stdout
    assert "1 reproduced, 0 not reproduced (known gaps), 0 failed, 0 missing" in result.stdout


def test_check_exits_1_when_a_claim_fails_in_any_paper(root: Path) -> None:
    result = sae("check")
    assert result.exit_code == 1
    assert "good (embedded): 1 reproduced" in result.stdout
    assert "✗ failed: plateau: off by 0.4, allowed 0.02" in result.stdout


def test_check_exits_1_when_a_metric_is_missing_or_not_finite(root: Path) -> None:
    metrics = root / "results/good/embedded/metrics.json"
    metrics.write_text("{}")
    assert sae("check", "good").exit_code == 1
    metrics.write_text('{"geometry": {"plateau": NaN}}')
    result = sae("check", "good", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["measured"] is None


def test_a_known_gap_does_not_fail_the_check_but_is_counted(root: Path) -> None:
    with (root / "papers/poor/claims.yaml").open("a") as file:
        file.write("  known_gap: the model is small\n")
    result = sae("check", "poor")
    assert result.exit_code == 0
    assert "1 not reproduced (known gaps)" in result.stdout
    assert "the model is small" in result.stdout


def test_check_json_is_pure_json_in_the_order_of_the_arguments(root: Path) -> None:
    result = sae("check", "poor", "good", "poor", "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    verdicts = json.loads(result.stdout)
    assert [verdict["paper"] for verdict in verdicts] == ["poor", "good"]
    assert [verdict["status"] for verdict in verdicts] == ["failed", "reproduced"]


def test_check_markdown(root: Path) -> None:
    result = sae("check", "good", "--markdown")
    assert result.exit_code == 0
    assert result.stdout.startswith("**good**, profile `embedded`: 1 reproduced")
    assert "choose one" in refused(sae("check", "--markdown", "--json"))


def test_check_of_another_profile_and_other_results(root: Path, tmp_path: Path) -> None:
    add_results(tmp_path / "elsewhere", "good", "smoke", 0.5)
    assert "run `dvc exp run" in refused(sae("check", "good", "--profile", "smoke"))
    elsewhere = str(tmp_path / "elsewhere")
    result = sae("check", "good", "--profile", "smoke", "--results", elsewhere)
    assert result.exit_code == 0
    assert "good (smoke)" in result.stdout


def test_bad_input_is_one_line_and_exit_2(root: Path) -> None:
    assert "unknown paper 'other'; known papers: good, poor" in refused(sae("check", "other"))
    assert "known profiles: smoke, embedded" in refused(sae("check", "--profile", "large"))
    (root / "papers/good/claims.yaml").write_text(CLAIMS.replace("abs", "tol"))
    line = refused(sae("check"))
    assert line.startswith("sae: papers/good/claims.yaml:6: claim 'plateau': expect.tol")
    (root / "papers/good/claims.yaml").write_text("- {\n")
    assert "papers/good/claims.yaml:2: malformed YAML" in refused(sae("check", "--json"))


def test_usage_errors_exit_2(root: Path) -> None:
    assert sae("check", "--nonsense").exit_code == 2
    assert sae("nonsense").exit_code == 2


def test_without_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.cli, "ROOT", tmp_path)
    for command in ("check", "papers", "readme"):
        assert "has a claims.yaml" in refused(sae(command))


def test_readme_writes_the_block_once(root: Path) -> None:
    path = root / "papers/good/README.md"
    stale = sae("readme", "good", "--check")
    assert (stale.exit_code, stale.stdout) == (1, "out of date: papers/good/README.md\n")
    assert path.read_text() == README
    assert sae("readme").stdout == (
        "rewritten: papers/good/README.md\nrewritten: papers/poor/README.md\n"
    )
    assert "| 0.52 | ✓ reproduced |" in path.read_text()
    assert "✗ failed" in (root / "papers/poor/README.md").read_text()
    current = sae("readme", "--check")
    assert (current.exit_code, current.stdout) == (0, "")


def test_readme_writes_nothing_where_one_of_them_cannot_be(root: Path) -> None:
    (root / "papers/poor/README.md").write_text("# Poor\n")
    assert "papers/poor/README.md: needs the markers" in refused(sae("readme"))
    (root / "papers/poor/README.md").unlink()
    assert "papers/poor/README.md: no such file" in refused(sae("readme"))
    assert (root / "papers/good/README.md").read_text() == README


def test_papers_lists_what_there_is(root: Path) -> None:
    (root / "results/poor/embedded/metrics.json").unlink()
    result = sae("papers")
    assert result.exit_code == 0
    assert "1 reproduced, 0 not reproduced (known gaps)" in result.stdout
    assert "poor has no results for profile 'embedded'" in result.stdout


def test_cite_and_gallery_hand_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def cite(*arguments: Any) -> str:
        asked.append(arguments)
        return "@article{toy}\n"

    def build(where: Path) -> Path:
        return where / "results" / "index.html"

    for name, stand_in in (
        ("cite", SimpleNamespace(cite=cite)),
        ("gallery", SimpleNamespace(build=build)),
    ):
        monkeypatch.setitem(sys.modules, f"shared.figures.{name}", stand_in)
        monkeypatch.setattr(f"shared.figures.{name}", stand_in, raising=False)
    assert sae("cite", "good/dimensionality", "--profile", "smoke").stdout == "@article{toy}\n"
    assert asked == [("good/dimensionality", "smoke", root)]
    assert sae("gallery").stdout.strip() == str(root / "results" / "index.html")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such figure"), 2, "sae: no such figure"),
        (
            PermissionError(13, "Permission denied", "x"),
            2,
            "sae: [Errno 13] Permission denied: 'x'",
        ),
        (KeyboardInterrupt(), 130, "sae: interrupted"),
    ],
)
def test_errors_and_interrupts_are_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(shared.cli, "check_paper", fail)
    result = sae("check")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", line + "\n")


@pytest.mark.parametrize("command", ["check", "readme", "cite", "gallery", "papers"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = sae(command, "--help")
    assert result.exit_code == 0
    assert f"Example: sae {command}" in result.stdout


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    folder = Path(shared.cli.__file__).parents[1]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def test_end_to_end_under_an_encoding_without_symbols(root: Path) -> None:
    code = (
        "import sys, shared.cli; from pathlib import Path; "
        f"shared.cli.ROOT = Path({str(root)!r}); sys.argv = ['sae', *{{}}]; shared.cli.main()"
    )
    result = run(code.format(["check", "poor"]), PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (1, "")
    assert "0 reproduced" in result.stdout
    result = run(code.format(["check", "good", "--json"]), PYTHONIOENCODING="utf-8")
    assert result.returncode == 0
    assert json.loads(result.stdout)[0]["expected"] == "0.5 ± 0.02"
    result = run(code.format(["check", "other"]))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "sae: unknown paper 'other'; known papers: good, poor\n"


def test_the_command_line_is_light_to_import() -> None:
    result = run("import sys, shared.cli; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert not loaded & {"torch", "matplotlib", "scipy", "transformers", "sae_lens"}


def test_the_module_runs_as_the_command():
    """The pipeline and the smoke session call it by its module."""
    command = [sys.executable, "-m", "shared.cli", "check", "no_such_paper"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no_such_paper" in result.stderr
