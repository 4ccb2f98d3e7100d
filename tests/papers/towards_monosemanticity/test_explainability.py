from pathlib import Path

import numpy as np
import pytest
from made_up_analysis import FEATURES, NEURONS, make
from pydantic import ValidationError
from scipy import stats

from papers.towards_monosemanticity import explainability
from papers.towards_monosemanticity.examples import (
    ELSEWHERE,
    INTERVAL,
    PREDICT,
    RANDOM,
    TOP,
    Examples,
    Text,
    Unit,
)
from papers.towards_monosemanticity.explainability import (
    EXPERIMENT,
    NO_EXAMPLE,
    Parameters,
    follows,
    frequencies,
    is_single_token,
    p_value,
    pearson,
    quartiles_of_found,
    sample,
    spearman,
    tell_apart,
    weights_of_examples,
)
from shared.errors import UserError
from shared.experiment import Run

CONFIG = Parameters(units=5, seeds=3, firings=20, common=1)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = make(tmp_path_factory.mktemp("analysis"), patch)
        return EXPERIMENT.train(CONFIG, Run(0, "cpu", folder=folder))


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_correlations_agree_with_scipy(random):
    x, y = random.integers(0, 5, 200).astype(float), random.normal(size=200)
    even = np.ones(200)
    assert spearman(x, x + y, even) == pytest.approx(stats.spearmanr(x, x + y).statistic)
    assert pearson(x, x + y, even) == pytest.approx(stats.pearsonr(x, x + y).statistic)


def test_a_weight_counts_like_so_many_copies(random):
    x, y = random.integers(0, 4, 60).astype(float), random.integers(0, 6, 60).astype(float)
    weights = random.integers(1, 5, 60)
    copies = (np.repeat(x, weights), np.repeat(y, weights))
    heavy = weights.astype(float)
    assert spearman(x, y, heavy) == pytest.approx(stats.spearmanr(*copies).statistic)
    assert pearson(x, y, heavy) == pytest.approx(stats.pearsonr(*copies).statistic)


def test_a_constant_prediction_scores_zero():
    y = np.arange(5.0)
    assert spearman(np.full(5, 3.0), y, np.ones(5)) == 0
    assert pearson(np.full(5, 0.1), y, np.ones(5)) == 0


def test_importance_is_density_times_the_probability_of_the_interval():
    rows = np.arange(100, 108)
    fired = Unit(rows, np.array([0.1] * 6 + [6.1, 12.0]))  # of 12 intervals: 0 (six), 6 and 11
    kinds = np.array([TOP, INTERVAL, INTERVAL, RANDOM, ELSEWHERE])
    shown = Examples(np.array([107, 100, 106, 5, 6]), kinds)
    weights = weights_of_examples(shown, fired, density=0.01)
    np.testing.assert_allclose(weights, [0.01 / 8, 0.01 * 6 / 8, 0.01 / 8, 1, 0.01 / 8])


def made_up_text(tokens, length=40):
    return Text(np.asarray(tokens, dtype=np.uint16), length)


def test_a_single_token_has_the_maximum_in_all_examples(random):
    tokens = random.integers(1, 9, 4000)
    text = made_up_text(tokens)
    on_three = np.flatnonzero(tokens == 3)
    values = random.uniform(1, 2, len(on_three))
    assert is_single_token(text, Unit(on_three, values), random)
    on_two = np.flatnonzero((tokens == 3) | (tokens == 4))
    assert not is_single_token(text, Unit(on_two, random.uniform(1, 2, len(on_two))), random)
    # Other tokens in lower intervals do not count.
    weak = np.where(tokens[on_two] == 3, 2.0, 0.1)
    assert is_single_token(text, Unit(on_two, weak), random)


def test_what_follows_a_unit_is_what_it_is_said_to_promote(random):
    tokens = random.integers(1, 50, 8000)
    tokens[tokens == 7] = 8
    at = np.arange(10, 8000, 20)
    tokens[at], tokens[at + 1] = 7, 9
    text = made_up_text(tokens)
    told = follows(text, Unit(at, np.ones(len(at))), frequencies(text, 60))
    assert np.flatnonzero(told).tolist() == [9]


def test_following_tokens_stay_in_the_context():
    tokens = np.array([1, 2, 3, 4] * 10)
    text = made_up_text(tokens, length=4)
    ends = Unit(np.arange(3, 40, 4), np.ones(10))
    assert not follows(text, ends, frequencies(text, 5)).any()


def test_frequencies_leave_out_what_begins_a_context():
    text = made_up_text([1, 2, 3, 3] * 10, length=4)
    np.testing.assert_allclose(frequencies(text, 5), [0, 0, 1 / 3, 2 / 3, 0])


