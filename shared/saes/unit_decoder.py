"""What autoencoders whose decoder rows have unit length have in common."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.saes.architecture import SaeConfig

RESAMPLED_NORM = 0.2
"""Length of a resampled encoder vector, in mean lengths of those alive (Bricken et al. 2023)."""


def random_directions(config: SaeConfig) -> Float[Tensor, "d_sae d_in"]:
    """Return a direction per feature, by the seed: He-uniform rows scaled to unit length.

    The bound of the uniform distribution has no influence on the directions.
    """
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.rand((config.d_sae, config.d_in), generator=generator).mul_(2).sub_(1)
    scale_to_unit(rows)
    return rows


def scale_to_unit(rows: Float[Tensor, "rows d"]) -> None:
    """Scale every row to unit length, in place."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))


def remove_parallel(gradient: Float[Tensor, "rows d"], unit: Float[Tensor, "rows d"]) -> None:
    """Take from every row of the gradient its component along a row of unit length, in place."""
    gradient.addcmul_(unit, torch.linalg.vecdot(gradient, unit)[:, None], value=-1)


def restart(
    features: Int[Tensor, " dead"],
    inputs: Float[Tensor, "dead d_in"],
    alive: Int[Tensor, " alive"],
    W_enc_T: Float[Tensor, "d_sae d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> None:
    """Give each of `features` the direction of an input, in place.

    The decoder row gets unit length, the encoder column 0.2 times the mean length of those alive
    (of all where none is).
    """
    directions = inputs / torch.linalg.vector_norm(inputs, dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(W_enc_T, dim=1)
    typical = lengths[alive].mean() if len(alive) else lengths.mean()
    W_dec[features] = directions
    W_enc_T[features] = directions * (RESAMPLED_NORM * typical)
