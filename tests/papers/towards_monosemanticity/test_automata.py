from pathlib import Path

import made_up_families as made_up
import numpy as np
import pytest
from scipy.sparse import csc_matrix

from papers.towards_monosemanticity.automata import (
    EXPERIMENT,
    KINDS,
    Parameters,
    best_chain,
    find,
    fires_on,
    mine,
    predicted,
    traits_of,
    transitions,
    two_loops,
    unfinished,
)
from papers.towards_monosemanticity.firings import Split, load_split
from shared.corpus.shards import Contexts
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield made_up.make(tmp_path_factory.mktemp("made_up"), patch)


def test_edges_follow_the_tokens_that_weights_favour():
    # Feature 0 favours token 0, on which feature 1 fires; feature 1 favours token 1 (feature 0),
    # feature 2 favours nothing.
    logits = np.array([[2.0, 0, -1], [0, 1, 0], [-1, -1, -1]], dtype=np.float32)
    tokens = np.array([0, 0, 1, 2, 2, 2])
    features = csc_matrix(np.array([[0, 1, 0]] * 2 + [[1, 0, 0]] + [[0, 0, 1]] * 3, dtype="f"))
    table = fires_on(features, tokens, 3)
    np.testing.assert_allclose(table, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    expected = predicted(logits, table)
    np.testing.assert_allclose(expected, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    edges = mine(expected, np.array([1 / 6, 2 / 6, 3 / 6], dtype=np.float32), 2)
    assert edges.tolist() == [[0, 1], [1, 0]]
    assert two_loops(edges).tolist() == [[0, 1]]


def test_transitions_are_counted_within_contexts():
    length = 5
    fires = np.zeros((2, length, 2))
    fires[0, 1, 0] = fires[0, 2, 1] = 1  # followed
    fires[0, 3, 0] = 1  # followed by itself only
    fires[0, 4, 0] = fires[1, 1, 1] = 1  # the end of a context is no occasion
    features = csc_matrix(fires.reshape(-1, 2).astype(np.float32))
    probability, base = transitions(features, length, np.array([[0, 1], [1, 0], [0, 0]]))
    np.testing.assert_allclose(probability, [1 / 2, 1 / 2, 1 / 2])
    np.testing.assert_allclose(base, [1 / 6, 2 / 6, 2 / 6])


def test_characters_are_unfinished_until_their_last_byte():
    words = [b"", b"a", "中".encode()[:1], "中".encode()[1:2], "中".encode()[2:], "é".encode()]
    words += [b" \xd8", "ب".encode()[1:] + b"\xd8"]
    tokens = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 4, 1]], dtype=np.uint16)
    contexts = Contexts(tokens, np.zeros((1, 10), np.uint8), np.zeros((1, 10), np.int32))
    found = unfinished(Split(contexts, Path()), words)
    assert found.astype(int).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_the_best_chain_has_the_strongest_weakest_edge():
    edges = np.array([[0, 1], [1, 2], [2, 3], [2, 2], [3, 0], [1, 4], [4, 5]])
    value = np.array([0.9, 0.5, 0.8, 1.0, 0.1, 0.6, 0.7])
    assert best_chain(edges, value) == [0, 1, 4, 5]
    assert best_chain(edges[:2], value[:2]) == []


def test_automata_are_found_by_their_kind():
    edges = np.array([[0, 0], [1, 2], [2, 1], [3, 4], [4, 3], [1, 3], [3, 1]])
    traits = {
        "base64": np.array(0),
        "underscore": np.array([0, 1.0, 0, 0, 0]),
        "unfinished": np.array([0, 0, 0, 1.0, 0]),
        "script": np.array([0, 0, 0, 2, 2]),
        "script_share": np.array([0, 0, 0, 1.0, 0.9]),
    }
    expected = np.array([0.5, 0.2, 0.3, 0.4, 0.4, 0.1, 0.1])
    found = find(edges, expected, np.full(7, 0.001), traits)
    assert found["base64"] == [0]
    assert found["snake_case"] == [1, 2]  # stronger than 1 and 3
    assert found["script"] == [3, 4]
    traits["base64"] = np.array(4)
    assert find(edges, expected, np.full(7, 0.001), traits)["base64"] == []


def test_traits_of_known_features(folder):
    split = load_split(folder, "select")
    traits = traits_of(split.features("a1"), split, made_up.BYTES)
    assert traits["unfinished"][3] == pytest.approx(1)  # lead bytes
    assert traits["unfinished"][4] < 0.2  # continuation bytes
    assert traits["underscore"][8] == pytest.approx(1)
    assert traits["script_share"][3] == pytest.approx(1)
    assert traits["base64"] in (0, 1, 2)


def test_the_experiment_runs_from_end_to_end(folder):
    config = Parameters(minimum=5, edges=2)
    arrays = EXPERIMENT.train(config, Run(seed=0, device="cpu", folder=folder))
    evaluation = EXPERIMENT.evaluate(config, arrays)
    for name in ("a0", "a1"):
        assert evaluation.metrics[name]["edges"] == len(arrays[f"edges_{name}"]) > 0
        assert 0 <= evaluation.metrics[name]["share_followed"] <= 1
    assert set(evaluation.figures["automata"]) == set(KINDS)
    with use_style():
        assert EXPERIMENT.figures[0].draw(rounded(evaluation.figures["automata"])).axes
