"""Everything that is measured of dictionaries of one activation, in one pass over some text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt16
from torch import Tensor

from shared.activations.sites import Site, read
from shared.language_models.load import LanguageModel
from shared.metrics.downstream import Downstream, Effect
from shared.metrics.reconstruction import Fidelity, Reconstruction
from shared.metrics.sparsity import Firings, Sparsity
from shared.progress import progress


@runtime_checkable
class Autoencoder(Protocol):
    """Vectors [batch, d_in] to features [batch, d_sae] and back."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Return the feature activations of some vectors."""
        ...

    def decode(self, features: Tensor, /) -> Tensor:
        """Return the vectors that feature activations stand for."""
        ...


@dataclass(frozen=True)
class Scores:
    """What dictionaries do: to the language model, and one by one to its activations."""

    effect: Effect
    firings: tuple[Firings, ...]
    fidelity: tuple[Fidelity, ...]


@torch.inference_mode()
def score(
    model: LanguageModel,
    site: Site,
    dictionaries: Sequence[Autoencoder],
    tokens: UInt16[np.ndarray, "contexts length"],
    mean: Float[Tensor, " d"],
    batch: int = 8,
    label: str = "scores",
) -> Scores:
    """Measure dictionaries of the activations at a site; all see each batch of contexts together.

    Sparsity and reconstruction are over positions ≥ 1, losses over all predicted tokens.

    Args:
        tokens: contexts that the dictionaries were not trained on.
        mean: the activation's mean, for mean ablation.
        batch: contexts in a forward pass.
        label: shown with the progress.

    Raises:
        UserError: the model does not have the site.
    """
    downstream = Downstream(model, site, mean)
    sparsity: list[Sparsity] = []
    reconstruction = [Reconstruction() for _ in dictionaries]
    with progress(label, len(tokens)) as advance:
        for at in range(0, len(tokens), batch):
            contexts = torch.from_numpy(tokens[at : at + batch].astype(np.int64)).to(model.device)
            x = read(model, contexts, [site])[site][:, 1:].float()
            vectors = x.flatten(0, 1)
            reconstructions = []
            for number, dictionary in enumerate(dictionaries):
                features = dictionary.encode(vectors)
                x_hat = dictionary.decode(features)
                if at == 0:
                    sparsity.append(Sparsity(features.shape[1]))
                sparsity[number].update(features)
                reconstruction[number].update(vectors, x_hat)
                reconstructions.append(x_hat.view_as(x))
            downstream.update(contexts, reconstructions)
            advance(len(contexts))
    return Scores(
        downstream.result(),
        tuple(counts.result() for counts in sparsity),
        tuple(measured.result() for measured in reconstruction),
    )
