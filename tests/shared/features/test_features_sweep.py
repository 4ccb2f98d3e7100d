"""Sweeps: their grid, adopting, failing, resuming after a kill, and where they are computed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

import shared.cli
from shared.corpus.tokenizer import save_tokenizer, train_tokenizer
from shared.errors import UserError
from shared.features import sweep as sweeps
from shared.features.sweep import FAILURE, LOGS, Outcome, Run, Settings, draw, grid, runs, sweep
from shared.features.train import CHECKPOINT, EVALUATION, read_recipe
from shared.language_models.train import ModelConfig, create
from shared.provenance import content_hash
from shared.saes.weights import TENSORS

SENTENCES = ("the cat sat on the mat. ", "a dog ran to the river. ", "one and two are three. ")
TOO_LONG = 10**6


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe for a tiny language model and some text."""
    folder = tmp_path_factory.mktemp("place")
    config = ModelConfig(
        layers=1, d_model=8, d_mlp=12, heads=2, activation="gelu_new", tied=True, steps=1, seed=0
    )
    create(config, 300, 32).save_pretrained(folder / "model")
    save_tokenizer(train_tokenizer(SENTENCES, 300), folder / "model" / "tokenizer.json")
    picked = np.random.default_rng(0).integers(0, 3, 600)
    (folder / "text.txt").write_text("".join(SENTENCES[i] for i in picked))
    fields = {
        "model": str(folder / "model"),
        "hook": "blocks.0.resid_post",
        "text": str(folder / "text.txt"),
        "length": 16,
        "architecture": "topk",
        "sae": {"d_sae": 12, "k": 3},
        "batch": 32,
        "steps": 6,
        "lr": 0.01,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture
def place(recipe, tmp_path):
    """Return the runs of a grid in a folder of the test."""

    def make(vary, into="sweep", **settings):
        return runs(recipe, vary, tmp_path / into, Settings(**settings))

    return make


def weights(run):
    return (run.folder / TENSORS).read_bytes()


def made_up(run, **numbers):
    """Write what a finished run leaves, so far as a sweep reads it."""
    run.folder.mkdir(parents=True)
    (run.folder / "cfg.json").touch()
    found = {"l0": 3.0, "fvu": 0.5, "recovered_zero": 0.9} | numbers
    stored = {"evaluation": found, "provenance": {"recipe": run.recipe.model_dump(mode="json")}}
    (run.folder / EVALUATION).write_text(json.dumps(stored))


def test_values_are_yaml():
    found = grid(["sae.k=8,16", "betas=[0.9, 0.99],[0.8, 0.9]", "clip=null,1.0"])
    assert found == {"sae.k": [8, 16], "betas": [[0.9, 0.99], [0.8, 0.9]], "clip": [None, 1.0]}


@pytest.mark.parametrize("bad", [["k"], ["=3"], ["k="], ["k=[1"], ["lr=1.0", "lr=2.0"]])
def test_a_bad_variation_is_one_line(bad):
    with pytest.raises(UserError, match=f"^--vary .*{bad[-1].split('=')[0]}") as found:
        grid(bad)
    assert "\n" not in str(found.value)


def test_every_combination_is_a_run_named_by_what_varies_and_a_hash(place, recipe, tmp_path):
    found = place({"sae.k": [2, 3], "lr": [0.01, 0.02]})
    assert [(run.recipe.sae["k"], run.recipe.lr) for run in found] == [
        (2, 0.01),
        (2, 0.02),
        (3, 0.01),
        (3, 0.02),
    ]
    whole = read_recipe(recipe, {"sae.k": 3, "lr": 0.01})
    assert found[2].name == f"k=3_lr=0.01_{content_hash(whole.model_dump(mode='json'))[:8]}"
    assert found[2].folder == tmp_path / "sweep" / found[2].name
    assert [run.curve for run in found] == ["lr=0.01", "lr=0.02"] * 2
    other = place({"sae.k": [3], "lr": [0.01], "steps": [7]})[0]
    assert other.name.split("_")[-1] != found[2].name.split("_")[-1]


def test_a_name_is_a_file_name(place):
    (run,) = place({"text": ["../some text/" + 50 * "a" + ".txt"]})
    assert "/" not in run.name
    assert len(run.name) < 60


def test_the_same_run_twice_and_a_bad_recipe_are_one_line(place, recipe):
    with pytest.raises(UserError, match="comes twice"):
        place({"sae.k": [3, 3]})
    with pytest.raises(UserError, match=f"{recipe}: .*k 13 is more than d_sae 12"):
        place({"sae.k": [3, 13]})


def test_what_fails_is_reported_and_what_is_finished_adopted(place, recipe, tmp_path):
    """By the command, which goes on where it was."""
    into = tmp_path / "sweep"
    words = ["sweep", str(recipe), "--vary", f"steps=4,{TOO_LONG},6", "--into", str(into)]
    first = CliRunner().invoke(shared.cli.app, words)
    assert first.exit_code == 1, first.stderr
    found = place({"steps": [4, TOO_LONG, 6]})
    assert [line for line in first.stderr.splitlines() if "failed" in line] == [
        f"sae: {found[1].name} failed: {(found[1].folder / FAILURE).read_text().strip()}"
    ]
    assert "without repetition" in first.stderr
    assert (into / "front.png").stat().st_size > 0
    before = [weights(run) for run in (found[0], found[2])]
    stored = json.loads((found[0].folder / EVALUATION).read_text())["evaluation"]

    again = CliRunner().invoke(shared.cli.app, [*words, "--json"])
    assert again.exit_code == 1
    said = json.loads(again.stdout)
    assert said == json.loads((into / "sweep.json").read_text())
    statuses = {one["run"]: one["status"] for one in said["runs"]}
    assert statuses == dict(
        zip([run.name for run in found], ["adopted", "failed", "adopted"], strict=True)
    )
    assert said["runs"][0]["fvu"] == stored["fvu"]
    assert said["runs"][1]["fvu"] is None
    assert [weights(run) for run in (found[0], found[2])] == before


def test_another_recipe_is_not_adopted(place):
    (run,) = place({"sae.k": [3]})
    made_up(run)
    assert sweep([run], Settings()) == [Outcome(run.name, "adopted", 3.0, 0.5, 0.9)]
    stored = json.loads((run.folder / EVALUATION).read_text())
    stored["provenance"]["recipe"]["lr"] = 0.5
    (run.folder / EVALUATION).write_text(json.dumps(stored))
    (outcome,) = sweep([run], Settings())
    assert (outcome.status, "holds an autoencoder" in outcome.reason) == ("failed", True)


@pytest.mark.parametrize("damage", ["", "{}", "[", None])
def test_an_unfinished_folder_is_not_adopted(place, damage):
    (run,) = place({"sae.k": [3]})
    made_up(run)
    if damage is None:
        (run.folder / CHECKPOINT).touch()
    else:
        (run.folder / EVALUATION).write_text(damage)
    assert run.evaluation() is None


def test_a_defect_is_reported_with_its_kind(place, monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("of one\nline")

    monkeypatch.setattr(sweeps, "train", broken)
    outcomes = sweep(place({"sae.k": [2, 3]}), Settings())
    assert [one.reason for one in outcomes] == ["ZeroDivisionError: of one line"] * 2
    assert "Traceback" in capsys.readouterr().err


def test_no_two_processes_work_on_one_run(place, monkeypatch):
    (run,) = place({"sae.k": [3]})
    monkeypatch.setattr(sweeps, "train", lambda *_: pytest.fail("trained twice"))
    second = threading.Thread(target=run)
    with FileLock(run.folder.parent / LOGS / f"{run.name}.lock"):
        second.start()
        second.join(0.3)
        assert second.is_alive()
        made_up(run)
    second.join(10)
    assert not second.is_alive()
    assert not (run.folder / FAILURE).exists()


def until(found, seconds=120.0):
    """Return what a function returns, once it is anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.05)
    raise TimeoutError


def task(folder):
    """Return the process of submitit's that computes a run of this sweep, if there is one."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "submitit.core._submit" in words and words[-1] == str(folder / LOGS):
            return process
    return None


def test_a_local_run_outlives_ctrl_c_and_a_killed_one_ends_with_the_same_bytes(
    place, recipe, monkeypatch
):
    (alone,) = place({"steps": [8]}, "alone", threads=1)
    assert [one.status for one in sweep([alone], Settings())] == ["trained"]

    settings = {"on": "local", "threads": 1, "every_seconds": 0.0}
    (run,) = place({"steps": [8]}, **settings)
    into = run.folder.parent

    def ctrl_c(_):
        """Do what Ctrl-C in a terminal does: reach every process of the command."""
        if found := task(into):
            for process in (found, *found.parents()[:2]):  # submitit's controller, and its shell
                process.send_signal(signal.SIGINT)
            raise KeyboardInterrupt
        return 0

    words = f"sweep {recipe} --vary steps=8 --into {into} --on local --every 0"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "steps", ctrl_c)
        left = CliRunner().invoke(shared.cli.app, words.split())
    assert left.exit_code == 130
    assert "interrupted; jobs that have started" in left.stderr
    until(lambda: run.steps() >= 2)
    task(into).kill()
    until(lambda: not task(into))
    assert run.evaluation() is None
    assert (run.folder / CHECKPOINT).exists()

    (outcome,) = sweep([run], Settings(**settings))
    assert outcome.status == "trained"
    assert weights(run) == weights(alone)


def test_a_job_that_is_preempted_starts_again_as_it_was(place):
    (run,) = place({"sae.k": [3]})
    assert run.checkpoint().function == run


@pytest.mark.parametrize(
    ("given", "at_most", "slots"),
    [
        ("", None, [(0,), (1,)]),
        ("3,5", None, [(3,), (5,)]),
        ("3,5", 3, [(3,), (5,), (3,)]),
        ("3,5", 1, [(3,)]),
    ],
)
def test_every_local_run_has_a_gpu(monkeypatch, given, at_most, slots):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(sweeps.torch.cuda, "device_count", lambda: 2)
    assert sweeps._slots(Settings(on="local", device="cuda", at_most=at_most)) == slots


@pytest.mark.parametrize(("given", "line"), [("", "no GPU here"), ("GPU-8f1e", "by their numbers")])
def test_no_gpu_is_one_line(monkeypatch, given, line):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(sweeps.torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=line):
        sweeps._slots(Settings(on="local", device="cuda"))


def test_the_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(sweeps, "cores", lambda: 5)
    for threads, slots in ((None, 5), (2, 2), (8, 1)):
        assert sweeps._slots(Settings(on="local", threads=threads)) == [()] * slots


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands, so far as a sweep calls them: squeue says what the file `queue` holds."""
    commands = {
        "sbatch": 'cp "$1" job.sh && echo Submitted batch job 7',
        "squeue": "cat queue; : > queue",
        "srun": "",
    }
    for name, command in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(sweeps, "SLURM_EVERY_SECONDS", 0.01)
    Path("queue").touch()
    return tmp_path


def test_slurm_is_given_what_it_has_not(slurm, place):
    made = place({"sae.k": [2, 3, 4]})
    logs = slurm / "sweep" / LOGS
    logs.mkdir(parents=True)
    (logs / "jobs.json").write_text(json.dumps({made[0].name: "5_0", made[1].name: "5_1"}))
    Path("queue").write_text("5_1\n9\n")
    settings = Settings(on="slurm", at_most=1, slurm={"partition": "gpu"}, device="cuda")
    outcomes = sweep(made, settings)
    assert json.loads((logs / "jobs.json").read_text()) == {
        made[0].name: "7_0",
        made[1].name: "5_1",
        made[2].name: "7_1",
    }
    assert [Path(one.log).name for one in outcomes] == [
        f"{job}_0_log.err" for job in ("7_0", "5_1", "7_1")
    ]
    assert {one.status for one in outcomes} == {"failed"}
    assert "killed" in outcomes[0].reason
    options = Path("job.sh").read_text().splitlines()
    for option in ("array=0-1%1", "partition=gpu", "gpus-per-node=1", "time=1440"):
        assert f"#SBATCH --{option}" in options


def test_what_slurm_refuses_is_one_line(slurm, place):
    (slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho 'bad\npartition' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"^sbatch: bad partition$"):
        sweep(place({"sae.k": [2, 3]}), Settings(on="slurm"))
    (slurm / "bin" / "squeue").write_text("#!/bin/sh\necho 'no\ncontroller' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"^squeue: no controller; jobs go on$"):
        sweep(place({"sae.k": [2, 3]}), Settings(on="slurm"))


def test_a_place_that_is_not_there_is_one_line(place, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Slurm here"):
        sweep(place({"sae.k": [3]}), Settings(on="slurm"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"needs submitit: pip install -e '.\[cluster\]'"):
        sweep(place({"sae.k": [3]}), Settings(on="local"))


@pytest.mark.parametrize(
    ("option", "line"),
    [("--device cuda:1", "one GPU a run"), ("--slurm gpu", "is no OPTION=VALUE")],
)
def test_bad_options_are_one_line(recipe, tmp_path, option, line):
    words = f"sweep {recipe} --vary sae.k=3 --into {tmp_path} --on local {option}".split()
    result = CliRunner().invoke(shared.cli.app, words)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_first_field_moves_along_a_curve(place):
    made = place({"sae.k": [2, 3, 4], "lr": [0.01, 0.02]})
    outcomes = [
        Outcome(run.name, "trained", float(run.recipe.sae["k"]), fvu=0.1, recovered_zero=0.9)
        for run in made
    ]
    outcomes[0] = Outcome(made[0].name, "failed", reason="it did")
    panel = draw(made, outcomes).axes[0]
    drawn = {line.get_label(): list(line.get_xdata()) for line in panel.lines}
    assert drawn == {"lr=0.01": [3, 4], "lr=0.02": [2, 3, 4]}


def test_the_command_module_is_light():
    code = "import sys, shared.features.commands.sweep; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
