"""Feature activations of a batch, and the products that training needs of them.

Once an autoencoder is sparse, 99% of its activations are zero, and so is the gradient there. On a
CPU, products over the others alone are exact and an order of magnitude faster than dense ones, so
that encoding is all that is left of the cost of a step. Where too many are active, as in the first
steps, the products are dense. `codes_of` and `codes_at` choose, and all kinds have the same
operations. Arithmetic entry by entry is done on `entries`, which `with_entries` takes back.

On CUDA, `codes_at` has a sparse kind of its own. `codes_of` is always dense there, since the host
would have to wait for the number of active entries.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

SPARSE_BELOW = 0.08
"""Share of active entries under which sparse products are faster, measured at d_in = 512."""
SPARSE_BELOW_CUDA = 0.002
"""The same on CUDA: an estimate, not measured yet. `benchmarks.sparse_decoding` measures it.

Of a product, an entry reads 4 d_in bytes if it is sparse and is 2 d_in operations if it is dense:
at 2.5 TB/s and 600 · 10¹² bfloat16 operations per second, one as fast as the other at this share.
"""
PIECE = 256
"""Entries of one feature that one CUDA thread adds up, whatever the number of its entries."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes

with warnings.catch_warnings():  # torch says once that its CSR tensors are in beta
    warnings.filterwarnings("ignore", "Sparse CSR tensor support")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


