"""Which features a neuron carries: typing the hidden units of models whose hidden layer is a ReLU.

Sections "Superposition in a Privileged Basis" and "Computation in Superposition" read W neuron by
neuron. Here that reading is a bipartite graph: neuron j is joined to feature i if it carries it
with more than `CARRIED` of its largest strength. Connected parts of the graph are the paper's
"k features in l neurons". Numpy, float64; `strength` is [..., m, n] and never negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray

CARRIED = 0.2
"""Share of a neuron's largest strength above which it carries a feature."""

DEAD = 0.1
"""Largest strength below which a neuron carries nothing."""


@dataclass(frozen=True)
class Block:
    """Features and neurons that are joined with one another and with nothing else."""

    features: tuple[int, ...]
    neurons: tuple[int, ...]

    @property
    def monosemantic(self) -> bool:
        """Whether it is one neuron with one feature of its own."""
        return len(self.features) == 1 and len(self.neurons) == 1


def carried(strength: Float[Array, "*models m n"]) -> Bool[Array, "*models m n"]:
    """Return whether neuron j carries feature i.

    Raises:
        ValueError: a strength is negative.
    """
    if (strength < 0).any():
        raise ValueError("strengths must not be negative")
    largest = strength.max(axis=-1, keepdims=True)
    return (strength > CARRIED * largest) & (largest > DEAD)


def features_per_neuron(strength: Float[Array, "*models m n"]) -> Array:
    """Return how many features each neuron carries, [..., m]: 1 is monosemantic, 2 and more not."""
    return carried(strength).sum(-1)


def neurons_per_feature(strength: Float[Array, "*models m n"]) -> Array:
    """Return how many neurons carry each feature, [..., n]: 0 is not represented."""
    return carried(strength).sum(-2)


def blocks(strength: Float[Array, "m n"]) -> list[Block]:
    """Return the connected parts of the graph of one model, those with most features first.

    Features that no neuron carries, and neurons that carry nothing, are in no block.
    """
    joined = carried(strength)
    left = set(np.flatnonzero(joined.any(1)).tolist())
    found = []
    while left:
        neurons: set[int] = set()
        features: set[int] = set()
        grown = {min(left)}
        while grown - neurons:
            neurons |= grown
            features = set(np.flatnonzero(joined[sorted(neurons)].any(0)).tolist())
            grown = set(np.flatnonzero(joined[:, sorted(features)].any(1)).tolist())
        found.append(Block(tuple(sorted(features)), tuple(sorted(neurons))))
        left -= neurons
    return sorted(found, key=lambda block: (-len(block.features), block.features))
