"""Portraits of features, against all activations held at once."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import shared.features.commands.examples as command
from shared.cli import app
from shared.corpus.documents import LABELS
from shared.corpus.shards import Contexts, save_contexts
from shared.corpus.tokenizer import token_bytes
from shared.errors import UserError
from shared.features import firing as firing_module
from shared.features import neuronpedia
from shared.features.examples import (
    BARS,
    DISTINCT,
    Entries,
    Histograms,
    Panels,
    extremes,
    kept,
    lots,
    nearest,
    portraits,
)
from shared.features.firing import word
from shared.features.logits import logit_weights

LENGTH = 12
CHOSEN = [4, 11, 0]
PANELS = Panels(top=5, quantiles=3, per_quantile=2, before=3, after=2, listed=4)


def made(contexts=40, seed=0, words=6):
    """Text of few tokens, so that there are repetitions; its label is told by its last token."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 1 + words, (contexts, LENGTH)).astype(np.uint16)
    tokens[:, 0] = 0
    tokens[contexts // 2 :, : LENGTH - 1] = tokens[: contexts - contexts // 2, : LENGTH - 1]
    labels = np.repeat(tokens[:, -1:] % 3, LENGTH, 1).astype(np.uint8)
    documents = np.repeat(np.arange(contexts, dtype=np.int32)[:, None], LENGTH, 1)
    return Contexts(tokens, labels, documents)


@pytest.fixture
def everything(tiny):
    """A dictionary, a text, and the activations of CHOSEN."""
    dictionary, contexts = tiny(), made()
    x = dictionary.activations(torch.from_numpy(contexts.tokens.astype(np.int64)))
    f = dictionary.encode(x)[..., CHOSEN].numpy()
    f[:, 0] = 0
    return dictionary, contexts, f


def last_tokens(contexts, context, position):
    before = [-1] * DISTINCT + contexts.tokens[context, : position + 1].tolist()
    return tuple(before[-DISTINCT:])


def test_counts_are_those_of_all_activations(everything):
    dictionary, contexts, f = everything
    for number, one in enumerate(portraits(dictionary, contexts, CHOSEN, PANELS)):
        values = f[..., number][f[..., number] > 0]
        assert one.feature == CHOSEN[number]
        assert one.tokens == 40 * (LENGTH - 1)
        assert one.firings == len(values) > 20
        assert one.density == len(values) / one.tokens
        assert one.maximum == pytest.approx(values.max(), rel=1e-4)
        assert one.mean == pytest.approx(values.mean(), rel=1e-4)
        assert sum(one.histogram) == one.firings
        assert BARS / 2 <= len(one.histogram) <= BARS
        assert (len(one.histogram) - 1) * one.width <= one.maximum < len(one.histogram) * one.width


def test_the_strongest_examples_are_distinct_and_of_different_contexts(everything):
    dictionary, contexts, f = everything
    for number, one in enumerate(portraits(dictionary, contexts, CHOSEN, PANELS)):
        best = {}
        for context in range(len(contexts)):
            position = int(f[context, :, number].argmax())
            value = float(f[context, position, number])
            key = last_tokens(contexts, context, position)
            if value > best.get(key, 0) + 1e-4:
                best[key] = value
        expected = sorted(best.values(), reverse=True)[:5]
        np.testing.assert_allclose([e.strength for e in one.top], expected, rtol=1e-4)
        assert len({e.context for e in one.top}) == 5
        assert len({last_tokens(contexts, e.context, e.position) for e in one.top}) == 5
    # The text repeats itself: without that rule there would be other examples.
    peaks = np.sort(f[..., 0].max(1))[::-1][:5]
    first = portraits(dictionary, contexts, CHOSEN, PANELS)[0]
    assert not np.allclose([e.strength for e in first.top], peaks, rtol=1e-4)


def test_an_example_shows_the_text_around_it(everything):
    dictionary, contexts, f = everything
    words = token_bytes(dictionary.model.tokenizer)
    for number, one in enumerate(portraits(dictionary, contexts, CHOSEN, PANELS)):
        shown = [*one.top, *(e for quantile in one.quantiles for e in quantile.examples)]
        for example in shown:
            start = max(1, example.position - 3)
            inside = slice(start, min(LENGTH, example.position + 3))
            assert example.at == example.position - start
            assert example.ids == tuple(contexts.tokens[example.context, inside].tolist())
            assert example.tokens == tuple(word(words[token]) for token in example.ids)
            expected = f[example.context, inside, number]
            np.testing.assert_allclose(example.activations, expected, rtol=1e-4, atol=1e-5)
            assert example.strength == pytest.approx(example.activations[example.at])
            assert example.kind == LABELS[contexts.labels[example.context, example.position]]


def test_quantiles_go_down_in_strength_and_repeat_nothing(everything):
    dictionary, contexts, _ = everything
    for one in portraits(dictionary, contexts, CHOSEN, PANELS):
        assert len(one.quantiles) == 3
        for quantile in one.quantiles:
            assert len(quantile.examples) == 2
            assert all(quantile.low <= e.strength <= quantile.high for e in quantile.examples)
        for upper, lower in zip(one.quantiles, one.quantiles[1:], strict=False):
            assert upper.low >= lower.high
        examples = [e for quantile in one.quantiles for e in quantile.examples]
        assert len({last_tokens(contexts, e.context, e.position) for e in examples}) == 6


def test_the_size_of_the_parts_that_are_read_changes_nothing(everything, monkeypatch):
    dictionary, contexts, _ = everything
    whole = portraits(dictionary, contexts, CHOSEN, PANELS)
    monkeypatch.setattr(firing_module, "HELD", 7 * LENGTH * dictionary.d_sae)
    for one, again in zip(whole, portraits(dictionary, contexts, CHOSEN, PANELS), strict=True):
        assert again.histogram == one.histogram
        assert [(e.context, e.position) for e in again.top] == [
            (e.context, e.position) for e in one.top
        ]
        assert [[(e.context, e.position) for e in q.examples] for q in again.quantiles] == [
            [(e.context, e.position) for e in q.examples] for q in one.quantiles
        ]
        assert [w.name for w in again.words] == [w.name for w in one.words]


def test_specificity_by_its_definition(everything):
    dictionary, contexts, f = everything
    names = [word(token) for token in token_bytes(dictionary.model.tokenizer)]
    one = portraits(dictionary, contexts, CHOSEN, PANELS)[0]
    z = f[:, 1:, 0]
    for rows, values, of in (
        (one.words, contexts.tokens[:, 1:], names),
        (one.kinds, contexts.labels[:, 1:], LABELS),
    ):
        assert [row.share for row in rows] == sorted((row.share for row in rows), reverse=True)
        for row in rows:
            such = values == of.index(row.name)
            assert row.share == pytest.approx(z[such].sum() / z.sum(), rel=1e-4)
            assert row.precision == pytest.approx((z[such] > 0).sum() / (z > 0).sum())
            assert row.recall == pytest.approx((z[such] > 0).mean())
            assert row.base == pytest.approx(such.mean())
    assert sum(row.share for row in one.kinds) == pytest.approx(1)
    assert one.kind == max(one.kinds, key=lambda row: row.share - row.base)


def test_a_feature_that_never_fires(tiny):
    dictionary = tiny()
    b_enc = dictionary.sae.b_enc.clone()
    b_enc[2] = -1e6
    silent = replace(dictionary, sae=dictionary.sae._replace(b_enc=b_enc))
    (one,) = portraits(silent, made(4), [2], PANELS)
    assert (one.firings, one.density, one.maximum, one.mean, one.histogram) == (0, 0, 0, 0, ())
    assert (one.words, one.kinds, one.kind, one.top, one.quantiles) == ((), (), None, (), ())
    assert len(one.nearest) == len(one.promoted) == 4


def test_histograms_are_exact_though_the_maximum_comes_late():
    random = np.random.default_rng(0)
    values = np.exp(random.normal(0, 3, 3000)).astype(np.float32)
    feature = random.integers(0, 3, 3000)
    values[feature == 2] = 1e-30  # one size only
    histograms = Histograms(4)
    for part in np.array_split(np.argsort(values), 17):
        histograms.update(feature[part], values[part])
    for number in range(3):
        width, counts = histograms.result(number)
        own = values[feature == number].astype(np.float64)
        edges = width * np.arange(len(counts) + 1)
        np.testing.assert_array_equal(np.histogram(own, edges)[0], counts)
        assert BARS / 2 <= len(counts) <= BARS
    assert histograms.result(3) == (0.0, ())


def test_lots_are_even_and_the_same_where_the_last_tokens_are():
    tokens = np.random.default_rng(0).integers(0, 50_000, (40, 300)).astype(np.uint16)
    tokens[1, 100 : 100 + DISTINCT] = tokens[0, 200 : 200 + DISTINCT]
    lot = lots(tokens, seed=0)
    assert lot[1, 99 + DISTINCT] == lot[0, 199 + DISTINCT]
    assert len(np.unique(lot)) == lot.size - 1
    counts = np.bincount((lot >> np.uint64(60)).ravel().astype(int), minlength=16)
    expected = lot.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # χ² with 15 degrees: p = 0.001
    assert not (lots(tokens, seed=1) == lot).any()
    assert lots(tokens[:, :3], seed=0).shape == (40, 3)
    # What stands before the context is not the same as token 0 there.
    short = np.zeros((1, DISTINCT + 1), np.uint16)
    assert len(np.unique(lots(short, seed=0))) == DISTINCT


def test_of_equal_keys_the_lowest_order_is_kept():
    entries = Entries(
        np.array([1, 0, 0, 0, 1]),
        np.array([7, 7, 7, 8, 9], np.uint64),
        np.array([0.0, 2.0, 1.0, 1.0, -1.0]),
        np.array([0, 1, 2, 3, 4]),
        np.zeros(5, np.float32),
        np.zeros((5, 1), np.float32),
    )
    assert kept(entries, 2).tolist() == [2, 3, 4, 0]
    assert kept(entries, 1).tolist() == [2, 4]
    assert kept(entries.take(np.zeros(0, np.int64)), 1).tolist() == []


def test_nearest_features_and_extreme_logits_against_all_of_them(tiny):
    dictionary = tiny("blocks.0.mlp_post")
    rows = dictionary.directions.numpy().astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    (near,) = nearest(dictionary, [5], 3)
    cosine = rows @ rows[5]
    order = [i for i in np.argsort(-cosine).tolist() if i != 5]
    assert [one.feature for one in near] == order[:3]
    np.testing.assert_allclose([one.cosine for one in near], cosine[order[:3]], atol=1e-6)

    names = [str(token) for token in range(290)]  # the model has room for 300
    ((up, down),) = extremes(dictionary, dictionary.directions[[5]], names, 3)
    logits = logit_weights(dictionary, dictionary.directions[[5]])[0, :290].numpy()
    assert [int(token) for token, _ in up] == np.argsort(-logits)[:3].tolist()
    assert [int(token) for token, _ in down] == np.argsort(logits)[:3].tolist()
    np.testing.assert_allclose([logit for _, logit in down], np.sort(logits)[:3], rtol=1e-5)
    before = tiny("blocks.0.mlp_pre")
    assert extremes(before, before.directions[:2], names, 3) == [((), ()), ((), ())]


def test_senseless_panels_are_refused():
    for wrong in ({"top": 0}, {"quantiles": 0}, {"before": -1}, {"per_quantile": 13}):
        with pytest.raises(UserError, match="give 1"):
            Panels(**wrong)


def test_a_release_of_saelens_has_a_link(tiny):
    dictionary = tiny()
    assert neuronpedia.link(dictionary, 7) is None
    published = replace(dictionary, name="gpt2-small-res-jb:blocks.8.hook_resid_pre")
    expected = "https://www.neuronpedia.org/gpt2-small/8-res-jb/7"
    assert neuronpedia.link(published, 7) == expected
    assert neuronpedia.link(replace(dictionary, name="no-such-release:x"), 7) is None


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Run the command on the tiny dictionary and a shard of text."""
    monkeypatch.setattr(command, "opened", lambda *_: tiny())
    shard = tmp_path / "text.safetensors"
    save_contexts(shard, made(), {})

    def invoke(*arguments):
        return CliRunner().invoke(app, ["examples", *arguments, "--text", str(shard)])

    return invoke


def test_the_command_prints_what_a_feature_fires_on(run):
    result = run("4", "11")
    assert result.exit_code == 0, result.output
    assert "feature 4" in result.stdout
    assert "feature 11" in result.stdout
    assert "⟪" in result.stdout
    assert "nearest by cosine: " in result.stdout
    found = json.loads(run("4", "--json", "--top", "2").stdout)
    assert [one["feature"] for one in found] == [4]
    assert len(found[0]["top"]) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("20",), "no feature 20: tiny sae has 0 to 19"),
        ((), "name features"),
        (("--all",), "name features, or ask for --all of them with --pages DIR"),
        (("3", "--top", "0"), "give 1 or more"),
        (("3", "--text", "nonsense"), "no text 'nonsense'"),
    ],
)
def test_bad_input_to_examples_is_one_line(run, arguments, line):
    if "--text" in arguments:
        result = CliRunner().invoke(app, ["examples", *arguments])
    else:
        result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("sae: ")
    assert len(result.stderr.splitlines()) == 1
    assert line in result.stderr
