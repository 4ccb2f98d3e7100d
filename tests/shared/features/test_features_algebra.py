"""Sums of directions: closed forms, chance by simulation, and steering with the result."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from shared.cli import app
from shared.errors import UserError
from shared.features.algebra import (
    amounts,
    chance,
    combine,
    direction,
    edits,
    natural_strength,
    parse,
)
from shared.features.commands import algebra as command
from shared.features.edits import apply
from shared.features.logits import logit_weights

PLAIN_AND_NORMALISED = pytest.mark.parametrize("normalised", [False, True])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", {12: 1}),
        (" 12 - 7+3 ", {12: 1, 7: -1, 3: 1}),
        ("-12 + 0.5*40 - 2 * 3", {12: -1, 40: 0.5, 3: -2}),
        ("5 + 5 - 0.5*5", {5: 1.5}),
        ("+1 - 1", {1: 0}),
    ],
)
def test_expressions(text, expected):
    assert parse(text) == expected


@given(st.dictionaries(st.integers(0, 10**6), st.integers(-999, 999), min_size=1))
def test_any_sum_is_read(coefficients):
    text = " ".join(f"{'-' if c < 0 else '+'} {abs(c)}*{i}" for i, c in coefficients.items())
    assert parse(text) == coefficients


@pytest.mark.parametrize("text", ["", " ", "x", "12 +", "12 7", "12 ** 7", "1e3*2", "--3", "1.5"])
def test_what_is_no_expression(text):
    with pytest.raises(UserError, match="is no sum of features: write for instance") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_directions_are_sums_of_unit_vectors(tiny):
    dictionary = tiny()
    unit = torch.nn.functional.normalize(dictionary.directions, dim=1)
    torch.testing.assert_close(direction(dictionary, {4: 1.0}), unit[4])
    v = direction(dictionary, {4: 1.0, 9: -1.0, 2: 0.5})
    torch.testing.assert_close(v, unit[4] - unit[9] + unit[2] / 2)


def test_one_feature_is_near_itself_and_what_its_row_is_near(tiny):
    dictionary = tiny()
    found = combine(dictionary, {4: 2.0}, top=19)
    assert found.length == pytest.approx(2)
    ((feature, cosine, label, raised),) = found.terms
    assert (feature, label) == (4, None)
    assert cosine == pytest.approx(1)
    assert [token for token, _ in raised] == [token for token, _ in found.promoted]
    unit = torch.nn.functional.normalize(dictionary.directions, dim=1)
    expected = unit @ unit[4]
    assert [near.feature for near in found.nearest] == [
        i for i in expected.argsort(descending=True).tolist() if i != 4
    ]
    for near in found.nearest:
        assert near.cosine == pytest.approx(float(expected[near.feature]), abs=1e-6)
    assert len(combine(dictionary, {4: 2.0}, top=3).nearest) == 3


def test_orthogonal_terms_share_the_length(tiny):
    dictionary = tiny()
    rows = 3 * torch.eye(8).repeat(2, 1)
    flat = replace(dictionary, sae=dictionary.sae._replace(W_dec=rows))
    found = combine(flat, {0: 1.0, 1: -1.0})
    assert found.length == pytest.approx(math.sqrt(2))
    assert [near.cosine for near in found.terms] == pytest.approx([0.5**0.5, -(0.5**0.5)])
    # Feature 8 has the row of feature 0: the analogy finds it, and nothing else is as near.
    assert found.nearest[0].feature == 8
    assert found.nearest[0].cosine == pytest.approx(0.5**0.5)
    assert found.nearest[1].cosine == pytest.approx(0, abs=1e-6)


def test_logits_are_those_of_the_terms_summed(tiny):
    dictionary = tiny()
    coefficients = {4: 1.0, 9: -1.0}
    found = combine(dictionary, coefficients, logits=6)
    weights = sum(
        amount * logit_weights(dictionary, dictionary.directions[[feature]])[0]
        for feature, amount in amounts(dictionary, coefficients).items()
    )
    weights = weights / found.length
    order = weights.argsort(descending=True)
    assert [t for t, _ in found.promoted] == dictionary.shown(order[:6])
    assert [t for t, _ in found.suppressed] == dictionary.shown(order.flip(0)[:6])
    values = [value for _, value in (*found.promoted, *found.suppressed)]
    expected = torch.cat([weights[order[:6]], weights[order.flip(0)[:6]]])
    torch.testing.assert_close(torch.tensor(values), expected)


@pytest.mark.parametrize(("d_in", "number"), [(3, 1), (8, 20), (50, 300)])
def test_chance_is_the_median_over_random_directions(d_in, number):
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(2000, number, d_in, generator=generator)
    largest = torch.nn.functional.normalize(others, dim=2)[..., 0].max(1).values
    below = float((largest < chance(d_in, number)).float().mean())
    assert below == pytest.approx(0.5, abs=0.04)  # 3.6 standard errors


def test_one_direction_is_as_often_on_either_side():
    assert chance(256, 1) == pytest.approx(0, abs=1e-12)


@PLAIN_AND_NORMALISED
def test_edits_add_the_direction(tiny, normalised):
    dictionary = tiny(normalised=normalised)
    coefficients = {4: 1.0, 9: -1.0}
    x = dictionary.activations(dictionary.tokens("abcd"))
    added = apply(dictionary, x, edits(dictionary, coefficients, 3.0)) - x
    deviation = x[0].std(-1, keepdim=True) if normalised else torch.ones(5, 1)
    expected = 3 * direction(dictionary, coefficients) * deviation
    assert not added[0, 0].any()
    torch.testing.assert_close(added[0, 1:], expected.expand(5, 8)[1:], rtol=1e-3, atol=1e-4)


@PLAIN_AND_NORMALISED
def test_the_natural_strength_adds_as_much_as_there_is(tiny, normalised):
    dictionary = tiny(normalised=normalised)
    coefficients = {4: 1.0, 9: -1.0}
    strength = natural_strength(dictionary, coefficients, "a")
    x = dictionary.activations(dictionary.tokens("a"))
    added = apply(dictionary, x, edits(dictionary, coefficients, strength)) - x
    assert float(added[0, 1].norm()) == pytest.approx(float(x[0, 1].norm()), rel=1e-4)


def test_sums_that_are_nothing(tiny):
    dictionary = tiny()
    with pytest.raises(UserError, match="these directions cancel"):
        combine(dictionary, {4: 0.0})
    with pytest.raises(UserError, match="no feature 20"):
        combine(dictionary, {4: 1.0, 20: 1.0})
    with pytest.raises(UserError, match="no feature 20"):
        edits(dictionary, {20: 1.0}, 1.0)
    with pytest.raises(UserError, match="give 1 or more of each"):
        combine(dictionary, {4: 1.0}, top=0)
    rows = dictionary.directions.clone()
    rows[7] = 0
    flat = replace(dictionary, sae=dictionary.sae._replace(W_dec=rows))
    with pytest.raises(UserError, match="feature 7 of tiny sae has no direction"):
        combine(flat, {7: 1.0})


@pytest.fixture
def on_tiny(tiny, monkeypatch):
    """Have the command open the small dictionary."""
    monkeypatch.setattr(command, "opened", lambda *_: tiny())
    return tiny()


def run(*arguments):
    return CliRunner().invoke(app, ["algebra", *arguments])


def test_the_command_prints_json(on_tiny):
    result = run("4 - 9", "--top", "3", "--steer", "ab", "--steps", "4", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["combination"]["coefficients"] == {"4": 1, "9": -1}
    assert len(found["combination"]["nearest"]) == 3
    natural = natural_strength(on_tiny, {4: 1.0, 9: -1.0}, "ab")
    assert found["strength"] == pytest.approx(natural)
    assert found["steering"]["kl"] > 0
    assert len(found["steering"]["after"]) == 2
    alone = json.loads(run("4 - 9", "--json").stdout)
    assert (alone["strength"], alone["steering"]) == (None, None)


def test_the_command_prints_tables(on_tiny):
    found = combine(on_tiny, {4: 1.0, 9: -1.0})
    result = run("4 - 9", "--steer", "ab", "--steps", "4", "--strength", "0")
    assert result.exit_code == 0, result.stderr
    assert f"v = 1·d4 − 1·d9, |v| = {found.length:.3f}" in result.stdout
    assert f"{found.nearest[0].cosine:+.3f}" in result.stdout
    assert f"random directions: {found.chance:.3f}" in result.stdout
    # Nothing is added: nothing changes.
    assert "s = 0: KL 0.000 nats per token" in result.stdout


def test_the_command_refuses_in_one_line(on_tiny):
    for arguments in (("x",), ("4 - 4",), ("20",), ("4", "--steer", "")):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("sae: ")
