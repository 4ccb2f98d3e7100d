import matplotlib.pyplot as plt
import numpy as np
import pytest

from shared.features.dictionary import open_dictionary
from shared.figures.save import read_provenance
from shared.files import read_json
from tutorials.record import OURS, Record


@pytest.fixture
def record(tmp_path):
    return Record("embedded", open_dictionary(), tmp_path)


def test_nothing_is_written_before_the_end(record, tmp_path):
    record.draw(plt.figure(), "shares", {"share": [0.12346]}, "Shares", "What they are.")
    assert list(tmp_path.iterdir()) == []


def test_figures_and_metrics_are_rounded_and_say_where_they_are_from(record, tmp_path):
    record.draw(plt.figure(), "shares", {"share": np.array([0.12346])}, "Shares", "What they are.")
    record.finish({"gain": [12.34567, float("nan")]})
    folder = tmp_path / "results" / "tutorials" / "embedded"
    assert read_json(folder / "metrics.json") == {"gain": [12.35, None]}
    document = read_json(folder / "figures" / "shares.json")
    assert document["original"] == OURS
    assert document["data"] == {"share": [0.1235]}
    about = read_provenance(folder / "figures" / "shares.png")
    assert about["paper"] == "tutorials"
    assert about["params"] == {"sae": "mini_gpt2_resid_2", "model": "mini_gpt2"}
