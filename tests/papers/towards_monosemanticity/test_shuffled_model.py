import numpy as np
import pytest
from made_up_analysis import make

from papers.towards_monosemanticity import explainability
from papers.towards_monosemanticity.examples import RANDOM
from papers.towards_monosemanticity.shuffled_model import EXPERIMENT, Parameters
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

SETTINGS = {"units": 4, "seeds": 3, "firings": 20, "common": 1}
CONFIG = Parameters(**SETTINGS)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = make(tmp_path_factory.mktemp("analysis"), patch)
        trained = explainability.EXPERIMENT.train(
            explainability.Parameters(**SETTINGS), Run(0, "cpu", folder=folder)
        )
        inputs = {"explainability": trained}
        return EXPERIMENT.train(CONFIG, Run(0, "cpu", inputs, folder))


def test_half_of_the_made_up_features_are_single_token(arrays):
    """Their strongest firings are on one token by construction, or on one and what follows it."""
    for model in ("trained", "shuffled"):
        assert arrays[f"{model}_all_single"].shape == (16,)
        assert arrays[f"{model}_all_single"].mean() == 0.5


def test_the_same_firings_score_the_same_for_both_models(arrays):
    metrics = EXPERIMENT.evaluate(CONFIG, arrays).metrics
    np.testing.assert_allclose(
        metrics["spearman_by_seed"]["trained"], metrics["spearman_by_seed"]["shuffled"]
    )


def synthetic(arrays, good):
    """Arrays where single-token features are predicted exactly, the others where `good`."""
    changed = dict(arrays)
    for model in ("trained", "shuffled"):
        actual = np.random.default_rng(1).random(arrays[f"{model}_actual"].shape)
        noise = np.random.default_rng(2).integers(0, 10, actual.shape)
        exact = np.rint(9 * actual).astype(np.int8)
        single = np.zeros(actual.shape[:2], dtype=bool)
        single[:, : 3 if model == "shuffled" else 1] = True
        others = exact if good[model] else noise.astype(np.int8)
        changed |= {
            f"{model}_actual": actual.astype(np.float32),
            f"{model}_predicted": np.where(single[:, :, None, None], exact, others),
            f"{model}_kinds": np.full(actual.shape[:3], RANDOM, dtype=np.int8),
            f"{model}_weights": np.ones(actual.shape[:3]),
            f"{model}_single_token": single,
        }
    return changed


def test_the_reversal_shows_when_single_tokens_are_left_out(arrays):
    made = synthetic(arrays, {"trained": True, "shuffled": False})
    metrics = EXPERIMENT.evaluate(CONFIG, made).metrics
    assert metrics["spearman"]["trained"]["other"] > 0.9
    assert abs(metrics["spearman"]["shuffled"]["other"]) < 0.2
    assert metrics["spearman"]["shuffled"]["single_token"] > 0.9
    assert list(metrics["single_token_share_by_seed"]["shuffled"]) == [0.75] * 3


def test_a_kind_that_is_empty_has_no_median_and_is_drawn(arrays):
    made = synthetic(arrays, {"trained": True, "shuffled": True})
    made["trained_single_token"] = np.zeros_like(made["trained_single_token"])
    evaluation = EXPERIMENT.evaluate(CONFIG, made)
    assert np.isnan(evaluation.metrics["spearman"]["trained"]["single_token"])
    with use_style():
        assert EXPERIMENT.figures[0].draw(rounded(evaluation.figures)["shuffled_model"]).axes
