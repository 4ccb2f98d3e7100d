"""Densities and labels beside the weights."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from shared.features import known
from shared.hub.files import HubError


@pytest.fixture
def at(tiny, tmp_path):
    """The small dictionary, as if opened from a folder."""
    return replace(tiny(), name=str(tmp_path))


def test_densities_are_written_as_sae_lens_does_and_read_back(at, tmp_path):
    density = torch.linspace(0, 1, 20)
    known.save_density(tmp_path, density)
    stored = load_file(tmp_path / "sparsity.safetensors")["sparsity"]
    assert stored[0] == -10
    torch.testing.assert_close(10 ** stored[1:], density[1:])
    found = known.density(at)
    torch.testing.assert_close(found, density)
    assert found[0] == 0


def test_labels_are_read_back(at, tmp_path):
    known.save_labels(tmp_path, {12: "Arabic", 3: "base64"})
    assert known.labels(at) == {3: "base64", 12: "Arabic"}


def test_nothing_need_be_known(at, tiny):
    for dictionary in (at, tiny()):
        assert known.density(dictionary) is None
        assert known.labels(dictionary) == {}


def test_files_that_do_not_fit(at, tmp_path):
    known.save_density(tmp_path, torch.ones(19))
    with pytest.raises(UserError, match="is not of the 20 features"):
        known.density(at)
    save_file({"other": torch.ones(20)}, tmp_path / "sparsity.safetensors")
    with pytest.raises(UserError, match=r"sparsity\.safetensors is damaged"):
        known.density(at)
    (tmp_path / "sparsity.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"sparsity\.safetensors is damaged"):
        known.density(at)


@pytest.mark.parametrize("content", ["{", "[]", '{"Arabic": 12}'])
def test_damaged_labels(at, tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(UserError, match=r"labels\.json is damaged") as caught:
        known.labels(at)
    assert "\n" not in str(caught.value)


def test_densities_of_a_release_are_fetched_where_there_are_some(tiny, tmp_path, monkeypatch):
    released = replace(tiny(), name="gpt2-small-res-jb:blocks.1.hook_resid_pre")
    known.save_density(tmp_path / "blocks.1.hook_resid_pre", torch.full((20,), 0.25))
    asked = []

    def fetch(*arguments):
        asked.append(arguments)
        return tmp_path

    monkeypatch.setattr(known, "fetch", fetch)
    torch.testing.assert_close(known.density(released), torch.full((20,), 0.25))
    ((repository, file),) = asked
    assert repository == "jbloom/GPT2-Small-SAEs-Reformatted"
    assert file == "blocks.1.hook_resid_pre/sparsity.safetensors"

    def miss(*_):
        raise HubError("offline")

    monkeypatch.setattr(known, "fetch", miss)
    assert known.density(released) is None
    assert known.labels(released) == {}
