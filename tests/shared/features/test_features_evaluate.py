"""Measuring an autoencoder: closed forms, what is flagged, bad input, and the command."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from shared.cli import app
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.features.commands import evaluate as command
from shared.features.evaluate import (
    USUAL,
    Evaluation,
    Size,
    alike,
    evaluate,
    judged,
    match,
    measure,
    stability,
)
from shared.features.text import contexts_of
from shared.saes.weights import Weights

ALL = Size(10_000, 10_000, 10_000)
LENGTH = 12
D_IN = 8


def contexts(tokens):
    tokens = np.asarray(tokens).astype(np.uint16)
    return Contexts(tokens, np.zeros_like(tokens, np.uint8), np.zeros_like(tokens, np.int32))


def random_text(count=6, seed=0):
    tokens = np.random.default_rng(seed).integers(1, 300, (count, LENGTH))
    tokens[:, 0] = 0
    return contexts(tokens)


def written(model, count=6):
    """Return text that the model itself writes, so that ablation makes its loss worse."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(count, 1, dtype=torch.int64)
    for _ in range(LENGTH - 1):
        p = model.logits(tokens)[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], 1)
    return contexts(tokens)


def identity(scale=1.0):
    """Return what reconstructs x from the positive and the negative parts of its entries."""
    both = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    return Weights(
        both.T.contiguous(), torch.zeros(2 * D_IN), scale * both, torch.zeros(D_IN), True
    )


def constant(x_hat):
    """Return what has no active features, and one reconstruction."""
    zeros = torch.zeros(D_IN, 4)
    return Weights(zeros, torch.full((4,), -1.0), zeros.T + 1, x_hat, False)


def vectors(dictionary, text):
    tokens = torch.from_numpy(text.tokens.astype(np.int64))
    return dictionary.activations(tokens)[:, 1:].flatten(0, 1)


def test_an_identity_reconstructs_and_recovers_everything(tiny):
    dictionary = replace(tiny(), sae=identity())
    found = evaluate(dictionary, written(dictionary.model), size=ALL)
    assert (found.vectors, found.d_sae, found.l0) == (6 * 11, 16, 8)
    assert (found.fvu, found.gamma) == (0, 1)
    assert found.recovered_zero == pytest.approx(1, abs=1e-6)
    assert found.recovered_mean == pytest.approx(1, abs=1e-6)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert math.isnan(found.mmcs)


def test_the_mean_explains_and_recovers_nothing(tiny):
    dictionary = tiny()
    text = written(dictionary.model)
    mean = vectors(dictionary, text).mean(0)
    found = evaluate(replace(dictionary, sae=constant(mean)), text, size=ALL)
    assert found.fvu == pytest.approx(1, abs=1e-5)
    assert found.recovered_mean == pytest.approx(0, abs=1e-5)
    assert (found.l0, found.dead, found.dense) == (0, 1, 0)
    assert math.isnan(found.repeated)  # nothing is active, so that nothing can be compared
    zeros = evaluate(replace(dictionary, sae=constant(torch.zeros(D_IN))), text, size=ALL)
    assert zeros.recovered_zero == pytest.approx(0, abs=1e-5)


def test_shrinkage_is_measured_and_named(tiny):
    dictionary = replace(tiny(), sae=identity(0.5))
    text = random_text()
    x = vectors(dictionary, text).double()
    found = evaluate(dictionary, text, size=ALL)
    assert found.gamma == pytest.approx(0.5)
    error, spread = x.square().sum() / 4, (x - x.mean(0)).square().sum()
    assert found.fvu == pytest.approx(float(error / spread), rel=1e-5)
    gamma = next(one for one in judged(found) if one.measure == "gamma")
    assert not gamma.within
    assert gamma.hint.startswith("shrinkage")


def test_dead_and_dense_features_are_counted(tiny):
    dictionary = tiny()
    b_enc = torch.tensor([-1e6] * 5 + [1e6] * 3 + [0.0] * 12)
    dictionary = replace(dictionary, sae=dictionary.sae._replace(b_enc=b_enc))
    text = random_text()
    active = dictionary.encode(vectors(dictionary, text)) > 0
    found, firings = measure(dictionary, text, size=ALL)
    assert (firings.counts == active.sum(0).numpy()).all()
    assert found.l0 == pytest.approx(float(active.sum(1).double().mean()))
    assert found.dead == float((~active.any(0)).double().mean()) >= 5 / 20
    assert found.dense == float((active.double().mean(0) > 0.1).double().mean()) >= 3 / 20


