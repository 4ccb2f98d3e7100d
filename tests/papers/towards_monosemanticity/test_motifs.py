import made_up_families as made_up
import numpy as np
import pytest
from scipy.sparse import csc_matrix

from papers.towards_monosemanticity.firings import load_split
from papers.towards_monosemanticity.motifs import (
    EXPERIMENT,
    MOTIFS,
    Parameters,
    about,
    at_token,
    measure,
    motif_of,
    neighbour,
    trigram_like,
)
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(minimum=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield made_up.make(tmp_path_factory.mktemp("made_up"), patch)


def test_entries_are_dropped_column_by_column():
    dense = np.array([[1.0, 0], [2, 3], [0, 4]])
    features = csc_matrix(dense)
    kept = at_token(features, features.data > 1.5)
    np.testing.assert_array_equal(kept.toarray(), np.where(dense > 1.5, dense, 0))


def test_neighbours_stay_within_the_context(folder):
    split = load_split(folder, "select")
    before, after = (neighbour(split, offset).reshape(split.tokens.shape) for offset in (-1, 1))
    np.testing.assert_array_equal(before[:, 1:], split.tokens[:, :-1])
    np.testing.assert_array_equal(after[:, :-1], split.tokens[:, 1:])
    assert not before[:, 0].any()
    assert not after[:, -1].any()


def test_motifs_follow_their_definition():
    token_share, recall = np.array([1, 1, 0.2, 0.2, 0.2]), np.array([0.9, 0.1, 0, 0, 0])
    label_share, base = np.array([1, 1, 0.95, 0.95, 0.5]), np.array([0.1, 0.1, 0.1, 0.6, 0.1])
    found = motif_of(token_share, recall, label_share, base)
    assert [MOTIFS[i] for i in found] == [
        "single token",
        "token in context",
        "context",
        "other",
        "other",
    ]
    assert trigram_like(np.array([1, 1, 0.5]), np.array([1, 0.2, 1]), np.zeros(3)).tolist() == [
        True,
        False,
        False,
    ]


def test_what_features_are_about_is_found_and_measured(folder):
    select, score = (load_split(folder, split) for split in ("select", "score"))
    what = about(select.features("a1"), select, 4096)
    # a1: 2 ASCII, 3 lead bytes, 5 "the" after "of", 8 the underscore between two names.
    assert what["token"][5] == made_up.THE
    assert what["before"][5] == made_up.OF
    assert what["label"][2] == made_up.BASE64  # no kind of its own here
    found = measure(score.features("a1"), score, what, 4096)
    assert found["token_share"][5] == found["pair_share"][5] == pytest.approx(1)
    assert 0 < found["recall"][5] < 0.5
    assert found["token_share"][2] < 0.5
    assert found["label_share"][2] == found["label_share"][3] == pytest.approx(1)
    assert found["label_of_token"][5] == pytest.approx(1)
    mark = 8
    assert what["token"][mark] == made_up.UNDERSCORE
    assert what["before"][mark] == what["after"][mark] == made_up.NAME
    assert found["after_share"][mark] > 0.5
    assert found["recall"][mark] == pytest.approx(1)


def test_larger_dictionaries_have_more_features_for_the_same_token(folder):
    arrays = EXPERIMENT.train(CONFIG, Run(seed=0, device="cpu", folder=folder))
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    metrics = evaluation.metrics
    assert metrics["the_features"] == [1, 2, 2]
    assert metrics["count"]["single_token"][0] == 7
    assert metrics["count"]["token_in_context"][:2] == [0, 2]
    assert metrics["count"]["context"][:2] == [2, 5]
    assert metrics["same_token_share"][0] == pytest.approx(7 / 9)
    np.testing.assert_allclose(np.sum(list(metrics["share"].values()), axis=0), 1)
    with use_style():
        assert EXPERIMENT.figures[0].draw(rounded(evaluation.figures["motifs"])).axes
