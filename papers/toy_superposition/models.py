"""The paper's toy models, many at once, with their gradients by hand.

A model maps x to y = ReLU(W' relu?(W x) + b) and is scored by the importance-weighted squared
error, summed over features and averaged over the distribution (section "Demonstrating
Superposition"; notebook: the mean over features, a factor that Adam ignores). Gradients are
written out because toy training is the hot path: no graph, three passes over the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from papers.toy_superposition.inputs import Batch


@dataclass(frozen=True)
class Architecture:
    """Which of the paper's models: the default is the ReLU output model x' = ReLU(WᵀWx + b)."""

    hidden_relu: bool = False
    """Sections on privileged bases and computation: h = ReLU(Wx), without a hidden bias."""
    output_relu: bool = True
    """False: the linear model."""
    tied: bool = True
    """False: the absolute-value model, whose output weights are its own."""
    bias: bool = True
    """False: McGrath's bias-free comment."""
    absolute: bool = False
    """The target is |x| instead of x."""


class Gradients(NamedTuple):
    """Gradients of each model's own loss."""

    W: Float[Tensor, "instances m n"]
    b: Float[Tensor, "instances n"] | None
    W_out: Float[Tensor, "instances n m"] | None


@dataclass(frozen=True)
class ToyModels:
    """`instances` independent models as one batched tensor; `importance` is I_i of the loss."""

    architecture: Architecture
    W: Float[Tensor, "instances m n"]
    b: Float[Tensor, "instances n"]
    importance: Float[Tensor, "instances n"]
    W_out: Float[Tensor, "instances n m"] | None = None

    @property
    def decoder(self) -> Float[Tensor, "instances n m"]:
        """The output weights: Wᵀ, or the model's own if untied."""
        return self.W.mT if self.W_out is None else self.W_out

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        tensors = [self.W, self.b] if self.architecture.bias else [self.W]
        return tensors if self.W_out is None else [*tensors, self.W_out]

    def select(self, index: Int[Tensor, " kept"]) -> ToyModels:
        """Return copies of some of the models."""
        return replace(
            self,
            W=self.W[index].clone(),
            b=self.b[index].clone(),
            importance=self.importance[index],
            W_out=None if self.W_out is None else self.W_out[index].clone(),
        )

    def hidden(self, x: Float[Tensor, "groups n batch"]) -> Float[Tensor, "instances m batch"]:
        """Return the hidden activations, before their ReLU if there is one."""
        instances, m, n = self.W.shape
        # One matrix product for all models of a group, since they share their inputs.
        joint = self.W.reshape(len(x), -1, n) @ x
        return joint.view(instances, m, -1)

    def output(self, x: Float[Tensor, "groups n batch"]) -> Float[Tensor, "instances n batch"]:
        """Return the reconstructions."""
        z = self.hidden(x)
        h = z.relu() if self.architecture.hidden_relu else z
        a = torch.baddbmm(self.b[:, :, None], self.decoder, h)
        return a.relu_() if self.architecture.output_relu else a

    def target(self, x: Float[Tensor, "groups n batch"]) -> Float[Tensor, "groups 1 n batch"]:
        """Return what the output is compared with, one for all models of a group."""
        return (x.abs() if self.architecture.absolute else x)[:, None]

    def losses(self, batch: Batch) -> Float[Tensor, " instances"]:
        """Return each model's loss: sum_i I_i (x_i - x'_i)^2, averaged by the batch's weights."""
        instances, _, n = self.W.shape
        groups = len(batch.x)
        y = self.output(batch.x).view(groups, instances // groups, n, -1)
        per_feature = (y - self.target(batch.x)).square() @ batch.weight[:, None, :, None]
        return (per_feature.view(instances, n) * self.importance).sum(1)

    def gradients(self, batch: Batch) -> Gradients:
        """Return the gradients of `losses`, each model's with respect to its own parameters.

        Weights and importances enter through the small tensors (hidden by batch, hidden by
        feature), so that features by batch is passed over three times only.
        """
        instances, m, n = self.W.shape
        groups = len(batch.x)
        z = self.hidden(batch.x)
        h = z.relu() if self.architecture.hidden_relu else z
        y = torch.baddbmm(self.b[:, :, None], self.decoder, h)
        if self.architecture.output_relu:
            y.relu_()
        shared = (groups, instances // groups, n, -1)
        error = (y.view(shared) - self.target(batch.x)).view(instances, n, -1)
        if self.architecture.output_relu:
            error = torch.ops.aten.threshold_backward(error, y, 0)

        weight = batch.weight.repeat_interleave(instances // groups, dim=0)[:, None, :]
        scale = 2 * self.importance[:, :, None]
        # The bias is the output weight of a hidden unit that is always one.
        g_out_b = error @ torch.cat([h * weight, weight], dim=1).mT * scale
        g_out, g_b = g_out_b[:, :, :m], g_out_b[:, :, m]
        g_z = (self.decoder * scale).mT @ error * weight
        if self.architecture.hidden_relu:
            g_z = torch.ops.aten.threshold_backward(g_z, z, 0)
        joint = g_z.view(groups, -1, g_z.shape[-1]) @ batch.x.mT
        g_in = joint.view(instances, m, n)
        bias = g_b if self.architecture.bias else None
        if self.W_out is None:
            return Gradients(g_in.add_(g_out.mT), bias, None)
        return Gradients(g_in, bias, g_out)


def create(
    architecture: Architecture,
    instances: int,
    n: int,
    m: int,
    generator: torch.Generator,
    importance: Tensor | None = None,
    std: float | None = None,
) -> ToyModels:
    """Initialise models: W ~ N(0, std^2), b = 0.

    `std` defaults to Xavier's sqrt(2/(n+m)) of a single model. `importance` broadcasts to
    [instances, n] and defaults to 1. The device is the generator's.
    """
    device = generator.device
    std = math.sqrt(2 / (n + m)) if std is None else std

    def normal(*shape: int) -> Tensor:
        return std * torch.randn(*shape, generator=generator, device=device)

    weights = torch.ones(()) if importance is None else importance
    return ToyModels(
        architecture,
        W=normal(instances, m, n),
        b=torch.zeros(instances, n, device=device),
        importance=weights.float().to(device).expand(instances, n),
        W_out=None if architecture.tied else normal(instances, n, m),
    )


def concatenate(parts: list[ToyModels]) -> ToyModels:
    """Join models of one architecture and size, in the order given."""
    untied = [part.W_out for part in parts if part.W_out is not None]
    return ToyModels(
        parts[0].architecture,
        W=torch.cat([part.W for part in parts]),
        b=torch.cat([part.b for part in parts]),
        importance=torch.cat([part.importance for part in parts]),
        W_out=torch.cat(untied) if untied else None,
    )
