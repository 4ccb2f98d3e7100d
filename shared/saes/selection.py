"""The largest entries of every row."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUPS_PER_ENTRY = 4
"""Groups for each entry that is looked for: the more, the fewer entries pass without need."""
GROUP_SIZES = (64, 32, 16, 8, 4)
"""From the best; with smaller ones, looking at them saves nothing."""


def top_k(
    z: Float[Tensor, "batch d"], k: int
) -> tuple[Float[Tensor, "batch {k}"], Int[Tensor, "batch {k}"]]:
    """Return the k largest entries of every row and where they stand, in any order.

    The entries are those of torch.topk (which of equal ones is open), which takes up to three times
    as long on a CPU. Here the k-th largest of the maxima of groups is a bound that at least k
    entries reach, and not many more. Only they are sorted.

    Args:
        z: contiguous, float32 or bfloat16.
        k: from 1 to d.
    """
    batch, d = z.shape
    fitting = [s for s in GROUP_SIZES if d % s == 0 and d >= s * k * GROUPS_PER_ENTRY]
    if z.device.type != "cpu" or not fitting or not batch:
        return torch.topk(z, k, dim=1, sorted=False)
    size = fitting[0]
    maxima = z.view(batch, size, d // size).amax(1).float().numpy()
    if np.isnan(maxima).any():  # not even equal to itself, but larger than all for torch.topk
        return torch.topk(z, k, dim=1, sorted=False)
    bound = torch.from_numpy(np.sort(maxima, axis=1)[:, -k, None]).to(z.dtype)
    found = torch.from_numpy(np.flatnonzero((z >= bound).numpy()))
    rows = found // d
    counts = torch.bincount(rows, minlength=batch)
    # The candidates of a row in a row, in their order.
    slots = torch.arange(len(found)) - (counts.cumsum(0) - counts)[rows]
    shape = (batch, int(counts.max()))
    candidates = torch.full(shape, -torch.inf)
    candidates[rows, slots] = z.view(-1)[found].float()
    least = torch.from_numpy(np.sort(candidates.numpy(), axis=1)[:, -k, None])
    larger = candidates > least
    equal = candidates == least
    chosen = larger | (equal & (equal.cumsum(1) <= k - larger.sum(1, keepdim=True)))
    kept = found[chosen[rows, slots]].view(batch, k)
    return z.view(-1)[kept], kept % d
