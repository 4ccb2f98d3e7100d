"""Patching features between prompts, against full patching, TransformerLens and by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from shared.cli import app
from shared.errors import UserError
from shared.features.commands import patch as command
from shared.features.parts import Target, open_target
from shared.features.patch import draw, full_by_transformer_lens, patch

CLEAN, CORRUPTED = "abcdef", "abxdey"
TARGET = Target(70, 80)
SITES = pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_post"])
PLAIN_AND_NORMALISED = pytest.mark.parametrize("normalised", [False, True])


def activations(dictionary):
    return [dictionary.activations(dictionary.tokens(text)) for text in (CLEAN, CORRUPTED)]


def score(dictionary, prompt, x):
    return float(TARGET.score(dictionary.logits_with(dictionary.tokens(prompt), x)[0, -1]))


def recovered(dictionary, change, x, other):
    """What is recovered when `change`, [1, length, d_in], goes from one run into the other."""
    clean, corrupted = score(dictionary, CLEAN, x), score(dictionary, CORRUPTED, other)
    denoised = score(dictionary, CORRUPTED, other + change)
    noised = score(dictionary, CLEAN, x - change)
    return (denoised - corrupted) / (clean - corrupted), (clean - noised) / (clean - corrupted)


@SITES
@PLAIN_AND_NORMALISED
def test_all_features_and_the_rest_are_full_patching_of_the_activation(tiny, site, normalised):
    dictionary = tiny(f"blocks.0.{site}", normalised)
    found = patch(dictionary, CLEAN, CORRUPTED, TARGET)
    x, other = activations(dictionary)
    assert found.clean == pytest.approx(score(dictionary, CLEAN, x), abs=1e-4)
    assert found.corrupted == pytest.approx(score(dictionary, CORRUPTED, other), abs=1e-4)
    assert found.at.tolist() == [3, 4, 5, 6]
    for case, position in enumerate(found.at):
        mixed = x.clone()
        mixed[0, position] = other[0, position]
        expected = recovered(dictionary, x - mixed, x, other)
        assert [way[case] for way in found.full] == pytest.approx(expected, abs=1e-3)
    expected = recovered(dictionary, x - other, x, other)
    assert [way[2] for way in found.everywhere] == pytest.approx(expected, abs=1e-3)
    if site.startswith("resid"):  # the model goes on from nothing else
        assert expected == pytest.approx((1, 1), abs=1e-3)


@SITES
def test_full_patching_is_that_of_transformer_lens(tiny, site, capfd):
    dictionary = tiny(f"blocks.0.{site}")
    ours = patch(dictionary, CLEAN, CORRUPTED, TARGET).full.denoising
    theirs = full_by_transformer_lens(dictionary, CLEAN, CORRUPTED, TARGET)
    assert np.abs(ours).max() > 0.05
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@PLAIN_AND_NORMALISED
def test_features_alone_and_together_by_hand(tiny, normalised):
    dictionary = tiny(normalised=normalised)
    found = patch(dictionary, CLEAN, CORRUPTED, TARGET)
    x, other = activations(dictionary)
    deviations = [each.std(-1, keepdim=True) if normalised else 1 for each in (x, other)]
    f, other_f = (
        dictionary.encode(each) * deviation
        for each, deviation in zip((x, other), deviations, strict=True)
    )
    difference = f - other_f
    active = (((f > 0) | (other_f > 0))[0, 3:]).nonzero()
    assert (active[:, 0] + 3).tolist() == found.positions.tolist()
    assert active[:, 1].tolist() == found.features.tolist()
    for pair in found.order()[:6]:
        one = torch.zeros_like(difference)
        at = (0, found.positions[pair], found.features[pair])
        one[at] = difference[at]
        expected = recovered(dictionary, one @ dictionary.directions, x, other)
        assert [way[pair] for way in found.pairs] == pytest.approx(expected, abs=1e-3)
    for case, position in enumerate(found.at):
        here = torch.zeros_like(difference)
        here[0, position] = difference[0, position]
        features = here @ dictionary.directions
        rest = torch.zeros_like(x)
        rest[0, position] = (x - other - difference @ dictionary.directions)[0, position]
        for whole, change in ((found.all_features, features), (found.rest, rest)):
            expected = recovered(dictionary, change, x, other)
            assert [way[case] for way in whole] == pytest.approx(expected, abs=1e-3)


def test_in_a_linear_model_parts_add_up(tiny):
    dictionary = tiny("blocks.1.resid_post", normalised=True)
    dictionary.model.network.transformer.ln_f = torch.nn.Identity()
    found = patch(dictionary, CLEAN, CORRUPTED, TARGET)
    last = found.positions == found.at[-1]
    for alone, features, rest in zip(found.pairs, found.all_features, found.rest, strict=True):
        assert alone[last].sum() == pytest.approx(features[-1], abs=1e-3)
        assert features[-1] + rest[-1] == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(alone[~last], 0, atol=1e-4)
    np.testing.assert_allclose(*found.pairs, atol=1e-4)  # denoising is noising


def test_the_strongest_come_first_and_stand_in_the_heat_map(tiny):
    found = patch(tiny(), CLEAN, CORRUPTED, TARGET)
    size = np.abs(found.pairs).max(0)
    assert (np.diff(size[found.order()]) <= 0).all()
    strongest = found.strongest(5)
    assert len(set(strongest)) == 5
    assert strongest[0] == found.features[size.argmax()]
    for noising in (False, True):
        heat = found.heat(strongest, noising)
        for row, feature in enumerate(strongest):
            for column, position in enumerate(found.at):
                pair = (found.features == feature) & (found.positions == position)
                assert heat[row, column] == found.pairs[noising][pair].sum()
    assert [found.label(p) for p in (1, 3)] == ["'a'", "'c' / 'x'"]


def test_the_figure_shows_the_numbers(tiny):
    found = patch(tiny(), CLEAN, CORRUPTED, TARGET)
    figure = draw(found, 4)
    single, whole = np.array(figure.axes[:4]).reshape(2, 2)
    for noising in (0, 1):
        (image,) = single[noising].images
        heat = found.heat(found.strongest(4), bool(noising))
        np.testing.assert_array_equal(image.get_array(), heat)
        (image,) = whole[noising].images
        expected = [one[noising] for one in (found.all_features, found.rest, found.full)]
        np.testing.assert_array_equal(image.get_array(), expected)
        assert image.get_clim() == (-1, 1)
    shown = [tick.get_text() for tick in whole[0].get_xticklabels()]
    assert shown == ["'c' / 'x'", "'d'", "'e'", "'f' / 'y'"]
    names = [tick.get_text() for tick in single[0].get_yticklabels()]
    assert names == [str(feature) for feature in found.strongest(4)]


def test_bad_input_is_one_clear_line(tiny):
    dictionary = tiny()
    silent = replace(
        dictionary, sae=dictionary.sae._replace(b_enc=torch.full_like(dictionary.sae.b_enc, -1e6))
    )
    with pytest.raises(UserError, match="no feature of tiny sae is active where"):
        patch(silent, CLEAN, CORRUPTED, TARGET)
    cases = [
        ("abc", "ab", TARGET, r"3 tokens \('a | b | c'\) and the corrupted 2"),
        ("abc", "abc", TARGET, "are the same"),
        ("abc", "", TARGET, "the text is empty"),
        ("abc", "abd", Target(70, 70), "the same logit: there is nothing to recover"),
    ]
    for clean, corrupted, target, message in cases:
        with pytest.raises(UserError, match=message) as error:
            patch(dictionary, clean, corrupted, target)
        assert "\n" not in str(error.value)


@pytest.fixture
def sae(tiny, monkeypatch):
    monkeypatch.setattr(command, "opened", lambda *_: tiny())
    return lambda *arguments: CliRunner().invoke(app, ["patch", *arguments])


def test_the_command_prints_draws_and_writes_json(sae, tiny, tmp_path):
    found = patch(tiny(), CLEAN, CORRUPTED, open_target(tiny(), "a", "b"))
    arguments = (CLEAN, CORRUPTED, "--target", "a", "--versus", "b")
    shown = sae(*arguments, "--figure", str(tmp_path / "heat.png"), "--transformer-lens")
    assert shown.exit_code == 0, shown.output
    assert f"{found.clean:.3f} clean, {found.corrupted:.3f} corrupted" in shown.stdout
    assert "TransformerLens' activation patching agrees but for" in shown.stdout
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(sae(*arguments, "--json").stdout)
    assert report["clean"] == pytest.approx(found.clean)
    assert report["corrupted_tokens"] == ["<|endoftext|>", *CORRUPTED]
    assert [pair["feature"] for pair in report["pairs"]] == found.features.tolist()
    assert [pair["noising"] for pair in report["pairs"]] == pytest.approx(found.pairs.noising)
    assert [row["rest_denoising"] for row in report["positions"]] == pytest.approx(
        found.rest.denoising
    )
    everywhere = [report["everywhere"][f"{what}_noising"] for what in ("features", "rest", "full")]
    assert everywhere == pytest.approx(found.everywhere.noising)
    assert report["full_by_transformer_lens"] is None


def test_the_command_refuses_bad_input(sae, tmp_path):
    for arguments, message in (
        ((CLEAN, "ab", "--target", "a"), "6 tokens"),
        ((CLEAN, CORRUPTED, "--target", "ab"), "no single token"),
        ((CLEAN, CORRUPTED, "--target", "a", "--figure", "heat.html"), "ends in .png"),
    ):
        result = sae(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
