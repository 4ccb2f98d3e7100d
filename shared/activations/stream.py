"""A shuffled stream of a language model's activations, for training on.

The order is a function of the seed alone. The contexts are permuted once. One after another, in
that order, they give their activations at every position but the first (which carries no text). The
first `buffer * batch` vectors are dealt out at random among the first `buffer` batches, the next
ones among the next batches, and so on. No vector comes twice, memory is constant, and batch number
t can be had without most of those before it. A batch is thus a random choice from the contexts of
its buffer, which are themselves a random sample of the text. Inside a batch the rows follow the
order of the contexts, so a part of a batch is no random sample, and a whole one is.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shared.activations.sites import Site, read, width
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.language_models.load import LanguageModel
from shared.memory import keep_freed_memory

Vectors = dict[Site, Float[Tensor, "vectors _"]]


@dataclass(frozen=True, eq=False)
class ActivationStream:
    """Batches of activation vectors at some sites of a model.

    Row r of a batch belongs to the same token at every site. `len` is the number of batches that
    the contexts hold without repetition.

    Args:
        batch: vectors in a batch.
        buffer: batches that are mixed with each other; two buffers are held in memory.
        block: contexts that go through the model together.
        bfloat16: whether the model's matrix products are in bfloat16; batches are float32 always.

    Raises:
        UserError: the model lacks a site or cannot read the contexts, or these are too few.
    """

    model: LanguageModel
    contexts: Contexts
    sites: tuple[Site, ...]
    batch: int
    seed: int
    buffer: int = 16
    block: int = 16
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for site in self.sites:
            width(self.model, site)
        length = self.contexts.tokens.shape[1]
        if length > self.model.n_ctx:
            raise UserError(
                f"{self.model.name} reads up to {self.model.n_ctx} tokens, and the contexts have "
                f"{length}: build the corpus with shorter ones"
            )
        if not len(self):
            raise UserError(
                f"batches of {self.batch} vectors, and the text has {self._vectors}: "
                f"choose a smaller batch or more text"
            )
        if (largest := int(self.contexts.tokens.max())) >= self.model.d_vocab:
            raise UserError(
                f"{self.model.name} knows {self.model.d_vocab} tokens, and the text has token "
                f"{largest}: build the corpus with the model's own tokenizer"
            )

    @property
    def _vectors(self) -> int:
        return len(self.contexts) * (self.contexts.tokens.shape[1] - 1)

    def __len__(self) -> int:
        return self._vectors // self.batch

    def __iter__(self) -> Iterator[Vectors]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Vectors]:
        """Return the batches from number `start` up to number `stop`, all by default.

        The next buffer is filled by a thread while the batches of this one are used; the thread
        ends when the iterator is exhausted, closed or dropped.

        Raises:
            UserError: there are fewer batches (at the call), or the model gives values that are
                not finite (while iterating).
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise UserError(
                f"batches {start} to {stop} of {self.batch} vectors, and the text has {len(self)} "
                f"without repetition: train for fewer steps, on smaller batches or on more text"
            )
        return self._batches(start, stop)

    def _batches(self, start: int, stop: int) -> Iterator[Vectors]:
        if start == stop:
            return
        keep_freed_memory()
        model = self.model.twin()  # the caller may use the model while the thread has hooks on it
        order = np.random.default_rng([self.seed, 0]).permutation(len(self.contexts))
        abandoned = Event()
        first, last = start // self.buffer, (stop - 1) // self.buffer
        with ThreadPoolExecutor(1, "activations") as thread:

            def fill(number: int) -> Future[list[Vectors]]:
                return thread.submit(self._deal, model, order, number, abandoned)

            try:
                filling = fill(first)
                for number in range(first, last + 1):
                    dealt = filling.result()
                    if number < last:
                        filling = fill(number + 1)
                    for t, batch in enumerate(dealt, number * self.buffer):
                        if start <= t < stop:
                            yield batch
            finally:
                abandoned.set()

    def _deal(
        self, model: LanguageModel, order: np.ndarray, number: int, abandoned: Event
    ) -> list[Vectors]:
        """Return the batches of a buffer; the last buffer may have fewer than the others."""
        length = self.contexts.tokens.shape[1]
        each = length - 1  # vectors of a context
        first = number * self.buffer
        count = min(self.buffer, len(self) - first)
        begin, end = first * self.batch, (first + count) * self.batch  # vectors, along `order`
        owners = np.repeat(np.arange(count), self.batch)
        np.random.default_rng([self.seed, 1 + number]).shuffle(owners)
        batches = [
            {
                site: torch.empty(self.batch, width(model, site), device=model.device)
                for site in self.sites
            }
            for _ in range(count)
        ]
        filled = [0] * count
        last = -(-end // each)
        for at in range(begin // each, last, self.block):
            if abandoned.is_set():
                break
            index = order[at : min(at + self.block, last)]
            found = self._read(model, index)
            vectors = at * each + np.arange(len(index) * each)
            inside = (vectors >= begin) & (vectors < end)
            rows = np.arange(len(index) * length).reshape(-1, length)[:, 1:].ravel()[inside]
            owner = owners[vectors[inside] - begin]
            for t, batch in enumerate(batches):
                mine = torch.from_numpy(rows[owner == t]).to(model.device)
                into = slice(filled[t], filled[t] + len(mine))
                for site, values in found.items():
                    torch.index_select(values, 0, mine, out=batch[site][into])
                filled[t] = into.stop
        return batches

    def _read(self, model: LanguageModel, index: np.ndarray) -> Vectors:
        """Return the activations of all tokens of some contexts, in float32 and finite."""
        tokens = torch.from_numpy(self.contexts.tokens[index].astype(np.int64)).to(model.device)
        with torch.autocast(torch.device(model.device).type, torch.bfloat16, self.bfloat16):
            found = read(model, tokens, self.sites)
        found = {site: values.float().flatten(0, 1) for site, values in found.items()}
        for site, values in found.items():
            # One sum is cheaper than a test of every entry, and no finite sum hides one that isn't.
            if not bool(values.sum().isfinite()):
                bad = ~values.isfinite().view(len(index), -1).all(1).cpu().numpy()
                if bad.any():
                    raise UserError(
                        f"{model.name} gives values at {site} that are not finite in context "
                        f"{index[bad][0]}: its weights are damaged, fetch or train it again"
                    )
        return found
