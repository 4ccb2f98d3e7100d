import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.training.checkpoint import load_checkpoint, save_checkpoint

TENSORS = {
    "a/W": torch.arange(12.0).view(3, 4),
    "a/steps": torch.tensor(3.0),
    "empty": torch.ones(0),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, TENSORS, {"done": "7"}, "abc")
    return path


def test_what_is_saved_is_read_again(path):
    tensors, metadata = load_checkpoint(path, "abc")
    assert metadata == {"done": "7"}
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)


def test_of_another_run(path):
    with pytest.raises(UserError, match=r"run\.safetensors is of a run with other parameters"):
        load_checkpoint(path, "abd")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"run\.safetensors is damaged .*: delete it"):
        load_checkpoint(path, "abc")


def test_any_changed_byte_is_noticed(path):
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"run\.safetensors"):
            load_checkpoint(path, "abc")


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    script = Path(__file__).with_name("kill_and_resume.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path, "24"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "24 kills, same bytes\n"
