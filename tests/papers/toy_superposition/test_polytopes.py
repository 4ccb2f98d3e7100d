"""The constructed polytopes, and naming them."""

import numpy as np
import pytest

from papers.toy_superposition.geometry import dimensionality
from papers.toy_superposition.polytopes import (
    UNIFORM,
    Parameters,
    constructed,
    edges,
    evaluate,
    expected,
    identify,
    polygon,
    tegum,
)


@pytest.mark.parametrize("name", constructed())
def test_fractions_are_exact_and_fill_the_space(name: str) -> None:
    W = constructed()[name]
    np.testing.assert_allclose(dimensionality(W), expected(name), atol=1e-12)
    assert dimensionality(W).sum() == pytest.approx(len(W), abs=1e-12)
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1, atol=1e-12)


@pytest.mark.parametrize("name", UNIFORM)
def test_identify_sees_through_rotation_order_and_small_noise(name: str) -> None:
    rng = np.random.default_rng(0)
    W = UNIFORM[name]
    rotation, _ = np.linalg.qr(rng.normal(size=(6, len(W))))
    turned = rotation @ W[:, rng.permutation(W.shape[1])]
    assert identify(1.3 * turned + 0.005 * rng.normal(size=turned.shape)) == name


def test_identify_refuses_what_is_none_of_them() -> None:
    assert identify(polygon(4)) is None
    assert identify(polygon(8)) is None
    assert identify(np.array([[1.0, 0.0], [0.0, 1.0]])) is None
    assert (
        identify(tegum(polygon(3), np.array([[1.0, -1.0]]))) is None
    )  # five vertices, no pentagon


@pytest.mark.parametrize(
    ("name", "count"),
    [("digon", 1), ("triangle", 3), ("tetrahedron", 6), ("pentagon", 5), ("square antiprism", 16),
     ("triangular bipyramid", 9), ("pentagonal bipyramid", 15), ("octahedron", 12)],
)  # fmt: skip
def test_edges_are_those_of_the_polytope(name: str, count: int) -> None:
    assert len(edges(constructed()[name])) == count


def test_evaluate_notices_a_vertex_out_of_place() -> None:
    arrays = constructed()
    exact = evaluate(Parameters(), arrays).metrics["pentagon"]
    assert exact["fraction_error"] < 1e-12
    assert exact["rank"] == 2
    bent = arrays["pentagon"].copy()
    bent[:, 0] = [np.cos(0.3), np.sin(0.3)]
    assert evaluate(Parameters(), {"pentagon": bent}).metrics["pentagon"]["fraction_error"] > 0.01
