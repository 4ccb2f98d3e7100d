import threading

import numpy as np
import pytest
import torch

from shared.activations.sites import Site, read
from shared.activations.stream import ActivationStream
from shared.corpus.shards import Contexts
from shared.errors import UserError

START, NEURONS = Site("resid_pre", 0), Site("mlp_post", 1)
BATCH, BUFFER = 20, 3


@pytest.fixture
def contexts():
    """25 contexts of 12 tokens, no text token twice: 275 vectors, 13 batches of 20 and a rest."""
    tokens = np.zeros((25, 12), np.uint16)
    tokens[:, 1:] = 1 + np.random.default_rng(0).permutation(275).reshape(25, 11)
    return Contexts(tokens, np.zeros((25, 12), np.uint8), np.zeros((25, 12), np.int32))


@pytest.fixture
def stream(model, contexts):
    return make(model, contexts)


def make(model, contexts, **changes):
    settings = {"sites": (START, NEURONS), "batch": BATCH, "seed": 0, "buffer": BUFFER, "block": 4}
    return ActivationStream(model, contexts, **settings | changes)


def taken(stream, batches):
    """The number of the vector, context · length + position, behind every row."""
    tokens = torch.from_numpy(stream.contexts.tokens.astype(np.int64))
    vectors = read(stream.model, tokens, [START])[START].flatten(0, 1).numpy()
    number = {vector.tobytes(): at for at, vector in enumerate(vectors)}
    return [np.array([number[row.tobytes()] for row in batch[START].numpy()]) for batch in batches]


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(one[site], other[site]) for site in one)


def filling_threads():
    return [t for t in threading.enumerate() if t.name.startswith("activations")]


def test_every_vector_comes_at_most_once_and_none_from_position_0(stream):
    batches = list(stream)
    assert len(batches) == len(stream) == 13
    numbers = np.concatenate(taken(stream, batches))
    assert len(np.unique(numbers)) == len(numbers) == 13 * BATCH
    assert (numbers % 12 > 0).all()


def test_batches_are_float32_and_fit_for_training(stream):
    for batch in stream.batches(0, 2):
        assert batch[START].shape == (BATCH, 8)
        assert batch[NEURONS].shape == (BATCH, 39)
        for values in batch.values():
            assert values.dtype == torch.float32
            assert not values.is_inference()
            assert not values.requires_grad


def test_the_rows_of_all_sites_belong_together(stream, model):
    tokens = torch.from_numpy(stream.contexts.tokens.astype(np.int64))
    neurons = read(model, tokens, [NEURONS])[NEURONS].flatten(0, 1)
    batches = list(stream)
    for batch, numbers in zip(batches, taken(stream, batches), strict=True):
        torch.testing.assert_close(batch[NEURONS], neurons[numbers], atol=1e-5, rtol=1e-5)


def test_a_batch_mixes_the_contexts_of_its_buffer(stream):
    numbers = taken(stream, list(stream))
    for at in range(0, 12, BUFFER):
        within = [set(batch // 12) for batch in numbers[at : at + BUFFER]]
        assert all(len(contexts) >= 4 for contexts in within)  # 60 vectors of 6 or 7 contexts
        assert len(set.union(*within)) <= 7


@pytest.mark.parametrize("start", range(14))
def test_going_on_gives_the_bytes_of_an_uninterrupted_run(stream, start):
    same(list(stream.batches(start)), list(stream)[start:])


def test_a_stop_ends_it(stream):
    same(list(stream.batches(2, 7)), list(stream)[2:7])
    assert list(stream.batches(5, 5)) == []


def test_the_seed_decides_on_the_order(model, contexts, stream):
    same(list(make(model, contexts)), list(stream))
    other = make(model, contexts, seed=1)
    assert (taken(other, other)[0] != taken(stream, stream)[0]).any()


def test_how_many_contexts_go_together_does_not_matter(model, contexts, stream):
    other = make(model, contexts, block=7)
    for one, two in zip(stream, other, strict=True):
        torch.testing.assert_close(one[NEURONS], two[NEURONS])


def test_a_buffer_larger_than_the_text_mixes_all_of_it(model, contexts):
    numbers = taken(stream := make(model, contexts, buffer=100), stream)
    assert len(np.unique(np.concatenate(numbers))) == 13 * BATCH
    assert min(len(set(batch // 12)) for batch in numbers) >= 10


def test_bfloat16_is_close_and_comes_as_float32(model, contexts, stream):
    low = next(iter(make(model, contexts, bfloat16=True)))[NEURONS]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, next(iter(stream))[NEURONS], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("start", "stop"), [(0, 14), (14, None), (-1, None), (3, 2)])
def test_more_than_there_is_without_repetition_is_refused_at_the_call(stream, start, stop):
    with pytest.raises(UserError, match="the text has 13 without repetition"):
        stream.batches(start, stop)


def test_what_cannot_be_streamed_is_refused(model, contexts):
    with pytest.raises(UserError, match="the text has 275: choose a smaller batch"):
        make(model, contexts, batch=276)
    with pytest.raises(UserError, match=r"tiny has no blocks\.2\.mlp_out"):
        make(model, contexts, sites=(Site("mlp_out", 2),))
    long = Contexts(
        *(np.tile(x, 2) for x in (contexts.tokens, contexts.labels, contexts.documents))
    )
    with pytest.raises(UserError, match="reads up to 12 tokens, and the contexts have 24"):
        make(model, long)
    contexts.tokens[3, 4] = 300
    with pytest.raises(UserError, match="knows 300 tokens, and the text has token 300"):
        make(model, contexts)


def test_values_that_are_not_finite_name_the_site_and_the_context(model, contexts):
    contexts.tokens[17, 5] = 290
    with torch.no_grad():
        model.network.transformer.wte.weight[290] = torch.inf
    with pytest.raises(UserError, match=r"tiny gives values at blocks.0.resid_pre .* context 17"):
        list(make(model, contexts))
    assert filling_threads() == []


def test_batches_before_a_failure_still_come(model, contexts, monkeypatch):
    blocks = iter(range(9))  # the first buffer takes two

    def failing(*args, _read=ActivationStream._read):
        if next(blocks) == 3:
            raise MemoryError("no room")
        return _read(*args)

    monkeypatch.setattr(ActivationStream, "_read", failing)
    batches = make(model, contexts).batches()
    for _ in range(BUFFER):
        next(batches)
    with pytest.raises(MemoryError, match="no room"):
        next(batches)
    assert filling_threads() == []


def test_the_thread_ends_with_a_consumer_that_stops_early(stream):
    batches = stream.batches()
    next(batches)
    assert len(filling_threads()) == 1
    batches.close()
    assert filling_threads() == []
    for _ in stream:
        break
    assert filling_threads() == []


def test_the_consumer_may_use_the_model_meanwhile(stream, model):
    tokens = torch.randint(0, 300, (2, 12))
    before = model.logits(tokens)
    expected = list(stream)
    batches = []
    for batch in stream:
        batches.append(batch)
        assert torch.equal(model.logits(tokens), before)
    same(batches, expected)
