"""Adam, with state that can be reset entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

EPSILON = 1e-8


class Adam:
    """The same numbers as torch.optim.Adam(fused=True), which imports torch's compiler first.

    Args:
        parameters: contiguous float32 tensors, changed in place.
        lr: the learning rate.
        betas: the share of either moment that a step keeps.
        epsilon: added to the root of the second moment.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = EPSILON,
    ):
        self.parameters = parameters
        self.lr = lr
        self.betas = betas
        self.epsilon = epsilon
        self.mean = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.square = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        device = next(iter(parameters.values())).device
        self.steps = {name: torch.zeros((), device=device) for name in parameters}

    @property
    def state(self) -> dict[str, Tensor]:
        """Return all tensors that a step changes, the parameters excepted."""
        kinds = {"mean": self.mean, "square": self.square, "steps": self.steps}
        return {
            f"{kind}.{name}": tensors[name] for kind, tensors in kinds.items() for name in tensors
        }

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Move every parameter, given its gradient, at `scale` times the learning rate."""
        names = list(self.parameters)
        for steps in self.steps.values():
            steps += 1
        torch._fused_adam_(
            [self.parameters[name] for name in names],
            # The fused kernel walks memory and would mix up the entries of any other layout.
            [gradients[name].contiguous() for name in names],
            [self.mean[name] for name in names],
            [self.square[name] for name in names],
            [],
            [self.steps[name] for name in names],
            lr=self.lr * scale,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )

    def reset(self, names: Iterable[str], rows: Int[Tensor, " rows"]) -> None:
        """Forget both moments of some rows of some parameters."""
        for name in names:
            self.mean[name][rows] = 0
            self.square[name][rows] = 0
