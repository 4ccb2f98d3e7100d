import numpy as np
import pytest

from papers.gated_sae.simulated_raters import DESIGNS, Raters, design, simulate


def random(seed=0):
    return np.random.default_rng(seed)


def test_the_designs_have_the_sizes_of_the_paper():
    pythia, gemma = DESIGNS["pythia"], DESIGNS["gemma"]
    assert len(pythia) == 75
    assert len(gemma) == 96
    assert np.bincount(pythia.rater).tolist() == [15] * 5
    assert sorted(np.bincount(gemma.rater).tolist()) == [13, 13, 14, 14, 14, 14, 14]


def test_every_pythia_rater_has_a_pair_of_every_layer_and_site():
    pythia = DESIGNS["pythia"]
    seen = set(zip(pythia.rater, pythia.layer, pythia.site, strict=True))
    assert len(seen) == 75


def test_panels_have_as_many_pairs_each():
    one = design(raters=2, layers=2, sites=3, per_panel=4)
    panels = np.bincount(one.layer * 3 + one.site)
    assert panels.tolist() == [4] * 6


def test_labels_are_those_that_raters_may_give():
    labels = simulate(DESIGNS["gemma"], Raters(), np.zeros(3), 50, random())
    assert labels.shape == (50, 96, 2)
    assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.parametrize("effect", [0.0, 0.3, -0.5])
def test_labels_have_the_expected_mean_and_difference(effect):
    raters = Raters(leniency=0.8, ease=0.4, cuts=(-0.2, 0.9))
    labels = simulate(DESIGNS["pythia"], raters, np.full(3, effect), 4000, random())
    assert labels[..., 0].mean() == pytest.approx(raters.mean_label(0.0), abs=0.02)
    assert labels[..., 1].mean() == pytest.approx(raters.mean_label(effect), abs=0.02)
    found = (labels[..., 1] - labels[..., 0]).mean()
    assert found == pytest.approx(raters.difference(effect), abs=0.01)


@pytest.mark.parametrize("difference", [-0.3, 0.0, 0.13, 0.8])
def test_the_effect_of_a_difference_is_its_inverse(difference):
    raters = Raters()
    assert raters.difference(raters.effect(difference)) == pytest.approx(difference, abs=1e-9)


def test_no_effect_makes_labels_differ_by_more_than_there_are():
    with pytest.raises(ValueError, match="different signs"):
        Raters().effect(2.0)


def test_effects_are_by_site():
    raters = Raters()
    labels = simulate(DESIGNS["pythia"], raters, np.array([0.0, 1.0, 0.0]), 2000, random())
    difference = (labels[..., 1] - labels[..., 0]).mean(0)
    site = DESIGNS["pythia"].site
    for number, effect in enumerate((0.0, 1.0, 0.0)):
        found = difference[site == number].mean()
        assert found == pytest.approx(raters.difference(effect), abs=0.02)


def test_leniency_makes_a_raters_labels_alike():
    """Between raters of one study the mean labels scatter more than chance has it."""
    rater = DESIGNS["pythia"].rater

    def scatter(leniency):
        raters = Raters(leniency=leniency, ease=0.0)
        labels = simulate(DESIGNS["pythia"], raters, np.zeros(3), 500, random()).mean(2)
        return np.stack([labels[:, rater == k].mean(1) for k in range(5)]).var(0).mean()

    assert scatter(1.0) > 5 * scatter(0.0)
