"""Resampling dead features (Towards Monosemanticity, appendix on training autoencoders)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from shared.experiment import Config
from shared.saes.architecture import Architecture
from shared.training.adam import Adam

Share = Annotated[float, Field(gt=0, lt=1)]


class Resampling(Config):
    """When to resample, and on how many inputs to look for what is reconstructed badly.

    The defaults are the paper's: steps 25k, 50k, 75k and 100k of a million, on 819,200 inputs,
    which are held in memory meanwhile.
    """

    at: tuple[Share, ...] = (0.025, 0.05, 0.075, 0.1)
    """Shares of training."""
    inputs: int = Field(default=819_200, ge=1, le=2**24)
    """Rounded up to whole batches."""


def dead_features(
    last_fired: Int[Tensor, " d_sae"], done: int, window: int
) -> Bool[Tensor, " d_sae"]:
    """Return which features fired in none of the last `window` of `done` steps.

    `last_fired` counts steps from 1; it is 0 for a feature that never fired.
    """
    return last_fired <= done - window


def sampling_weights(
    losses: Float[Tensor, " inputs"], inputs: Float[Tensor, "inputs d_in"]
) -> Float[Tensor, " inputs"]:
    """Return the squared losses, to which the probability of being drawn is proportional.

    Inputs that are all zero have no direction and are never drawn.
    """
    return losses.double().square() * inputs.any(1)


def resample(
    sae: Architecture,
    adam: Adam,
    dead: Bool[Tensor, " d_sae"],
    batches: list[Float[Tensor, "_ d_in"]],
    generator: torch.Generator,
) -> Int[Tensor, " resampled"]:
    """Let every dead feature start again on an input drawn for it, and forget Adam's state of it.

    Returns:
        The features that started again: the dead ones, or none where every input is zero or
        some loss is not finite.
    """
    features = dead.nonzero().squeeze(1)
    inputs = torch.cat(batches)
    weights = sampling_weights(torch.cat([sae.losses(batch) for batch in batches]), inputs).cpu()
    if not len(features) or not 0 < float(weights.sum()) < math.inf:
        return features[:0]
    chosen = torch.multinomial(weights, len(features), replacement=True, generator=generator)
    sae.resample(features, inputs[chosen.to(inputs.device)], alive=(~dead).nonzero().squeeze(1))
    adam.reset(sae.per_feature, features)
    return features
