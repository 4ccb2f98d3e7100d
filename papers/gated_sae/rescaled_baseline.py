"""Rescale and shift: what a frozen baseline gains by a scale and a bias for every magnitude.

Section 5.2: the encoder of a trained baseline decides which latents are active, and only r_mag and
b_mag of a gated autoencoder with that encoder and decoder are trained, to reconstruct. It takes the
shrinkage back, and nothing else that gated autoencoders may gain by.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.saes.architecture import Measured, SaeConfig
from shared.saes.gated import Gated, GatedConfig
from shared.saes.weights import load_weights


class RescaledConfig(SaeConfig):
    """A baseline, frozen, with magnitudes to train. The loss is the mean of (x − x̂)²."""

    frozen: Path
    """The folder of the trained baseline."""

    def create(self, device: str = "cpu", matmul: torch.dtype = torch.float32) -> Rescaled:
        """Return the baseline with magnitudes that leave it what it is."""
        return Rescaled(self, device, matmul)


class Rescaled(Gated):
    """A gated autoencoder of which all but r_mag and b_mag is a baseline's, and frozen."""

    def __init__(self, config: RescaledConfig, device: str, matmul: torch.dtype):
        shape = config.model_dump(include={"d_in", "d_sae", "seed"})
        super().__init__(GatedConfig(**shape, l1=0), device, matmul)
        baseline = load_weights(config.frozen, device)
        self.W_gate_T.copy_(baseline.W_enc.T)
        self.W_dec.copy_(baseline.W_dec)
        self.b_dec.copy_(baseline.b_dec)
        for bias in (self.b_gate, self.b_mag):
            bias.copy_(baseline.b_enc)
        self.parameters = {"r_mag": self.r_mag, "b_mag": self.b_mag}
        self.per_feature = tuple(self.parameters)

    def start(self, first: Float[Tensor, "batch d_in"]) -> None:
        """Leave everything as the baseline has it."""

    @torch.no_grad()
    def gradients(
        self, x: Float[Tensor, "batch d_in"], penalty: float = 1.0
    ) -> tuple[dict[str, Tensor], Measured]:
        """Return the gradients of the magnitudes. There is no penalty."""
        _, f = self._encode(x - self.b_dec)
        error = f.times(self.W_dec).add_(self.b_dec).sub_(x)
        mse, firings = error.square().mean(), f.firings()
        slope = f.where_active(error.mul_(2 / error.numel()), self.W_dec, plus=0.0)
        b_mag = slope.feature_sums()
        products = f.with_entries(slope.entries * f.entries).feature_sums()
        scalars = {"loss": mse, "mse": mse, "l0": firings.sum() / len(x)}
        gradients = {"r_mag": products - self.b_mag * b_mag, "b_mag": b_mag}
        return gradients, Measured(scalars, fired=firings > 0)

    def constrain(self) -> None:
        """Do nothing: the decoder does not change."""

    @torch.no_grad()
    def losses(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """Return the mean squared error of every input."""
        _, f = self._encode(x - self.b_dec)
        return f.times(self.W_dec).add_(self.b_dec).sub_(x).square().mean(1)

    def resample(
        self,
        features: Int[Tensor, " dead"],
        inputs: Float[Tensor, "dead d_in"],
        alive: Int[Tensor, " alive"],
    ) -> None:
        """Raise TypeError: which latents are active is frozen."""
        raise TypeError("a frozen baseline is not resampled: give its job resampling=None")
