import hashlib
import subprocess

import numpy
import pytest

from shared.provenance import code_state, content_hash, file_hash, package_versions, run_record


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.py").write_text("x = 1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    return tmp_path


def test_clean_checkout(checkout):
    commit, dirty = code_state(checkout)
    assert len(commit) == 40
    assert not dirty


def test_changed_code_is_dirty_but_new_results_are_not(checkout):
    (checkout / "results").mkdir()
    (checkout / "results" / "metrics.json").write_text("{}")
    (checkout / "README.md").write_text("words")
    assert not code_state(checkout)[1]
    (checkout / "shared" / "a.py").write_text("x = 2\n")
    assert code_state(checkout)[1]


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_state(tmp_path) == ("unknown", True)


def test_content_hash_ignores_order_but_not_values():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


def test_file_hash_is_dvcs(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_hash(tmp_path / "f") == hashlib.md5(b"abc").hexdigest()


def test_record_says_what_was_run():
    record = run_record(params={"steps": 3}, seed=7, device="cpu", wall_seconds=1.234)
    assert record["params"] == {"steps": 3}
    assert record["seed"] == 7
    assert record["wall_seconds"] == 1.2
    assert record["versions"]["numpy"] == numpy.__version__ == package_versions()["numpy"]
