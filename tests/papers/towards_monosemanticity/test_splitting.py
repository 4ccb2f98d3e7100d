from pathlib import Path

import made_up_families as made_up
import numpy as np
import pytest
from scipy.sparse import csc_matrix

from papers.towards_monosemanticity import splitting
from papers.towards_monosemanticity.firings import Split
from papers.towards_monosemanticity.splitting import (
    EXPERIMENT,
    FAMILIES,
    Parameters,
    clusters,
    family,
    inside_maths,
    masked_cosine,
    nearest_cosine,
    neighbours,
    shuffled_columns,
)
from shared.corpus.documents import LABELS
from shared.corpus.shards import Contexts
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(minimum=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def flat(directions, near, dimensions, min_dist, seed):
        return directions[:, :dimensions]  # importing UMAP takes longer than all tests

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "embed", flat)
        yield made_up.make(tmp_path_factory.mktemp("made_up"), patch)


def unit(count, d=16, seed=0):
    directions = np.random.default_rng(seed).normal(size=(count, d))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def test_masked_cosine_is_the_greater_of_the_two_cosines():
    random = np.random.default_rng(0)
    small, large = (
        np.where(random.random((60, n)) < 0.3, random.random((60, n)), 0) for n in (3, 5)
    )
    large[:, 4] = 0
    found = masked_cosine(csc_matrix(small), csc_matrix(large))
    for i, j in np.ndindex(3, 5):
        cosines = [0.0]
        for mask in (small[:, i] > 0, large[:, j] > 0):
            x, y = small[mask, i], large[mask, j]
            if (x * y).any():
                cosines.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert found[i, j] == pytest.approx(max(cosines), abs=1e-6)


def test_a_part_of_a_feature_has_masked_cosine_one():
    parent = np.array([1.0, 2, 3, 4, 0, 0])
    child = np.array([0, 0, 6.0, 8, 0, 0])
    other = np.array([0, 0, 0, 0, 1.0, 1])
    found = masked_cosine(csc_matrix(parent[:, None]), csc_matrix(np.stack([child, other], 1)))
    np.testing.assert_allclose(found, [[1, 0]])


def test_neighbours_are_exact_and_begin_with_oneself():
    directions = unit(50)
    near, distance = neighbours(directions, 7)
    np.testing.assert_array_equal(near[:, 0], np.arange(50))
    cosine = directions @ directions.T
    for row in range(50):
        assert set(near[row]) == set(np.argsort(-cosine[row])[:7])
    assert (np.diff(distance, axis=1) >= 0).all()
    np.testing.assert_allclose(
        distance[:, 1:], 1 - np.take_along_axis(cosine, near[:, 1:], 1), atol=1e-12
    )


def test_a_dictionary_that_contains_the_other_is_nearer_than_its_shuffled_columns():
    ours = unit(20)
    theirs = np.concatenate([ours[::-1], unit(60, seed=1)])
    np.testing.assert_allclose(nearest_cosine(ours, theirs), 1)
    null = shuffled_columns(theirs, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(null, axis=1), 1)
    assert nearest_cosine(ours, null).mean() < 0.9


def test_three_points_together_are_a_cluster():
    random = np.random.default_rng(0)
    points = np.concatenate([random.normal(c, 0.01, (4, 2)) for c in ((0, 0), (5, 5), (0, 9))])
    found = clusters(points)
    assert len(set(found[:4].tolist())) == 1
    assert len(set(found.tolist()) - {-1}) == 3


def test_maths_is_plain_text_soon_after_a_command():
    tokens = np.zeros((2, 32), dtype=np.uint16)
    tokens[:, 5] = made_up.BYTES.index(b"frac")
    labels = np.zeros((2, 32), dtype=np.uint8)
    labels[1] = LABELS.index("code")
    contexts = Contexts(tokens, labels, np.zeros((2, 32), dtype=np.int32))
    found = inside_maths(Split(contexts, Path()), made_up.BYTES).reshape(2, 32)
    np.testing.assert_array_equal(np.flatnonzero(found[0]), np.arange(5, 14))
    assert not found[1].any()


def test_known_families_are_found(folder):
    arrays = EXPERIMENT.train(CONFIG, Run(seed=0, device="cpu", folder=folder))
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    metrics, edges = evaluation.metrics, {tuple(edge) for edge in arrays["edges_0"].tolist()}
    # a0: 0 base64, 1 arabic, 2 the. a1: 0-2 base64, 3-4 arabic, 5-6 the.
    assert {(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6)} <= edges
    assert (0, 3) not in edges
    assert metrics["graph"]["a0_a1"]["split"] == pytest.approx(3 / 9)
    # Digits that encode ASCII belong to a1's digits and to its ASCII: their features merge both.
    assert metrics["graph"]["a1_a2"]["merged"] >= 10 / 21
    assert metrics["nearest"]["a0_a1"]["mmcs"] == pytest.approx(1)
    assert metrics["nearest"]["a0_a1"]["mmcs_null"] < 0.9
    assert metrics["points"] == [9, 11, 21]
    assert metrics["scripts_among_children"] == 1
    shown = family(arrays, int(arrays["roots"][FAMILIES.index("base64")]))
    assert shown["nodes"][0]["words"].startswith("base64")
    assert {node["level"] for node in shown["nodes"]} == {0, 1, 2}
    for figure in EXPERIMENT.figures:
        with use_style():
            assert figure.draw(rounded(evaluation.figures[figure.name])).axes
