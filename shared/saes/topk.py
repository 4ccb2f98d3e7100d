"""The autoencoder of Gao et al. 2024, "Scaling and evaluating sparse autoencoders".

Its sections 2.3 and 2.4 and appendix A state the architecture, initialisation and the auxiliary
loss; the scales of both losses are those of the code that its authors published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from shared.saes.architecture import Architecture, Exported, Measured, SaeConfig
from shared.saes.codes import codes_at
from shared.saes.geometric_median import geometric_median
from shared.saes.selection import top_k
from shared.saes.unit_decoder import random_directions, remove_parallel, restart, scale_to_unit

EPSILON = 1e-5
"""Added to the standard deviation of an input that is normalised, by the authors and SAELens."""


class TopKConfig(SaeConfig):
    """A TopK autoencoder.

        f = ReLU(TopK((x̃ − b_dec) W_enc)),  x̂ = f W_dec + b_dec
        loss = mean over inputs of ‖x̃ − x̂‖² / V + aux · (auxiliary loss)

    V is the mean of ‖x̃ − mean of x̃‖² over the first batch. Where fewer than k pre-activations are
    positive, fewer than k features are active: the ReLU is in the authors' code, not in their
    equation, from which it differs there only. As in the equation there is no encoder bias.

    The auxiliary loss (AuxK) is for features that are dead: the largest `k_aux` of their
    pre-activations, through a ReLU and W_dec, shall give what x̂ lacks. Its squared error is divided
    by the variance of x̃ − x̂ in the batch. What x̂ lacks is taken as given.
    """

    k: int = Field(ge=1)
    """Features active for each input."""
    layer_norm: bool = False
    """True: x̃ is x less its mean over d_in, scaled to unit length (the paper). False: x̃ is x times
    one factor for all inputs, under which the mean squared length is 1, so that the error is that
    of the activations themselves, as the other architectures have it."""
    aux: float = Field(default=1 / 32, ge=0, allow_inf_nan=False)
    """α, the weight of the auxiliary loss."""
    k_aux: int | None = Field(default=None, ge=1)
    """Dead features in use for each input. None: the power of two next to d_in/2, as in the paper
    (512 at d_in = 768; the default of its code is 256)."""
    dead_after: int = Field(default=10_000_000, ge=1)
    """A feature is dead that was not active on so many vectors in a row."""

    @model_validator(mode="after")
    def _fits(self) -> TopKConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k {self.k} is more than d_sae {self.d_sae}")
        if self.layer_norm and self.d_in == 1:
            raise ValueError("layer_norm needs a d_in of 2 or more")
        return self

    @property
    def auxiliary_width(self) -> int:
        """Return k_aux, or what stands for None."""
        return self.k_aux or 2 ** max(0, round(math.log2(self.d_in / 2)))

    def create(self, device: str = "cpu", matmul: torch.dtype = torch.float32) -> TopK:
        """Return an untrained autoencoder."""
        return TopK(self, device, matmul)


class Statistics(NamedTuple):
    """What `normalised` takes from every input."""

    mean: Float[Tensor, "*batch 1"]
    deviation: Float[Tensor, "*batch 1"]


def normalised(
    x: Float[Tensor, "*batch d_in"],
) -> tuple[Float[Tensor, "*batch d_in"], Statistics]:
    """Return inputs of mean 0 and standard deviation 1 over d_in, and what they were before.

    As in SAELens ("layer_norm") and the authors' code, the deviation is the unbiased one, so that
    the length is √(d_in − 1) but for EPSILON.
    """
    mean = x.mean(-1, keepdim=True)
    deviation = x.std(-1, keepdim=True)
    return (x - mean) / (deviation + EPSILON), Statistics(mean, deviation)


class TopK(Architecture):
    """A TopK autoencoder in training.

    Decoder rows are random directions, the encoder starts as the decoder's transpose, b_dec at the
    geometric median of the first batch. It has no sparsity penalty, and counts for itself on how
    many vectors in a row a feature was not active, in `gradients`.
    """

    per_feature = ("W_enc_T", "W_dec")

    def __init__(self, config: TopKConfig, device: str, matmul: torch.dtype):
        self.config = config
        self.matmul = matmul
        self.W_dec = random_directions(config).to(device)
        self.W_enc_T = self.W_dec.clone()
        self.b_dec = torch.zeros(config.d_in, device=device)
        self.scale = torch.ones((), device=device)
        self.variance = torch.ones((), device=device)
        self.unused = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        """Vectors since a feature was last active."""
        self.parameters = {"W_enc_T": self.W_enc_T, "W_dec": self.W_dec, "b_dec": self.b_dec}

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Return the parameters, what `start` measured, and the count of unused vectors."""
        return {
            **self.parameters,
            "scale": self.scale,
            "variance": self.variance,
            "unused": self.unused,
        }

    def start(self, first: Float[Tensor, "batch d_in"]) -> None:
        """Measure the scale and the variance of the first activations, and set b_dec."""
        if self.config.layer_norm:
            self.scale.fill_((self.config.d_in - 1) ** -0.5)
        else:
            self.scale.copy_(first.square().sum(1).mean().rsqrt())
        inputs = self._inputs(first)
        self.variance.copy_((inputs - inputs.mean(0)).square().sum(1).mean())
        self.b_dec.copy_(geometric_median(inputs))

    def _inputs(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        return (normalised(x)[0] if self.config.layer_norm else x) * self.scale

    def _before(self, centred: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        return centred.to(self.matmul) @ self.W_enc_T.to(self.matmul).T

    @torch.no_grad()
    def gradients(
        self, x: Float[Tensor, "batch d_in"], penalty: float = 1.0
    ) -> tuple[dict[str, Tensor], Measured]:
        """Return the gradients, W_dec's without its component along each decoder row.

        `penalty` has no effect.
        """
        batch, config = len(x), self.config
        inputs = self._inputs(x)
        centred = inputs - self.b_dec
        before = self._before(centred)
        values, features = top_k(before, config.k)
        f = codes_at(values.relu_(), features, config.d_sae)
        error = f.times(self.W_dec).add_(self.b_dec).sub_(inputs)
        squared = error.square().sum() / batch
        firings = f.firings()
        fired = firings > 0
        self.unused.add_(batch).masked_fill_(fired, 0)

        at_output = error * (2 / (batch * self.variance))
        slope = f.where_active(at_output, self.W_dec, plus=0.0)
        gradients = {
            "W_enc_T": slope.transposed_times(centred),
            "W_dec": f.transposed_times(at_output),
            "b_dec": at_output.sum(0) - slope.feature_sums() @ self.W_enc_T,
        }
        auxiliary = self._add_auxiliary(gradients, before, centred, error)
        remove_parallel(gradients["W_dec"], self.W_dec)
        scalars = {
            "loss": squared / self.variance + config.aux * auxiliary,
            "mse": squared / (config.d_in * self.scale.square()),  # of x, or of normalised(x)
            "aux": auxiliary,
            "l0": firings.sum() / batch,
        }
        return gradients, Measured(scalars, fired)

    def _add_auxiliary(
        self,
        gradients: dict[str, Tensor],
        before: Float[Tensor, "batch d_sae"],
        centred: Float[Tensor, "batch d_in"],
        error: Float[Tensor, "batch d_in"],
    ) -> Float[Tensor, ""]:
        """Return the auxiliary loss, and add α times its gradients."""
        dead = (self.unused >= self.config.dead_after).nonzero().squeeze(1)
        variance = (error - error.mean(0)).square().sum()
        if not self.config.aux or not len(dead) or not bool(variance > 0):
            return torch.zeros_like(variance)
        W_dec = self.W_dec[dead]
        width = min(self.config.auxiliary_width, len(dead))
        values, places = top_k(before.index_select(1, dead), width)
        f = codes_at(values.relu_(), places, len(dead))
        missing = f.times(W_dec).add_(error)  # the estimate less x̃ − x̂
        at_output = missing * (2 * self.config.aux / variance)
        slope = f.where_active(at_output, W_dec, plus=0.0)
        gradients["W_enc_T"][dead] += slope.transposed_times(centred)
        gradients["W_dec"][dead] += f.transposed_times(at_output)
        gradients["b_dec"] -= slope.feature_sums() @ self.W_enc_T[dead]
        return missing.square().sum() / variance

    def constrain(self) -> None:
        """Scale the rows of W_dec to unit length."""
        scale_to_unit(self.W_dec)

    @torch.no_grad()
    def losses(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """Return the loss of every input, the auxiliary one excepted."""
        inputs = self._inputs(x)
        values, features = top_k(self._before(inputs - self.b_dec), self.config.k)
        f = codes_at(values.relu_(), features, self.config.d_sae)
        error = f.times(self.W_dec).add_(self.b_dec).sub_(inputs)
        return error.square().sum(1) / self.variance

    def resample(
        self,
        features: Int[Tensor, " dead"],
        inputs: Float[Tensor, "dead d_in"],
        alive: Int[Tensor, " alive"],
    ) -> None:
        """Give each of `features` the direction of an input, and count its unused vectors anew.

        The paper has AuxK in place of this: a job that follows it has no resampling.
        """
        restart(features, self._inputs(inputs), alive, self.W_enc_T, self.W_dec)
        self.unused[features] = 0

    def export(self) -> Exported:
        """Return the architecture "topk" of SAELens, which takes activations as they are.

        b_dec and with it f are divided by the scale.
        """
        config = {
            "architecture": "topk",
            "d_in": self.config.d_in,
            "d_sae": self.config.d_sae,
            "k": self.config.k,
            "rescale_acts_by_decoder_norm": False,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "layer_norm" if self.config.layer_norm else "none",
            "reshape_activations": "none",
        }
        tensors = {
            "W_enc": self.W_enc_T.T.contiguous(),
            "b_enc": torch.zeros(self.config.d_sae),
            "W_dec": self.W_dec,
            "b_dec": self.b_dec / self.scale,
        }
        return Exported(config, {name: t.cpu().clone() for name, t in tensors.items()})


class TopKWeights(NamedTuple):
    """f = ReLU(TopK((x − b_dec) W_enc + b_enc)), x̂ = f W_dec + b_dec.

    With `layer_norm`, x is `normalised` first and x̂ brought back in the end.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    k: int
    layer_norm: bool = False

    @classmethod
    def from_export(cls, exported: Exported) -> TopKWeights:
        """Return what is exported as a TopK autoencoder.

        One that does not subtract b_dec from its input has b_enc changed to the same effect.
        """
        tensors, config = exported.tensors, exported.config
        W_enc, b_enc, b_dec = tensors["W_enc"], tensors["b_enc"], tensors["b_dec"]
        return cls(
            W_enc=W_enc,
            b_enc=b_enc if config["apply_b_dec_to_input"] else b_enc + b_dec @ W_enc,
            W_dec=tensors["W_dec"],
            b_dec=b_dec,
            k=config["k"],
            layer_norm=config["normalize_activations"] == "layer_norm",
        )

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the feature activations."""
        inputs = normalised(x)[0] if self.layer_norm else x
        z = (inputs - self.b_dec) @ self.W_enc + self.b_enc
        values, features = top_k(z.reshape(-1, z.shape[-1]), self.k)
        f = z.new_zeros(len(values), z.shape[-1]).scatter_(1, features, values.relu())
        return f.view(z.shape)

    def decode(
        self,
        f: Float[Tensor, "*batch d_sae"],
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction.

        Args:
            f: activations of features.
            x: the inputs that they stand for; needed with `layer_norm`, since their means and
                deviations are no part of f.
        """
        x_hat = f @ self.W_dec + self.b_dec
        if not self.layer_norm:
            return x_hat
        if x is None:
            raise ValueError("an autoencoder with layer_norm needs its inputs to decode")
        statistics = normalised(x)[1]
        return x_hat * statistics.deviation + statistics.mean
