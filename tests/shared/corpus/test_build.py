import numpy as np
import pytest
from pydantic import ValidationError

from shared.corpus.build import SPLITS, CorpusConfig, build, split_of, tokenizer_texts
from shared.corpus.documents import LABELS
from shared.corpus.shards import load_contexts, shard_record
from shared.corpus.tokenizer import train_tokenizer

CONFIG = CorpusConfig(
    docstrings=("networkx",), source=("rich",), rates={"arabic": 0.05, "dna": 0.02}, length=32
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tokenizer_texts(CONFIG, every=20), 500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("corpus")
    build(CONFIG, tokenizer, folder)
    return folder


def test_every_split_has_its_slices_at_their_rates(folder):
    rates = shard_record(folder / "train.safetensors")["rates"]
    for label, rate in CONFIG.rates.items():
        assert rates[label] == pytest.approx(rate, rel=0.1)
    for split in SPLITS:
        found = set(np.unique(load_contexts(folder / f"{split}.safetensors").labels))
        assert found == {LABELS.index(label) for label in ("text", "code", "arabic", "dna")}


def test_contexts_begin_with_end_of_text(folder):
    contexts = load_contexts(folder / "validation.safetensors")
    assert contexts.tokens.shape[1] == 32
    assert not contexts.tokens[:, 0].any()
    assert (contexts.documents[:, 0] == -1).all()


def test_the_same_settings_give_the_same_tokens(folder, tokenizer, tmp_path):
    build(CONFIG, tokenizer, tmp_path)
    for split in SPLITS:
        name = f"{split}.safetensors"
        assert shard_record(tmp_path / name) == shard_record(folder / name)


def test_a_file_stays_in_one_split_of_about_the_right_share():
    splits = [split_of(f"file{number}", 0) for number in range(5000)]
    assert splits == [split_of(f"file{number}", 0) for number in range(5000)]
    for split, share in SPLITS.items():
        assert splits.count(split) / 5000 == pytest.approx(share, abs=0.012)


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ValidationError):
        CorpusConfig(docstring=("networkx",), source=(), rates={})
