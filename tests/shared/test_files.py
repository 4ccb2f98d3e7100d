import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from shared.files import atomic, read_json, read_npz, write_json, write_npz, write_text


def partial_files(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".partial-")]


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"x": [1, 2.5, "é"]})
    assert read_json(tmp_path / "deep" / "a.json") == {"x": [1, 2.5, "é"]}
    assert partial_files(tmp_path / "deep") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_not_json(tmp_path, value):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"new": value})
    assert read_json(tmp_path / "a.json") == {"old": 1}


def test_npz_round_trip_and_same_bytes(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "text": np.array("hello")}
    write_npz(tmp_path / "a.npz", arrays)
    write_npz(tmp_path / "b.npz", arrays)
    back = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(back["a"], arrays["a"])
    assert str(back["text"]) == "hello"
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_npz_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="pickle"):
        write_npz(tmp_path / "a.npz", {"bad": np.array([{}], dtype=object)})
    assert not (tmp_path / "a.npz").exists()


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half_write():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        half_write()
    assert path.read_text() == "old"
    assert partial_files(tmp_path) == []


def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    script = f"""
        import os, signal
        from pathlib import Path
        from shared.files import atomic
        with atomic(Path({str(path)!r})) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert json.loads(path.read_text()) == {"old": 1}


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    assert oct((tmp_path / "a.txt").stat().st_mode & 0o777) == "0o644"
