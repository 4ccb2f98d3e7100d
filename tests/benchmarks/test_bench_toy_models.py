import pytest
import torch

from benchmarks.measuring import compare, parse_peers
from benchmarks.peers.protocol import load
from benchmarks.toy_models import (
    DRIVERS,
    SETTINGS,
    Setting,
    flops,
    loop,
    mean_loss,
    models_of,
    ours,
    peer,
    table,
    task_of,
)
from shared.errors import UserError

SMALL = Setting("small", 5, 2, (0.5, 0.1), restarts=3, decay=0.9, looped=2, batch=64)


def test_a_ratio_is_the_median_over_the_rounds():
    assert compare([1.0, 2.0, 1.0], [10.0, 30.0, 40.0]) == {
        "ratio": 15.0,
        "ratio_range": [10.0, 40.0],
    }


def test_operations_of_a_step_are_five_matrix_products():
    assert flops(SMALL) == 5 * 2 * 2 * 5 * 64


def test_settings_are_those_of_the_experiments():
    assert SETTINGS["restarts"].models == 1000
    assert SETTINGS["densities"].models == 20
    assert SETTINGS["densities"].densities[-1] == pytest.approx(1 / 20)


def test_a_task_survives_the_file(tmp_path):
    task = task_of(SMALL, 7, 0, "cpu")
    assert task.density.tolist() == pytest.approx([0.5] * 3 + [0.1] * 3)
    task.save(tmp_path / "task.npz", torch.get_num_threads())
    again = load(tmp_path / "task.npz")
    assert torch.equal(again.W, task.W)
    assert (again.batch, again.steps, again.lr, again.device) == (64, 7, task.lr, "cpu")


def test_everyone_lowers_the_loss_of_the_same_start():
    task = task_of(SMALL, 60, 0, "cpu")
    start = mean_loss(task, SMALL, task.W, None, 2)
    for train in (ours, loop):
        result = train(task, SMALL, 0)
        assert mean_loss(task, SMALL, result.W, result.b, 2) < 0.9 * start
    assert len(result.W) == SMALL.looped


def test_models_of_a_task_have_its_importance():
    task = task_of(SMALL, 1, 0, "cpu")
    models = models_of(task, task.W[:2])
    torch.testing.assert_close(models.importance, (0.9 ** torch.arange(5.0)).expand(2, -1))


def test_peers_are_read_from_pairs(tmp_path):
    python = tmp_path / "python"
    python.touch()
    assert parse_peers([f"occhio={python}"], DRIVERS) == {"occhio": python}
    with pytest.raises(UserError, match="unknown peer 'other'; there are: tms-kit, occhio"):
        parse_peers([f"other={python}"], DRIVERS)
    with pytest.raises(UserError, match="no interpreter at ''; give NAME=PYTHON"):
        parse_peers(["occhio"], DRIVERS)


def test_a_peer_that_fails_is_named_with_its_last_words(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    python.chmod(0o755)
    task = task_of(SMALL, 1, 0, "cpu")
    with pytest.raises(UserError, match=r"occhio failed in .*: no such package"):
        peer("occhio", python, task, SMALL)


def test_the_table_says_who_did_not_reach_the_same_loss():
    rival = {
        "version": "1.0",
        "microseconds": [30.0, 20.0, 40.0],
        "ratio": 3.0,
        "ratio_range": [2.0, 4.0],
        "loss": 0.2,
        "loss_of_ours": 0.1,
        "same_loss": False,
    }
    task = {
        "title": "work",
        "microseconds": [10.0],
        "share_of_matmul_rate": 0.123,
        "rivals": {"peer": rival},
    }
    text = table({"work": task})
    assert "| work | this repository | 10 | 12.3% of the matmul rate |" in text
    assert "| | peer (1.0) | 30 | 3.0 (2.0 to 4.0) | 0.2, 0.1 | no |" in text
