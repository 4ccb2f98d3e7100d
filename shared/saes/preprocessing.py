"""Activations as Scaling and Evaluating Sparse Autoencoders presents them to its autoencoders.

Every vector loses its mean over d_in and is scaled to a common length (section 2.1). The errors of
the paper are those of the vectors x̃ that come out; a language model needs the x that went in.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from shared.saes.architecture import Exported
from shared.saes.gated import GatedWeights
from shared.saes.jumprelu import JumpReLUWeights
from shared.saes.topk import TopKWeights
from shared.saes.weights import Weights

EPSILON = 1e-5
"""Added to the standard deviation, by the authors and SAELens."""


class Statistics(NamedTuple):
    """What `normalised` takes from every vector."""

    mean: Float[Tensor, "*batch 1"]
    deviation: Float[Tensor, "*batch 1"]


def normalised(
    x: Float[Tensor, "*batch d_in"],
) -> tuple[Float[Tensor, "*batch d_in"], Statistics]:
    """Return x̃, of mean 0 and standard deviation 1 over d_in, and what the vectors were before.

    As in SAELens ("layer_norm") and the authors' code, the deviation is the unbiased one, so that
    the length of x̃ is √(d_in − 1) but for EPSILON. The paper says length 1: a constant factor. A
    constant vector becomes 0.

    Raises:
        ValueError: d_in is 1, where there is no deviation.
    """
    if x.shape[-1] < 2:
        raise ValueError(f"vectors of {x.shape[-1]} number have no deviation: d_in must be over 1")
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    deviation = centred.std(-1, keepdim=True)
    return centred / (deviation + EPSILON), Statistics(mean, deviation)


def restored(
    x: Float[Tensor, "*batch d_in"], statistics: Statistics
) -> Float[Tensor, "*batch d_in"]:
    """Return x̃ · deviation + mean: `normalised` undone, but for EPSILON (as SAELens does it)."""
    return x * statistics.deviation + statistics.mean


def for_activations(exported: Exported) -> Exported:
    """Return an autoencoder of x̃ as one of x, which normalises and restores (SAELens' format)."""
    return exported._replace(config={**exported.config, "normalize_activations": "layer_norm"})


class Normalised(NamedTuple):
    """An autoencoder of activations x, made of one of x̃."""

    sae: Weights | GatedWeights | JumpReLUWeights | TopKWeights
    """It reconstructs x̃."""

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the feature activations of x, which are those of x̃."""
        return self.sae.encode(normalised(x)[0])

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction of x, with its own mean and deviation."""
        inputs, statistics = normalised(x)
        return restored(self.sae.decode(self.sae.encode(inputs)), statistics)
