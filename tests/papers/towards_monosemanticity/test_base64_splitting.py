import made_up_families as made_up
import numpy as np
import pytest

from papers.towards_monosemanticity.base64_splitting import (
    ALL,
    EXPERIMENT,
    PARENT,
    Parameters,
    class_logits,
    class_of,
    coverage,
    greedy_order,
)
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(minimum=5)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = made_up.make(tmp_path_factory.mktemp("made_up"), patch)
        return EXPERIMENT.train(CONFIG, Run(seed=0, device="cpu", folder=folder))


def test_tokens_are_digits_letters_or_other():
    words = [b"07", b"Zq", b"+/", b"a1", "é".encode(), b"\xd8", b""]
    assert class_of(words).tolist() == [0, 1, 2, 2, 2, 2, 2]


def test_the_greedy_order_takes_what_adds_most():
    fires = np.zeros((10, 3), dtype=bool)
    fires[:4, 0] = fires[:6, 1] = fires[6:9, 2] = True
    order = greedy_order(fires)
    assert order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(coverage(fires[:, order]), [0.6, 0.9, 0.9])
    assert coverage(np.zeros((0, 2), dtype=bool)).tolist() == [0, 0]


def test_class_logits_are_weighted_by_occurrences():
    logits = np.array([[1.0, 3, 10, -1]])
    found = class_logits(logits, np.array([1, 3, 0, 2]), np.array([0, 0, 1, 2]))
    np.testing.assert_allclose(found, [[2.5, 0, -1]])


def test_the_parent_is_found_with_the_children_that_make_it_up(arrays):
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    metrics = evaluation.metrics
    assert metrics["parent"] == 0
    assert {0, 1, 2} <= set(arrays["children"].tolist())
    assert metrics["coverage"] == metrics["coverage_by_own"] == 1
    assert metrics["coverage_by_chance"] < 0.9
    preferred = metrics["preferred"]
    assert {name: found["feature"] for name, found in preferred.items()} == {
        "digits": 0,
        "letters": 1,
        "ascii": 2,
    }
    assert preferred["digits"]["share"] == preferred["ascii"]["share"] == 1
    assert preferred["digits"]["share_of_base64"] == pytest.approx(0.3, abs=0.05)
    # Tokens of base64 are independent here.
    assert preferred["digits"]["next_digit"] == pytest.approx(0.3, abs=0.08)
    assert arrays["tokens_score"][ALL] == arrays["tokens_score"][PARENT]
    with use_style():
        figure = EXPERIMENT.figures[0].draw(rounded(evaluation.figures["base64_splitting"]))
    assert len(figure.axes) == 3


def test_without_children_nothing_is_covered(arrays):
    none = dict(arrays)
    for key in ("children", "own", "coverage", "coverage_by_chance", "coverage_by_own"):
        none[key] = arrays[key][:0]
    for key in arrays:
        if key.endswith(("_select", "_score")):
            none[key] = arrays[key][:2]
    none["logits"] = arrays["logits"][:0]
    metrics = EXPERIMENT.evaluate(CONFIG, none).metrics
    assert metrics["coverage"] == metrics["own_children"] == 0
    assert metrics["preferred"] == {}