def test_the_likeness_of_codes_by_hand():
    f, other = torch.tensor([[1.0, 0, 2]]), torch.tensor([[1.0, 1, 1]])
    assert alike(f, f) == 1
    assert alike(f, other) == alike(other, f) == 2 / 4
    assert alike(f, torch.tensor([[0.0, 3, 0]])) == 0
    assert math.isnan(alike(torch.zeros(2, 3), torch.zeros(2, 3)))


def test_the_same_text_twice_is_alike(tiny):
    one = random_text(1)
    same = stability(tiny(), one.tokens.repeat(4, axis=0))
    assert same.counterfactual == pytest.approx(1, abs=1e-6)
    assert same.by_chance == pytest.approx(1, abs=1e-6)
    assert same.moved == pytest.approx(0, abs=1e-9)
    different = stability(tiny(), random_text().tokens)
    assert different.repeated == pytest.approx(1, abs=1e-5)
    assert different.by_chance < different.counterfactual < 0.99
    assert different.moved > 0.01


def test_what_cannot_see_earlier_text_is_exactly_stable(tiny):
    # Before the first layer an activation is of the token and its position alone. That it is
    # repeated is of products of other shapes, which may round otherwise.
    found = stability(tiny("blocks.0.resid_pre"), random_text().tokens)
    assert found.repeated == pytest.approx(1, abs=1e-6)
    assert (found.counterfactual, found.moved) == (1, 0)
    assert found.by_chance < 0.9


class Noisy(Weights):
    def encode(self, x):
        return torch.rand(*x.shape[:-1], 20)


def test_what_is_not_deterministic_is_not_repeated(tiny):
    dictionary = tiny()
    noisy = replace(dictionary, sae=Noisy(*dictionary.sae))
    assert stability(noisy, random_text().tokens).repeated < 0.7


def test_mmcs_by_hand():
    axes = torch.eye(2)
    turned = torch.tensor([[1.0, 1], [-1, 1]])
    assert match(axes, axes).mmcs == 1
    assert match(axes, 3 * axes.flip(0)).mmcs == 1  # neither length nor order counts
    assert match(axes, turned).mmcs == pytest.approx(math.sqrt(0.5))
    assert match(axes, -axes).mmcs == 0  # an opposite direction is another feature
    assert match(axes, torch.cat([turned, axes])).mmcs == 1
    assert math.isnan(match(axes[:0], axes).mmcs)


def test_a_rotated_dictionary_matches_by_chance_alone():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(60, 32, generator=generator)
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    itself, rotated = match(directions, directions), match(directions, directions @ rotation)
    assert itself.mmcs == pytest.approx(1)
    assert rotated.mmcs < 0.6
    assert rotated.mmcs == pytest.approx(itself.by_chance, abs=0.05)


def test_dead_features_do_not_count_for_mmcs(tiny):
    dictionary = tiny()
    b_enc = torch.tensor([-1e6] * 10 + [1e6] * 10)
    dictionary = replace(dictionary, sae=dictionary.sae._replace(b_enc=b_enc))
    dead_differ = dictionary.directions.clone()
    dead_differ[:10] = 0
    other = replace(dictionary, sae=dictionary.sae._replace(W_dec=dead_differ))
    found = evaluate(dictionary, random_text(), other, ALL)
    assert found.mmcs == pytest.approx(1)
    assert found.mmcs_by_chance < 0.9
    assert evaluate(other, random_text(), dictionary, ALL).mmcs == pytest.approx(1)


def usual():
    """Return an evaluation in the middle of every range."""
    middle = {measure: (one.low + one.high) / 2 for measure, one in USUAL.items()}
    counts = {"vectors": 100, "d_sae": 10}
    others = {field.name for field in fields(Evaluation)} - middle.keys() - counts.keys()
    return Evaluation(**middle, **counts, **dict.fromkeys(others, 0.0))


BOUNDED = {"fvu": (0, None), "dead": (0, 1), "dense": (0, 1)} | dict.fromkeys(
    ("repeated", "counterfactual", "mmcs"), (0, 1)
)
"""Between what a measure lies by its definition, where it does."""