@dataclass(frozen=True)
class DenseCodes:
    """Activations ≥ 0 as a matrix, in the precision of the matrix products."""

    f: Float[Tensor, "batch d_sae"]

    @property
    def entries(self) -> Float[Tensor, "batch d_sae"]:
        """Return the entries that codes with the same support may hold other values in: all."""
        return self.f

    def with_entries(self, entries: Float[Tensor, "batch d_sae"]) -> DenseCodes:
        """Return other values in the places of `entries`."""
        return DenseCodes(entries)

    def by_entry(self, vector: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """Return a number per feature so that it broadcasts with `entries`, in their precision."""
        return vector.to(self.f.dtype)

    def times(self, matrix: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
        """Return f · matrix in float32."""
        return (self.f @ matrix.to(self.f.dtype)).float()

    def transposed_times(self, rows: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
        """Return fᵀ · rows in float32."""
        return (self.f.T @ rows.to(self.f.dtype)).float()

    def where_active(
        self,
        rows: Float[Tensor, "batch d"],
        matrix: Float[Tensor, "d_sae d"],
        plus: float,
    ) -> DenseCodes:
        """Return rows · matrixᵀ + plus where f is not zero, and zero elsewhere."""
        product = (rows.to(self.f.dtype) @ matrix.to(self.f.dtype).T).add_(plus)
        return DenseCodes(torch.ops.aten.threshold_backward(product, self.f, 0))

    def feature_sums(self) -> Float[Tensor, " d_sae"]:
        """Return the sum over the batch."""
        return self.f.sum(0, dtype=torch.float32)

    def row_sums(self) -> Float[Tensor, " batch"]:
        """Return the sum over features."""
        return self.f.sum(1, dtype=torch.float32)

    def firings(self) -> Float[Tensor, " d_sae"]:
        """Return in how many rows each feature is active."""
        return self.f.sign().sum(0, dtype=torch.float32)


@dataclass(frozen=True)
class SparseCodes:
    """Activations that are not zero, row by row, and how to read them feature by feature.

    Those that `with_entries` returns may be zero, or negative where they are gradients.
    """

    values: Float[Tensor, " active"]
    rows: Int[Tensor, " active"]
    features: Int[Tensor, " active"]
    row_starts: Int[Tensor, " rows_and_one"]
    by_feature: Int[Tensor, " active"]
    feature_starts: Int[Tensor, " features_and_one"]

    @property
    def entries(self) -> Float[Tensor, " active"]:
        """Return the entries that codes with the same support may hold other values in."""
        return self.values

    def with_entries(self, entries: Float[Tensor, " active"]) -> SparseCodes:
        """Return other values in the places of `entries`."""
        return replace(self, values=entries)

    def by_entry(self, vector: Float[Tensor, " d_sae"]) -> Float[Tensor, " active"]:
        """Return a number per feature so that it broadcasts with `entries`."""
        return vector[self.features]

    def times(self, matrix: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
        """Return f · matrix."""
        return _weighted_sums(self.features, self.values, self.row_starts, matrix)

    def transposed_times(self, rows: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
        """Return fᵀ · rows."""
        order = self.by_feature
        return _weighted_sums(self.rows[order], self.values[order], self.feature_starts, rows)

    def where_active(
        self,
        rows: Float[Tensor, "batch d"],
        matrix: Float[Tensor, "d_sae d"],
        plus: float,
    ) -> SparseCodes:
        """Return rows · matrixᵀ + plus where f is not zero, and zero elsewhere."""
        shape = (len(rows), len(matrix))
        pattern = torch.sparse_csr_tensor(
            self.row_starts, self.features, self.values, shape, check_invariants=False
        )
        products = torch.sparse.sampled_addmm(pattern, rows, matrix.T, beta=0.0).values()
        return self.with_entries(
            torch.ops.aten.threshold_backward(products.add_(plus), self.values, 0)
        )

    def feature_sums(self) -> Float[Tensor, " d_sae"]:
        """Return the sum over the batch."""
        size = len(self.feature_starts) - 1
        return torch.bincount(self.features, self.values, size).to(self.values.dtype)

    def row_sums(self) -> Float[Tensor, " batch"]:
        """Return the sum over features."""
        size = len(self.row_starts) - 1
        return torch.bincount(self.rows, self.values, size).to(self.values.dtype)

    def firings(self) -> Float[Tensor, " d_sae"]:
        """Return in how many rows each feature is active."""
        size = len(self.feature_starts) - 1
        return torch.bincount(self.features, self.values != 0, size).float()


@dataclass(frozen=True)
class EvenCodes:
    """As many activations in every row, for CUDA.

    No size depends on the values, so that the host need not wait for them. Sums over a feature's
    entries are in two steps, over pieces of at most `PIECE` entries and over its pieces: a feature
    that is active in every row would keep one thread busy long after all others have finished.
    """

    values: Float[Tensor, "batch k"]
    features: Int[Tensor, "batch k"]
    by_feature: Int[Tensor, " active"]
    feature_starts: Int[Tensor, " features_and_one"]
    piece_starts: Int[Tensor, " pieces_and_one"]
    first_pieces: Int[Tensor, " features_and_one"]

    @classmethod
    def of(
        cls, values: Float[Tensor, "batch k"], features: Int[Tensor, "batch k"], d_sae: int
    ) -> EvenCodes:
        """Return the codes that `codes_at` describes. There is at least one value."""
        device = values.device
        numbers = torch.arange(d_sae + 1, dtype=torch.int32, device=device)
        # Half as many bits take half the time to sort.
        keys, by_feature = torch.sort(features.reshape(-1).to(torch.int32), stable=True)
        feature_starts = torch.searchsorted(keys, numbers)
        cuts = torch.arange(0, features.numel(), PIECE, device=device)
        piece_starts = torch.cat([feature_starts, cuts]).sort().values
        first_pieces = torch.searchsorted(piece_starts, feature_starts)
        return cls(values.float(), features, by_feature, feature_starts, piece_starts, first_pieces)

    @property
    def entries(self) -> Float[Tensor, "batch k"]:
        """Return the entries that codes with the same support may hold other values in."""
        return self.values

    def with_entries(self, entries: Float[Tensor, "batch k"]) -> EvenCodes:
        """Return other values in the places of `entries`."""
        return replace(self, values=entries)

    def by_entry(self, vector: Float[Tensor, " d_sae"]) -> Float[Tensor, "batch k"]:
        """Return a number per feature so that it broadcasts with `entries`."""
        return vector[self.features]

    def times(self, matrix: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
        """Return f · matrix."""
        return embedding_bag(self.features, matrix, mode="sum", per_sample_weights=self.values)

    def transposed_times(self, rows: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
        """Return fᵀ · rows."""
        order = self.by_feature
        rows_of = order // self.values.shape[1]
        pieces = _weighted_sums(rows_of, self.values.reshape(-1)[order], self.piece_starts, rows)
        return torch.segment_reduce(pieces, "sum", offsets=self.first_pieces, unsafe=True)

    def where_active(
        self,
        rows: Float[Tensor, "batch d"],
        matrix: Float[Tensor, "d_sae d"],
        plus: float,
    ) -> EvenCodes:
        """Return rows · matrixᵀ + plus where f is not zero, and zero elsewhere."""
        places = torch.arange(self.values.numel(), device=rows.device)
        k = self.values.shape[1]
        # The gradient of `times` for its weights: it takes no memory for the rows it reads.
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows, matrix, self.features.reshape(-1), places[::k], places // k, 0
        )
        products = products.view_as(self.values).add_(plus)
        return self.with_entries(torch.ops.aten.threshold_backward(products, self.values, 0))

    def feature_sums(self) -> Float[Tensor, " d_sae"]:
        """Return the sum over the batch."""
        values = self.values.reshape(-1)[self.by_feature]
        return torch.segment_reduce(values, "sum", offsets=self.feature_starts, unsafe=True)

    def row_sums(self) -> Float[Tensor, " batch"]:
        """Return the sum over features."""
        return self.values.sum(1)

    def firings(self) -> Float[Tensor, " d_sae"]:
        """Return in how many rows each feature is active."""
        return self.with_entries((self.values != 0).float()).feature_sums()


Codes = DenseCodes | SparseCodes | EvenCodes


def _weighted_sums(
    index: Int[Tensor, " active"],
    weights: Float[Tensor, " active"],
    starts: Int[Tensor, " sums_and_one"],
    matrix: Float[Tensor, "rows d"],
) -> Float[Tensor, "_ d"]:
    """Return Σ weights_k · matrix[index_k] over each stretch of k that `starts` delimits."""
    return embedding_bag(
        index, matrix, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def codes_of(f: Float[Tensor, "batch d_sae"]) -> Codes:
    """Return activations ≥ 0 (float32 or bfloat16, contiguous) in the form that is faster."""
    if f.device.type != "cpu" or not f.numel():
        return DenseCodes(f)
    # Look at eight bytes at a time, since nearly all are zero; at single entries if some are over.
    size = f.element_size()
    each = 8 // size if f.numel() % (8 // size) == 0 else 1
    flat = f.view(-1)
    occupied = flat.view(INTEGERS[each * size]).numpy() != 0
    if np.count_nonzero(occupied) > SPARSE_BELOW * f.numel():
        return DenseCodes(f)
    found = torch.from_numpy(np.flatnonzero(occupied))
    entries = flat.view(-1, each)[found]
    active = torch.nonzero(entries.view(-1)).squeeze(1)
    values = entries.view(-1)[active].float()
    word = active // each
    places = active + (found[word] - word) * each
    batch, d_sae = f.shape
    rows = places // d_sae
    features = places - rows * d_sae
    return _sparse(values, rows, features, (batch, d_sae))


def codes_at(
    values: Float[Tensor, "batch k"], features: Int[Tensor, "batch k"], d_sae: int
) -> Codes:
    """Return codes that are `values` ≥ 0 at the `features` of each row, which differ, and else 0.

    The form is the faster one, whatever the values.
    """
    batch, k = values.shape
    if values.device.type == "cuda" and values.numel() and k <= SPARSE_BELOW_CUDA * d_sae:
        return EvenCodes.of(values, features, d_sae)
    if values.device.type != "cpu" or not values.numel() or k > SPARSE_BELOW * d_sae:
        return DenseCodes(values.new_zeros(batch, d_sae).scatter_(1, features, values))
    rows = torch.arange(batch).repeat_interleave(k)
    return _sparse(values.reshape(-1).float(), rows, features.reshape(-1), (batch, d_sae))


def _sparse(
    values: Float[Tensor, " active"],
    rows: Int[Tensor, " active"],
    features: Int[Tensor, " active"],
    shape: tuple[int, int],
) -> SparseCodes:
    """Return codes of this shape, given their entries row by row."""
    batch, d_sae = shape
    keys = features.numpy()
    # NumPy sorts 16-bit integers in linear time.
    by_feature = np.argsort(keys.astype(np.uint16) if d_sae <= 2**16 else keys, kind="stable")
    return SparseCodes(
        values=values,
        rows=rows,
        features=features,
        row_starts=_starts(rows, batch),
        by_feature=torch.from_numpy(by_feature),
        feature_starts=_starts(features, d_sae),
    )


def _starts(groups: Int[Tensor, " active"], count: int) -> Int[Tensor, " {count}+1"]:
    """Return where each of `count` groups starts once the entries are in the order of groups."""
    starts = torch.zeros(count + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(groups, minlength=count), 0, out=starts[1:])
    return starts
