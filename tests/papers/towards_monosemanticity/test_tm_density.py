import numpy as np
import pytest
import torch
from made_up_dictionaries import CONTEXTS, LENGTH, SETTINGS, load_dictionary

from papers.towards_monosemanticity.density import (
    EXPERIMENT,
    Parameters,
    counted,
    neurons_of,
    two_groups,
)
from papers.towards_monosemanticity.firings import SPLITS, load_split
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(ultralow=0.02)


def test_firings_are_counted_over_both_splits_without_position_zero(dictionaries_folder):
    splits = [load_split(dictionaries_folder, split) for split in SPLITS]
    firings = counted(splits, "a1")
    assert firings.vectors == 2 * CONTEXTS * (LENGTH - 1)
    dense = np.concatenate([split.features("a1").toarray() for split in splits])
    np.testing.assert_array_equal(firings.counts, (dense > 0).sum(0))
    np.testing.assert_allclose(firings.sums, dense.sum(0), rtol=1e-6)


def test_every_dictionary_is_measured(evaluation, arrays):
    found = evaluation.metrics["dictionary"]
    assert set(found) == set(SETTINGS)
    counts = arrays["a0_counts"]
    density = counts / arrays["vectors"]
    assert found["a0"]["dead"] == pytest.approx((counts == 0).mean())
    assert found["a0"]["dead"] > 0
    assert found["a0"]["ultralow"] == pytest.approx(((counts > 0) & (density < 0.02)).mean())
    assert found["a0"]["l0"] == pytest.approx(density.sum())
    assert found["a0"]["median_log_density"] == pytest.approx(
        np.median(np.log10(density[counts > 0]))
    )


def test_series_follow_width_and_penalty(evaluation):
    metrics = evaluation.metrics
    assert metrics["width"]["dictionaries"] == ["a0", "a1", "a2"]
    assert metrics["penalty"]["a12"]["dictionaries"] == ["a0_l1", "a0", "a0_l2"]
    l0 = [metrics["dictionary"][name]["l0"] for name in ("a0_l1", "a0", "a0_l2")]
    assert metrics["penalty"]["a12"]["l0"] == l0


def test_cosines_compare_encoder_and_decoder(evaluation):
    weights = load_dictionary(None, "a2")
    cosine = torch.cosine_similarity(weights.W_enc.T, weights.W_dec).median()
    found = evaluation.metrics["dictionary"]["a2"]["enc_dec_cosine"]
    assert found == pytest.approx(float(cosine), abs=0.02)  # torch takes the lower of two middles


def test_neurons_of_a_decoder_vector():
    W_dec = np.zeros((3, 20))
    W_dec[0, 4] = -2
    W_dec[1, :5] = 1  # five of five are needed for more than 4/5 of the square
    W_dec[2] = 1
    assert neurons_of(W_dec).tolist() == [1, 5, 18]


def test_a_mixture_tells_two_groups_apart():
    rng = np.random.default_rng(0)
    low, high = rng.normal(-5, 0.3, 300), rng.normal(-2, 0.3, 700)
    groups = two_groups(np.concatenate([low, high])[:, None], seed=0)
    assert groups.group[:300].sum() == 0
    assert groups.group[300:].all()
    assert groups.overlap < 1e-3
    assert groups.ashman == pytest.approx(3 / 0.3, rel=0.1)


def test_one_group_is_not_bimodal():
    values = np.random.default_rng(0).normal(-3, 1, 3000)[:, None]
    groups = two_groups(values, seed=0)
    assert groups.ashman < 2
    assert groups.overlap > 0.1


def test_more_dimensions_can_separate_better():
    rng = np.random.default_rng(0)
    first = np.concatenate([rng.normal(-4, 1, 500), rng.normal(-3, 1, 500)])
    second = np.concatenate([rng.normal(-1, 0.1, 500), rng.normal(1, 0.1, 500)])
    together = two_groups(np.stack([first, second], axis=1), seed=0)
    assert together.overlap < two_groups(first[:, None], seed=0).overlap
    assert together.group.mean() == pytest.approx(0.5, abs=0.01)


def test_figures_hold_every_feature_that_fires(evaluation, arrays):
    plotted = rounded(evaluation.figures)
    histograms, view = plotted["density_histograms"], plotted["density_bias_alignment"]
    assert list(histograms["panels"]) == ["width", "a12"]
    for entry in histograms["panels"]["width"]:
        assert sum(entry["share"]) + entry["dead"] == pytest.approx(1, abs=1e-3)
    assert len(view["group"]) == len(view["bias"]) == (arrays["a1_counts"] > 0).sum()
    with use_style():
        for figure in EXPERIMENT.figures:
            assert len(figure.draw(plotted[figure.name]).axes) >= 2
