import json

import pandas as pd
import pytest

from shared.corpus.build import SPLITS
from shared.corpus.sources import HubText, LocalText, tokenize
from shared.corpus.tokenizer import train_tokenizer
from shared.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("first line\nsecond line", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(3))
    )
    pd.DataFrame({"text": ["from parquet"], "other": [1]}).to_parquet(tmp_path / "c.parquet")
    return tmp_path


def test_a_folder_of_all_kinds(folder):
    texts = [item.text for item in LocalText(folder).documents()]
    assert texts == ["first line\nsecond line", "row 0", "row 1", "row 2", "from parquet"]


def test_another_field(folder):
    (folder / "a.txt").unlink()
    (folder / "b.jsonl").unlink()
    assert [item.text for item in LocalText(folder, "other").documents()] == ["1"]


def test_a_missing_field_is_named_with_those_there_are(folder):
    with pytest.raises(UserError, match=r"no field 'body': name one of"):
        list(LocalText(folder, "body").documents())


def test_a_folder_without_text(tmp_path):
    with pytest.raises(UserError, match="choose another folder"):
        list(LocalText(tmp_path).documents())


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"bad.parquet cannot be read") as error:
        list(LocalText(tmp_path).documents())
    assert "\n" not in str(error.value)


def test_a_dataset_out_of_reach_leaves_three_ways(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="embedded corpus, a local folder, or go online"):
        list(HubText("no-one/no-such-dataset").documents())


def test_tokenize_splits_by_document(folder):
    tokenizer = train_tokenizer(["row first line second parquet"], 300)
    splits = tokenize(LocalText(folder).documents(), tokenizer, length=4, tokens=1000)
    assert set(splits) == set(SPLITS)
    assert sum(len(contexts) for contexts in splits.values()) > 0