@pytest.mark.parametrize("measure", USUAL)
def test_what_leaves_its_range_is_flagged_with_a_hint(measure):
    def one(value):
        found = judged(replace(usual(), **{measure: value}))
        assert [other.within for other in found if other.measure != measure] == [True] * 9
        return next(other for other in found if other.measure == measure)

    low, high = USUAL[measure][:2]
    for inside in (low, (low + high) / 2, high, high + 1e-7):  # the last by rounding
        assert (one(inside).within, one(inside).hint) == (True, "")
    least, most = BOUNDED.get(measure, (None, None))
    if low != least:
        assert (one(low - 0.01).within, one(low - 0.01).hint) == (False, USUAL[measure].too_low)
        assert USUAL[measure].too_low
    if high != most:
        assert (one(high + 0.01).within, one(high + 0.01).hint) == (False, USUAL[measure].too_high)
        assert USUAL[measure].too_high
    assert USUAL[measure].source.startswith("ours")


def test_what_was_not_measured_is_not_judged():
    found = judged(replace(usual(), mmcs=math.nan, repeated=math.nan))
    assert {one.measure for one in found} == USUAL.keys() - {"mmcs", "repeated"}


def test_text_is_taken_from_all_over(tiny):
    text = random_text(50)
    found = evaluate(tiny(), text, size=Size(60, 60, 60))
    assert found.vectors == 5 * 11
    assert evaluate(tiny(), text, size=Size(1, 1, 1)).vectors == 3 * 11
    spread = text.select(np.array([0, 12, 24, 37, 49]))
    assert found.fvu == evaluate(tiny(), spread, size=ALL).fvu


BAD = {
    "too long": (contexts(np.zeros((3, 13))), "reads up to 12 tokens out of 300"),
    "unknown token": (contexts(np.full((3, 12), 300)), "contexts of 12 and token 300"),
    "too few": (random_text(2), "2 contexts of 12 tokens are too few"),
    "none": (contexts(np.zeros((0, 12))), "0 contexts of 12 tokens are too few"),
    "too short": (contexts(np.zeros((3, 7))), "3 contexts of 7 tokens are too few"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_one_line(tiny, case):
    text, line = BAD[case]
    with pytest.raises(UserError, match=line) as found:
        evaluate(tiny(), text)
    assert "\n" not in str(found.value)


def test_another_place_cannot_be_matched(tiny):
    with pytest.raises(UserError, match="d_in of 12, and tiny sae of 8") as found:
        evaluate(tiny(), random_text(), tiny("blocks.0.mlp_post"))
    assert "\n" not in str(found.value)


@pytest.fixture
def run(tiny, monkeypatch, tmp_path):
    """Run the command on a text of tmp_path / "text.txt"."""
    monkeypatch.setattr(command, "opened", lambda *_: tiny())
    (tmp_path / "text.txt").write_text("the cat sat on the mat and saw a dog. " * 20)

    def invoke(*arguments, text=tmp_path / "text.txt"):
        return CliRunner().invoke(app, ["evaluate", "--text", str(text), *arguments])

    return invoke


def test_the_command_prints_json(run, tiny, tmp_path):
    result = run("--json", "--tokens", "60", "--against", "itself")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    text = contexts_of(str(tmp_path / "text.txt"), tiny().model)
    direct = evaluate(tiny(), text, tiny(), Size(counted=60))
    assert found["evaluation"].keys() == vars(direct).keys()
    assert found["evaluation"]["fvu"] == direct.fvu
    assert found["evaluation"]["mmcs"] == pytest.approx(1)
    assert [one["measure"] for one in found["judgements"]] == [
        one.measure for one in judged(direct)
    ]
    assert json.loads(run("--json").stdout)["evaluation"]["mmcs"] is None


def test_the_command_prints_a_table(run):
    result = run("--against", "itself")
    assert result.exit_code == 0, result.stderr
    assert "│ fvu " in result.stdout
    assert "✗" in result.stdout  # of a random autoencoder
    assert "→ train longer (steps)" in result.stdout
    assert "; mmcs is 0." in result.stdout
    assert "mmcs" not in run().stdout


def test_bad_input_of_the_command_is_one_line(run, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    lines = {"nothing": "no text 'nothing'", tmp_path / "short.txt": "not enough tokens for one"}
    for text, line in lines.items():
        result = run(text=text)
        assert (result.exit_code, result.stdout) == (2, "")
        assert line in result.stderr
        assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(app, ["evaluate", "--tokens", "0"])
    assert result.exit_code == 2
