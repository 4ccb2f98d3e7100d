"""Explanation methods side by side, against closed forms and by hand."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, permutations
from math import factorial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import shared.features.compare as compare_module
import shared.features.text as text_module
from shared.cli import app
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.features.attribute import METHODS as ATTRIBUTION
from shared.features.attribute import attribute
from shared.features.commands import compare as command
from shared.features.compare import (
    METHODS,
    REMOVED,
    Comparison,
    Settings,
    by_features,
    compare,
    counted,
    curves,
    draw,
    kernel_shap,
    known,
    lime,
    patching,
    probe,
    study,
    summary,
    towards_others,
    worth,
)
from shared.features.parts import Target

PROMPT = "abcdef"
TARGET = Target(70, 80)
QUICK = Settings(samples=40, others=2, judges=3, steps=5, learned=6, checked=2)


def texts(count, seed=0, length=12):
    tokens = np.random.default_rng(seed).integers(1, 290, (count, length), dtype=np.uint16)
    tokens[:, 0] = 0
    documents = np.zeros((count, length), np.int32)
    return Contexts(tokens, np.zeros((count, length), np.uint8), documents)


def ids(contexts, length=7):
    return torch.from_numpy(contexts.tokens[:, :length].astype(np.int64))


def shapley(v, count):
    """Return Shapley values, by all orders' marginal worth."""
    values = torch.zeros(count)
    for one in range(count):
        rest = [other for other in range(count) if other != one]
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for chosen in combinations(rest, size):
                kept = torch.zeros(2, count)
                kept[:, list(chosen)] = 1
                kept[1, one] = 1
                without, with_it = v(kept)
                values[one] += weight * (with_it - without)
    return values


def test_closed_forms_of_an_additive_worth():
    weights = torch.tensor([3.0, -1.0, 0.5, 2.0])
    v = lambda kept: kept @ weights + 7  # noqa: E731
    torch.testing.assert_close(kernel_shap(v, 4, 64, 0), weights, rtol=1e-3, atol=1e-3)
    found = lime(v, 4, 500, 0)
    torch.testing.assert_close(found, weights, rtol=0.05, atol=0.05)
    deletion, insertion = curves(v, weights.numpy())
    np.testing.assert_allclose(deletion, [11.5, 8.5, 6.5, 6, 7])
    np.testing.assert_allclose(insertion, [7, 10, 12, 12.5, 11.5])


def test_kernel_shap_estimates_shapley_values(tiny):
    v = worth(tiny(), tiny().tokens("abcd"), ids(texts(2), 5), TARGET, "tokens")
    exact = shapley(v, 4)
    assert exact.abs().max() > 0.1
    everything, nothing = v(torch.stack([torch.ones(4), torch.zeros(4)]))
    assert float(exact.sum()) == pytest.approx(float(everything - nothing), abs=1e-3)
    found = kernel_shap(v, 4, 400, 0)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.15 * float(exact.abs().max()))
    assert torch.equal(kernel_shap(v, 4, 50, 1), kernel_shap(v, 4, 50, 1))