def test_promoted_tokens_are_told_from_random_ones(random):
    weights = np.linspace(1, 0, 500)
    common = np.arange(500)
    told = np.arange(500) < 60
    assert tell_apart(weights, told, common, random) == 1
    assert tell_apart(weights, ~told, common, random) == 0
    assert tell_apart(weights, np.ones(500, bool), common, random) == 0.5
    # The ten first ranks are left out: they may serve the explanation.
    assert tell_apart(weights, (np.arange(500) < 10), common, random) == 0.5


def test_chance_is_a_half(random):
    weights = random.normal(size=(300, 800))
    told = random.random((300, 800)) < 0.3
    common = np.arange(800)
    found = [tell_apart(w, t, common, random) for w, t in zip(weights, told, strict=True)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.01)


def test_units_that_fire_too_rarely_are_not_drawn(arrays):
    from scipy.sparse import csc_matrix

    matrix = csc_matrix(np.eye(4))
    with pytest.raises(UserError, match="lower `firings`"):
        sample((matrix, matrix), 2, 3, 0)


def test_arrays_have_the_shapes_of_the_samples(arrays):
    for group, most in (("features", FEATURES), ("neurons", NEURONS)):
        assert arrays[f"{group}_units"].shape == (3, 5)
        assert arrays[f"{group}_units"].max() < most
        assert arrays[f"{group}_predicted"].shape == (3, 5, PREDICT.total, 9)
        assert arrays[f"{group}_interval_fit"].shape == (3, 5, 11)
        assert arrays[f"{group}_logits"].shape == (3, 5)
    assert not any(array.dtype == object for array in arrays.values())
    assert (arrays["features_kinds"] == NO_EXAMPLE).mean() < 0.3


def test_tokens_are_explained_and_noise_is_not(arrays):
    metrics = EXPERIMENT.evaluate(CONFIG, arrays).metrics
    assert min(metrics["spearman"]["features"]) > 0.9
    assert max(metrics["spearman"]["neurons"]) < 0.6
    assert metrics["p_value"]["spearman"] < 0.05
    assert min(metrics["zeros"]["features"]["mean"]) > 0.9
    assert max(metrics["zeros"]["neurons"]["mean"]) < 0.7
    # The weights of the model are random: what it promotes follows nothing.
    for group in ("features", "neurons", "random"):
        assert 0.3 < np.mean(metrics["logits"][group]["mean"]) < 0.7


def test_single_tokens_are_found(arrays):
    units, single = arrays["features_units"], arrays["features_single_token"]
    assert single[units % 2 == 0].all()


def test_the_same_seed_gives_the_same_arrays(arrays, tmp_path, monkeypatch):
    folder = make(tmp_path, monkeypatch)
    small = CONFIG.model_copy(update={"units": 2})
    first, again = (EXPERIMENT.train(small, Run(5, "cpu", folder=folder)) for _ in range(2))
    for key, array in first.items():
        np.testing.assert_array_equal(array, again[key])
    # A seed's sample is the same whichever seed the run begins with.
    np.testing.assert_array_equal(
        EXPERIMENT.train(small, Run(4, "cpu", folder=folder))["features_units"][1],
        first["features_units"][0],
    )


def test_quartiles_leave_out_what_was_not_found():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    quartiles = quartiles_of_found(values, (0,))
    np.testing.assert_array_equal(quartiles[:, 0], [1.5, 2, 2.5])
    assert np.isnan(quartiles[:, 1]).all()


def test_p_value_is_that_of_mann_and_whitney():
    assert p_value(np.arange(20.0), np.arange(20.0)) == pytest.approx(1)
    assert p_value(np.arange(20.0), np.arange(20.0) + 30) < 1e-6


def test_every_figure_is_drawn(arrays):
    from shared.figures.style import use_style
    from shared.stages import rounded

    figures = rounded(EXPERIMENT.evaluate(CONFIG, arrays).figures)
    with use_style():
        for figure in EXPERIMENT.figures:
            canvas = figure.draw(figures[figure.name])
            assert canvas.axes
    assert {figure.name for figure in EXPERIMENT.figures} == set(figures)


def test_too_few_common_tokens_are_named(tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"common": 1000})
    with pytest.raises(UserError, match="lower `common`"):
        EXPERIMENT.train(config, Run(0, "cpu", folder=make(tmp_path, monkeypatch)))


def test_missing_firings_are_named(tmp_path):
    with pytest.raises(UserError, match=r"text\.safetensors"):
        EXPERIMENT.train(CONFIG, Run(0, "cpu", folder=tmp_path))


def test_two_seeds_are_too_few():
    with pytest.raises(ValidationError, match="seeds"):
        Parameters(units=5, seeds=2, firings=20, common=1)


def test_training_imports_no_matplotlib():
    source = Path(explainability.__file__).read_text()
    top = source.split("if TYPE_CHECKING")[0]
    assert "import matplotlib" not in top
