import made_up_families as made_up
import numpy as np
import pytest
from pydantic import ValidationError
from scipy.sparse import csc_matrix

from papers.towards_monosemanticity.firings import load_split
from papers.towards_monosemanticity.universality import (
    CONTEXTS,
    EXPERIMENT,
    Parameters,
    attributions,
    best_partners,
    histogram,
    observations,
    row_pearson,
)
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(minimum=5, neuron_contexts=40, token_minimum=3, bins=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield made_up.make(tmp_path_factory.mktemp("made_up"), patch)


def sparse(seed, columns=4, rows=200):
    random = np.random.default_rng(seed)
    dense = np.maximum(random.normal(size=(rows, columns)), 0).astype(np.float32)
    dense[:, -1] = 0
    return csc_matrix(dense)


def test_correlations_of_rows_are_those_of_numpy_and_zero_for_constants():
    ours, theirs = (sparse(seed).toarray().T.astype(float) for seed in (0, 1))
    found = row_pearson(ours, theirs)
    for row in range(3):
        assert found[row] == pytest.approx(np.corrcoef(ours[row], theirs[row])[0, 1], abs=1e-6)
    assert found[3] == 0


def test_partners_are_found_under_a_permutation_and_unusable_ones_are_left_out():
    ours = sparse(0, columns=6)[:, :5]
    order = np.array([3, 1, 4, 0, 2])
    usable = np.ones(5, dtype=bool)
    partners = best_partners(ours, ours[:, order], usable, 200)
    np.testing.assert_array_equal(order[partners], np.arange(5))
    usable[partners[0]] = False
    assert best_partners(ours, ours[:, order], usable, 200)[0] != partners[0]


def test_an_attribution_is_activation_times_the_weight_of_the_next_token(folder):
    split = load_split(folder, "select")
    features = split.features("a0")
    logits = np.random.default_rng(0).normal(size=(features.shape[1], 4096)).astype(np.float32)
    found = attributions(features, logits, split).toarray()
    length = split.tokens.shape[1]
    dense, tokens = features.toarray(), split.flat_tokens
    for row in (5, 40, 100):
        np.testing.assert_allclose(found[row], dense[row] * logits[:, tokens[row + 1]], rtol=1e-6)
    assert not found[length - 1 :: length].any()


def test_a_histogram_counts_the_tokens_where_one_fires():
    ours, theirs = np.array([0, 1.0, 0, 4]), np.array([0, 0, 2.0, 2])
    counts, tops = histogram(ours, theirs, 4)
    assert counts.sum() == 3
    np.testing.assert_array_equal(tops, [4, 2])
    assert counts[3, 3] == counts[1, 0] == counts[0, 3] == 1


def test_the_same_features_in_another_order_are_universal(folder):
    arrays = EXPERIMENT.train(CONFIG, Run(seed=0, device="cpu", folder=folder))
    # Contexts of position 0 carry no text.
    assert observations(load_split(folder, "score")) == made_up.CONTEXTS * (made_up.LENGTH - 1)
    np.testing.assert_array_equal(made_up.B_ORDER[arrays["partner"]], arrays["feature"])
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    metrics = evaluation.metrics
    assert metrics["median"]["features"] > 0.9
    assert metrics["median"]["features"] > metrics["median"]["features_to_neurons"]
    assert metrics["median"]["shuffled"] < 0.2
    assert metrics["pairs"]["arabic"]["feature"] in (3, 4)
    assert metrics["pairs"]["arabic"]["activation"] > 0.9
    # The dictionaries' directions have nothing to do with each other's.
    assert abs(metrics["logits"]["median"]) < 0.5
    for figure in EXPERIMENT.figures:
        with use_style():
            canvas = figure.draw(rounded(evaluation.figures[figure.name]))
        assert canvas.axes
    assert len(evaluation.figures["universality_pairs"]["counts"]) == len(CONTEXTS)


def test_the_same_seed_gives_the_same_numbers(folder):
    run = Run(seed=3, device="cpu", folder=folder)
    first, again = (EXPERIMENT.train(CONFIG, run) for _ in range(2))
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_a_feature_that_fires_once_cannot_be_analysed():
    with pytest.raises(ValidationError, match="minimum"):
        Parameters(minimum=1)