@pytest.mark.parametrize("removed", REMOVED)
def test_the_worth_is_the_score_with_what_other_texts_have(tiny, removed):
    dictionary = tiny()
    tokens, others = dictionary.tokens(PROMPT), ids(texts(3))
    kept = torch.tensor([[1.0, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    found = worth(dictionary, tokens, others, TARGET, removed)(kept)
    x = dictionary.activations(tokens)[0]
    for row, value in zip(kept.bool(), found, strict=True):
        keep = torch.cat([torch.tensor([True]), row])
        scores = []
        for other in others:
            if removed == "tokens":
                logits = dictionary.model.logits(torch.where(keep, tokens, other))
            else:
                mixed = torch.where(keep[:, None], x, dictionary.activations(other[None])[0])
                logits = dictionary.logits_with(tokens, mixed[None])
            scores.append(float(TARGET.score(logits[0, -1])))
        assert float(value) == pytest.approx(np.mean(scores), abs=1e-4)
    assert len({round(value, 3) for value in found.tolist()}) == 3


def test_patching_one_position_is_removing_its_activation(tiny):
    dictionary = tiny()
    tokens, others = dictionary.tokens(PROMPT), ids(texts(3))
    v = worth(dictionary, tokens, others, TARGET, "activations")
    expected = v(torch.ones(1, 6)) - v(1 - torch.eye(6))
    found = patching(towards_others(dictionary, tokens, others, TARGET), 6)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0.1


def test_features_sum_to_what_attribution_finds(tiny):
    dictionary = tiny(normalised=True)
    found = by_features(dictionary, dictionary.tokens(PROMPT), TARGET, 20)
    pairs = attribute(dictionary, PROMPT, TARGET, 20)
    values = pairs.values[ATTRIBUTION.index("integrated")]
    for position in range(1, 7):
        own = pairs.positions == position
        assert float(found.values[position - 1]) == pytest.approx(values[own].sum(), abs=1e-4)
        best = pairs.features[own][np.abs(values[own]).argmax()]
        assert int(found.strongest[position - 1]) == best


def test_the_probe_finds_a_linear_score(tiny):
    # After the last layer with a constant deviation, the score would be linear; here the scores
    # are made so.
    dictionary = tiny()
    direction = torch.randn(8, generator=torch.Generator().manual_seed(3))

    def linear(dictionary, tokens, target):
        x = dictionary.activations(tokens)[:, 1:].flatten(0, 1)
        return x.numpy(), (x @ direction + 5).numpy()

    tokens, learned = dictionary.tokens(PROMPT), ids(texts(30), 12)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compare_module, "_read", linear)
        found = probe(dictionary, tokens, TARGET, learned, ids(texts(4, 1), 12))
    assert found.r2 > 0.999
    mean = dictionary.activations(learned)[:, 1:].flatten(0, 1).mean(0)
    expected = (dictionary.activations(tokens)[0, 1:] - mean) @ direction
    np.testing.assert_allclose(found.values, expected, atol=0.05 * float(expected.abs().max()))


def test_the_probe_reads_activations_and_the_scores_after_them(tiny):
    dictionary = tiny()
    tokens = ids(texts(6), 12)
    x, scores = compare_module._read(dictionary, tokens, TARGET)
    expected = TARGET.score(dictionary.model.logits(tokens)[:, 1:]).flatten()
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    np.testing.assert_allclose(x, dictionary.activations(tokens)[:, 1:].flatten(0, 1), atol=1e-5)


def comparison(deletion, insertion, score, nothing):
    count = len(deletion) - 1
    curve = lambda values: np.array([values] * len(METHODS), dtype=float)  # noqa: E731
    numbers = np.zeros(len(METHODS), dtype=int)
    return Comparison(
        ("a",) * count,
        "b",
        score,
        nothing,
        np.arange(float(count * len(METHODS))).reshape(len(METHODS), count),
        np.zeros(count, dtype=int),
        curve(deletion),
        curve(insertion),
        numbers,
        numbers,
        0.0,
    )


def test_faithfulness_is_the_area_between_the_curves():
    # Areas by hand: insertion (0/2 + 4 + 4/2)/2 = 3, deletion (4/2 + 1 + 0/2)/2 = 1.5.
    found = comparison([4, 1, 0], [0, 4, 4], 4.0, 0.0)
    np.testing.assert_allclose(found.faithfulness, (3 - 1.5) / 4)
    two = summary([found, comparison([4, 4, 0], [0, 0, 4], 4.0, 0.0)])
    np.testing.assert_allclose(two.faithfulness.mean, (0.375 - 0.5) / 2)


def test_a_random_order_has_a_faithfulness_of_zero(tiny):
    v = worth(tiny(), tiny().tokens("abcd"), ids(texts(2), 5), TARGET, "tokens")
    areas = []
    for order in permutations(range(4)):
        deletion, insertion = curves(v, np.array(order, dtype=float))
        areas.append(np.trapezoid(insertion - deletion))
    assert np.std(areas) > 0.1
    assert np.mean(areas) == pytest.approx(0, abs=1e-4)


def test_passes_are_counted_as_the_model_runs(tiny):
    dictionary = tiny()
    tokens = dictionary.tokens(PROMPT)
    with counted(dictionary.model) as passes:
        dictionary.model.logits(tokens.expand(5, -1))
        by_features(dictionary, tokens, TARGET, 7)
    assert (passes.forward, passes.backward) == (5 + 1 + 7, 7)
    dictionary.model.logits(tokens)
    assert passes.forward == 13


@pytest.mark.parametrize("removed", REMOVED)
def test_methods_are_judged_on_texts_of_their_own(tiny, removed):
    dictionary, contexts = tiny(), texts(11)
    settings = replace(QUICK, removed=removed)
    tokens = dictionary.tokens(PROMPT)
    found = compare(dictionary, tokens, contexts, texts(3, 1), TARGET, settings)
    judge = worth(dictionary, tokens, ids(contexts)[8:11], TARGET, removed)
    for values, deletion, insertion in zip(
        found.values, found.deletion, found.insertion, strict=True
    ):
        expected = curves(judge, values)
        np.testing.assert_allclose((deletion, insertion), expected, atol=1e-4)
        ends = (deletion[0], deletion[-1], insertion[0], insertion[-1])
        both = (found.score, found.nothing)
        np.testing.assert_allclose(ends, (*both, *both[::-1]), atol=1e-4)
    used = ids(contexts)[6:8]
    v = worth(dictionary, tokens, used, TARGET, removed)
    np.testing.assert_allclose(
        found.values[METHODS.index("shap")], kernel_shap(v, 6, 40, 0), atol=1e-3
    )
    reads = 0 if removed == "tokens" else 1 + 2
    assert found.forward.tolist() == [6 + 1 + 2, 80 + reads, 80 + reads, 1 + 2 + 7 * 2, 1 + 5, 0]
    assert found.backward.tolist() == [0, 0, 0, 0, 5, 0]
    assert found.tokens == tuple(PROMPT)
    assert found.score == pytest.approx(
        float(TARGET.score(dictionary.model.logits(tokens)[0, -1])), abs=1e-4
    )


def test_a_study_asks_for_what_the_model_finds_most_likely(tiny):
    dictionary, contexts, held_out = tiny(), texts(11), texts(5, 1)
    found = study(dictionary, contexts, held_out, 3, 5, QUICK)
    assert len(found) == 3
    for one in found:
        text = next(
            row for row in ids(held_out, 6) if tuple(dictionary.shown(row[1:])) == one.tokens
        )
        likely = dictionary.model.logits(text[None])[0, -1].argmax()
        assert one.target == dictionary.shown(likely[None])[0]
    for some in (found, found[:1]):
        panels = draw(some).axes
        assert len(panels) == 5  # with the bar of colours


def test_bad_input_is_one_clear_line(tiny):
    dictionary = tiny()
    silent = replace(
        dictionary, sae=dictionary.sae._replace(b_enc=torch.full_like(dictionary.sae.b_enc, -1e6))
    )
    tokens = dictionary.tokens(PROMPT)
    big = replace(texts(11), tokens=texts(11).tokens + np.uint16(4000))
    cases = [
        (dictionary, dictionary.tokens("a"), texts(11), "the text is a single token"),
        (dictionary, tokens, texts(11, length=6), "6 tokens, and contexts have 5"),
        (dictionary, tokens, texts(10), "10 contexts to learn from, not 11"),
        (dictionary, tokens, big, "not in tokens of tiny"),
        (silent, tokens, texts(11), "no feature of tiny sae is active"),
    ]
    for who, asked, contexts, message in cases:
        with pytest.raises(UserError, match=message) as error:
            compare(who, asked, contexts, texts(3, 1), TARGET, QUICK)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="'words' cannot be removed: choose one of tokens, act"):
        known("words")


@pytest.fixture
def sae(tiny, monkeypatch):
    monkeypatch.setattr(command, "opened", lambda *_: tiny())
    monkeypatch.setattr(text_module, "divided", lambda *_: (texts(30), texts(6, 1)))
    return lambda *arguments: CliRunner().invoke(app, ["compare", *arguments])


def test_the_command_prints_draws_and_writes_json(sae, tiny, tmp_path):
    figure = tmp_path / "one.png"
    options = (PROMPT, "--target", "a", "--versus", "b", "--samples", "32")
    shown = sae(*options, "--figure", str(figure))
    assert shown.exit_code == 0, shown.output
    assert "Score of 'a'" in shown.stdout
    assert figure.stat().st_size > 10_000
    report = json.loads(sae(*options, "--json").stdout)
    target = Target(tiny().token("a"), tiny().token("b"))
    settings = Settings(samples=32)
    found = compare(tiny(), tiny().tokens(PROMPT), texts(30), texts(6, 1), target, settings)
    np.testing.assert_allclose(report["texts"][0]["values"], found.values, atol=1e-4)
    np.testing.assert_allclose(report["mean"]["faithfulness"]["mean"], found.faithfulness)
    several = sae("--excerpts", "2", "--length", "4", "--samples", "16")
    assert several.exit_code == 0, several.output
    assert "90%, 2 texts" in several.stdout


def test_the_command_refuses_bad_input(sae):
    for arguments in (
        ("--target", "a"),
        (PROMPT, "--versus", "a"),
        (PROMPT, "--removed", "words"),
        (PROMPT, "--figure", "one.txt"),
        (PROMPT, "--target", "ab"),
        ("",),
    ):
        result = sae(*arguments)
        assert result.exit_code == 2, arguments
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1


def test_the_command_is_light_to_import():
    code = "import sys, shared.features.commands.compare; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & {"torch", "captum", "scipy", "sklearn", "transformers"}
