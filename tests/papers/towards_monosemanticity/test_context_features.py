import numpy as np
import pytest
from matplotlib.figure import Figure
from pydantic import ValidationError
from scipy.sparse import csc_matrix
from sklearn.metrics import roc_auc_score

from papers.towards_monosemanticity import context_features
from papers.towards_monosemanticity.context_features import (
    EXPERIMENT,
    SUMS,
    Parameters,
    auc,
    combined_correlation,
    correlation,
    correlations,
    document_sums,
    interval,
    is_text,
    labels_of_documents,
    paper_name,
    ratio,
    resampled,
    target,
)
from papers.towards_monosemanticity.firings import load_split
from papers.towards_monosemanticity.proxies import CONTEXTS
from shared.corpus.documents import LABELS
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(resamples=20, rare=1)


@pytest.fixture
def arrays(folder):
    return EXPERIMENT.train(CONFIG, Run(seed=0, device="cpu", folder=folder))


def test_the_planted_feature_is_chosen_and_measured_on_the_other_split(folder, arrays):
    metrics = EXPERIMENT.evaluate(CONFIG, arrays).metrics
    assert set(CONTEXTS) <= set(metrics)
    score = load_split(folder, "score")
    for context in ("arabic", "hebrew", "dna"):
        found = metrics[context]
        planted = LABELS.index(context)
        assert found["feature"] % 23 == planted
        assert found["best_by_label"] % 23 == planted
        column = score.features("a1")[:, int(found["feature"])].toarray().ravel()
        label = score.flat_labels == planted
        assert found["active_tokens"] == (column > 0).sum()
        assert found["label"]["purity"] == pytest.approx(label[column > 0].mean())
        top = column > 2 / 3 * column.max()
        assert found["label"]["top_third"] == pytest.approx(label[top].mean())
        assert found["label"]["enrichment"] == pytest.approx(
            label[column > 0].mean() / label[is_text(score)].mean()
        )
        assert found["label"]["weighted"] == pytest.approx(column[label].sum() / column.sum())
        assert found["correlation_with_label"] == pytest.approx(
            np.corrcoef(column[is_text(score)], label[is_text(score)])[0, 1]
        )
        assert found["correlation"] > found["neuron_correlation"]
        assert found["coverage_gain"] >= 0
    assert metrics["share_ahead_of_neuron"] <= 1


def test_figures_are_drawn_from_rounded_numbers(arrays):
    plots = rounded(EXPERIMENT.evaluate(CONFIG, arrays).figures)
    assert {figure.name for figure in EXPERIMENT.figures} == set(plots)
    for figure in EXPERIMENT.figures:
        with use_style():
            assert isinstance(figure.draw(plots[figure.name]), Figure)


def test_a_feature_that_never_fires_again_is_reported_as_such(arrays):
    for key in ("activation", "proxy", "label", "document"):
        arrays[f"arabic_{key}"] = arrays[f"arabic_{key}"][:0]
    arrays["arabic_sums"] = arrays["arabic_sums"] * ~np.isin(SUMS, ["x", "xx", "xy"])
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    found = rounded(evaluation.metrics)["arabic"]
    assert found["active_tokens"] == 0
    assert found["correlation"] is None
    assert found["label"]["top_third"] is None
    with use_style():
        context_features.draw_feature(rounded(evaluation.figures)["arabic_feature"])
        context_features.draw_summary(rounded(evaluation.figures)["context_summary"])


def test_sums_by_document_give_the_correlation(folder):
    split = load_split(folder, "score")
    random = np.random.default_rng(0)
    x, y = random.random((2, split.tokens.size))
    proxy, label = random.random((2, split.tokens.size)) < 0.2
    sums = document_sums(split, x, y, proxy, label)
    rows = is_text(split)
    assert correlation(sums.sum(0)) == pytest.approx(np.corrcoef(x[rows], y[rows])[0, 1])
    assert sums[:, SUMS.index("tokens")].sum() == rows.sum()
    assert sums[:, SUMS.index("proxy")].sum() == proxy[rows].sum()
    documents = split.documents.ravel()
    inside = documents == 3
    assert sums[4, SUMS.index("xy")] == pytest.approx((x * y)[inside].sum())
    labels = labels_of_documents(split)
    assert labels[4] == split.flat_labels[inside][0]
    assert np.isnan(correlation(np.zeros(len(SUMS))))


def test_correlations_agree_with_numpy_over_the_rows_that_count():
    random = np.random.default_rng(1)
    matrix = random.random((40, 3)) * (random.random((40, 3)) < 0.5)
    matrix[:, 2] = 0
    targets = random.random((40, 2))
    matrix[0], targets[0] = 0, 0  # a row that is no observation
    found = correlations(csc_matrix(matrix), targets, 39)
    expected = np.corrcoef(matrix[1:, :2].T, targets[1:].T)[:2, 2:]
    np.testing.assert_allclose(found[:2], expected, atol=1e-12)
    assert found[2].tolist() == [0, 0]


def test_the_target_is_the_proxy_at_least_zero_or_the_sign_of_that_for_dna():
    scores = np.array([[-np.inf, 2.5], [-1.0, 0.0]])
    assert target("arabic", scores).tolist() == [0, 2.5, 0, 0]
    assert target("dna", scores).tolist() == [0, 1, 0, 0]


def test_resampling_keeps_the_number_of_documents_of_each_label():
    labels = np.array([0, 2, 2, 2, 0, 1])
    drawn = resampled(labels, 50)
    assert drawn.shape == (50, 6)
    for label in range(3):
        assert (drawn[:, labels == label].sum(1) == (labels == label).sum()).all()
    assert (drawn[:, 5] == 1).all()
    assert drawn[:, 1:4].std() > 0


def test_undefined_resamples_are_left_out_of_an_interval():
    values = np.array([[0.0, np.nan], [1.0, np.nan], [np.nan, np.nan]])
    low, high = interval(values)
    assert 0 <= low[0] < high[0] <= 1
    assert np.isnan(low[1])
    assert np.isnan(ratio(1, 0))
    assert ratio([1.0, 3.0], 2).tolist() == [0.5, 1.5]


def test_auc_is_that_of_scikit_learn():
    random = np.random.default_rng(2)
    values = random.integers(0, 5, 60).astype(float)
    positive = random.random(60) < 0.3
    assert auc(values, positive) == pytest.approx(roc_auc_score(positive, values))
    assert np.isnan(auc(values, np.zeros(60, dtype=bool)))
    assert np.isnan(auc(values, np.ones(60, dtype=bool)))


def test_helpers_that_carry_the_rest_complete_the_fit():
    random = np.random.default_rng(3)
    parts = random.random((2, 200, 2))
    y = parts @ np.array([2.0, 1.0])
    assert combined_correlation(parts[0], y[0], parts[1], y[1]) == pytest.approx(1)
    assert combined_correlation(parts[0, :, :1], y[0], parts[1, :, :1], y[1]) < 0.95


def test_features_are_named_as_in_the_paper():
    assert paper_name("a1", 3450) == "A/1/3450"


def test_intervals_must_make_thirds():
    with pytest.raises(ValidationError, match="multiple of 3"):
        Parameters(intervals=10)
