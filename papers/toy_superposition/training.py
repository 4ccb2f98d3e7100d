"""Training many toy models as one tensor, scoring them, and keeping the best of each group.

The paper states no optimiser, learning rate, batch size or number of steps; the notebook uses
AdamW at a constant 1e-3, batches of 1024, 10,000 steps. Each experiment's parameters say what it
uses. Restarts are ranked by an evaluation on inputs that no training saw, and the loss reported
for the winner comes from a third set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from papers.toy_superposition.inputs import Inputs
from papers.toy_superposition.models import ToyModels, concatenate
from shared.errors import Diverged
from shared.experiment import Config
from shared.memory import keep_freed_memory
from shared.progress import progress

# Features by batch by instances that one pass may hold on a CPU: about what its cache holds.
CPU_ELEMENTS = 2**22
CHECK_EVERY = 100
BETAS, EPSILON = (0.9, 0.999), 1e-8  # the defaults of PyTorch, which the notebook uses

Observe = Callable[[int, ToyModels], None]


class Recipe(Config):
    """How to train: Adam with decoupled weight decay."""

    steps: int
    lr: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0


def generator(seed: int, stream: int, device: str) -> torch.Generator:
    """Return an independent random stream; `stream` names its use (0 initialisation, ...)."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + stream)


def train(
    models: ToyModels,
    inputs: Inputs,
    recipe: Recipe,
    seed: int,
    label: str,
    observe: Observe | None = None,
    observe_every: int = 1,
) -> ToyModels:
    """Train all models; instance i belongs to group i // (instances / groups).

    Models too many for one pass are trained in slices of every group, on the same batches, so
    that the slicing changes nothing. `observe(step, models)` sees the weights before step 0, every
    `observe_every` steps and after the last; it needs all models in one pass.

    Raises:
        Diverged: a weight is not finite.
    """
    keep_freed_memory()
    slices = _slices(models, inputs) if observe is None else [torch.arange(len(models.W))]
    parts = []
    with progress(label, recipe.steps * len(slices)) as advance:
        for index in slices:
            part = models.select(index.to(models.W.device))
            _train_slice(part, inputs, recipe, seed, label, advance, observe, observe_every)
            parts.append(part)
    order = torch.cat(slices).argsort()
    return concatenate(parts).select(order.to(models.W.device))


def _slices(models: ToyModels, inputs: Inputs) -> list[Int[Tensor, " slice"]]:
    """Split the restarts of every group alike, so that each slice fits the processor's cache."""
    instances, _, n = models.W.shape
    restarts = instances // inputs.groups
    table = torch.arange(instances).view(inputs.groups, restarts)
    if models.W.is_cuda:
        return [table.flatten()]
    batch = inputs.sample(torch.Generator().manual_seed(0)).x.shape[-1]
    per_slice = max(1, CPU_ELEMENTS // (inputs.groups * n * batch))
    cuts = tuple(range(per_slice, restarts, per_slice))
    return [part.flatten() for part in table.tensor_split(cuts, dim=1)]


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter), the same as torch.optim.AdamW.

    Written out because creating any torch.optim optimiser imports torch's compiler, which takes
    longer than a small experiment.
    """

    def __init__(self, parameters: list[Tensor], recipe: Recipe):
        self.parameters = parameters
        self.recipe = recipe
        self.mean = [torch.zeros_like(tensor) for tensor in parameters]
        self.square = [torch.zeros_like(tensor) for tensor in parameters]
        self.steps = 0

    def step(self, gradients: list[Tensor]) -> None:
        """Move the parameters, given their gradients in the same order."""
        recipe, (beta1, beta2) = self.recipe, BETAS
        lr = recipe.lr
        if recipe.schedule == "cosine":
            lr *= (1 + math.cos(math.pi * self.steps / recipe.steps)) / 2
        self.steps += 1
        rate = lr / (1 - beta1**self.steps)
        correction = math.sqrt(1 - beta2**self.steps)
        for tensor, gradient, mean, square in zip(
            self.parameters, gradients, self.mean, self.square, strict=True
        ):
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            tensor.mul_(1 - lr * recipe.weight_decay)
            tensor.addcdiv_(mean, square.sqrt().div_(correction).add_(EPSILON), value=-rate)


def _train_slice(
    models: ToyModels,
    inputs: Inputs,
    recipe: Recipe,
    seed: int,
    label: str,
    advance: Callable[[int], None],
    observe: Observe | None,
    observe_every: int,
) -> None:
    """Train in place."""
    stream = generator(seed, 1, models.W.device.type)
    optimizer = AdamW(models.parameters, recipe)
    for step in range(recipe.steps):
        if observe is not None and step % observe_every == 0:
            observe(step, models)
        gradients = models.gradients(inputs.sample(stream))
        optimizer.step([gradient for gradient in gradients if gradient is not None])
        done = step + 1
        if done % CHECK_EVERY == 0 or done == recipe.steps:
            if not all(bool(tensor.isfinite().all()) for tensor in models.parameters):
                raise Diverged(f"{label}: weights are not finite after {done} steps")
            advance((done - 1) % CHECK_EVERY + 1)
    if observe is not None:
        observe(recipe.steps, models)


def score(
    models: ToyModels, inputs: Inputs, batches: int, seed: int, stream: int
) -> Float[Tensor, " instances"]:
    """Return each model's loss on `batches` fresh batches, in float64.

    Use different `stream` numbers (2 and above) to rank models and to report the winner.
    """
    source = generator(seed, stream, models.W.device.type)
    slices = _slices(models, inputs)
    total = torch.zeros(len(models.W), dtype=torch.float64, device=models.W.device)
    parts = [models.select(index.to(models.W.device)) for index in slices]
    for _ in range(batches):
        batch = inputs.sample(source)
        for index, part in zip(slices, parts, strict=True):
            total[index.to(total.device)] += part.losses(batch).double()
    return total / batches


def best(losses: Float[Tensor, " instances"], groups: int, keep: int = 1) -> Int[Tensor, " kept"]:
    """Return the indices of the `keep` lowest losses of every group, the lowest first."""
    table = losses.view(groups, -1)
    order = table.argsort(dim=1)[:, :keep]
    offset = torch.arange(groups, device=losses.device)[:, None] * table.shape[1]
    return (order + offset).flatten()
