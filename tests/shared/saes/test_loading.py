import json

import pytest
import torch

from shared.errors import UserError
from shared.saes.gated import GatedConfig, GatedWeights
from shared.saes.jumprelu import JumpReLUConfig, JumpReLUWeights
from shared.saes.loading import load_sae
from shared.saes.preprocessing import Normalised, for_activations
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig, TopKWeights
from shared.saes.weights import Weights, load_weights, save_sae, weights_of

SIZES = {"d_in": 5, "d_sae": 12, "seed": 3}
ALL = {
    "standard": (StandardConfig(**SIZES, l1=0.1), weights_of, Weights),
    "gated": (GatedConfig(**SIZES, l1=0.1), GatedWeights.from_export, GatedWeights),
    "gated_untied": (
        GatedConfig(**SIZES, l1=0.1, tied=False),
        GatedWeights.from_export,
        GatedWeights,
    ),
    "jumprelu": (JumpReLUConfig(**SIZES, l0=0.1), JumpReLUWeights.from_export, JumpReLUWeights),
    "topk": (TopKConfig(**SIZES, k=2), TopKWeights.from_export, TopKWeights),
}


def inputs():
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(1))


def exported(architecture):
    """A few parameters moved at random, as by training."""
    sae = ALL[architecture][0].create()
    sae.start(inputs())
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return sae.export()


@pytest.mark.parametrize("architecture", ALL)
def test_every_architecture_is_read_as_it_was_exported(tmp_path, architecture):
    _, from_export, kind = ALL[architecture]
    export = exported(architecture)
    assert export.config["architecture"] == architecture
    save_sae(tmp_path, export, {})
    found, expected = load_sae(tmp_path), from_export(export)
    assert type(found) is kind
    for name in kind._fields:
        value = getattr(expected, name)
        same = torch.equal if isinstance(value, torch.Tensor) else type(value).__eq__
        assert same(getattr(found, name), value), name
    f = found.encode(inputs())
    assert f.shape == (9, 12)
    assert f.any()
    assert found.decode(f).shape == (9, 5)


@pytest.mark.parametrize("architecture", ALL)
def test_one_of_normalised_activations_is_read_as_such(tmp_path, architecture):
    export = exported(architecture)
    save_sae(tmp_path, for_activations(export), {})
    found, expected = load_sae(tmp_path), Normalised(ALL[architecture][1](export))
    assert isinstance(found, Normalised)
    assert type(found.sae) is ALL[architecture][2]
    x = 7 * inputs() + 3
    assert torch.equal(found.encode(x), expected.encode(x))
    assert torch.equal(found.reconstruct(x), expected.reconstruct(x))


def change(folder, **fields):
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("architecture", ALL)
def test_tensors_of_another_shape(tmp_path, architecture):
    save_sae(tmp_path, exported(architecture), {})
    change(tmp_path, d_in=6)
    with pytest.raises(UserError, match=r"lacks a W_enc of shape \(6, 12\)") as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("was", "claims", "message"),
    [
        ("standard", "gated", r"lacks a b_gate of shape \(12,\)"),
        ("gated", "gated_untied", r"lacks a W_mag of shape \(5, 12\)"),
        ("standard", "jumprelu", r"lacks a threshold of shape \(12,\)"),
        ("gated", "crosscoder", "has architecture crosscoder: only standard, gated, .* are read"),
    ],
)
def test_a_configuration_that_does_not_fit_its_tensors(tmp_path, was, claims, message):
    save_sae(tmp_path, exported(was), {})
    change(tmp_path, architecture=claims)
    with pytest.raises(UserError, match=message):
        load_sae(tmp_path)


def test_a_configuration_that_is_no_object(tmp_path):
    save_sae(tmp_path, exported("gated"), {})
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        load_sae(tmp_path)


def test_a_configuration_that_lacks_a_number(tmp_path):
    export = exported("topk")
    config = {name: value for name, value in export.config.items() if name != "k"}
    save_sae(tmp_path, export._replace(config=config), {})
    with pytest.raises(UserError, match=r"cfg.json lacks 'k'"):
        load_sae(tmp_path)


def test_only_a_standard_one_has_standard_weights(tmp_path):
    save_sae(tmp_path, exported("gated"), {})
    with pytest.raises(UserError, match="has architecture gated: only standard is read"):
        load_weights(tmp_path)


def test_standard_weights_take_activations_as_they_are(tmp_path):
    save_sae(tmp_path, for_activations(exported("standard")), {})
    with pytest.raises(UserError, match="normalize_activations layer_norm: only none") as caught:
        load_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_inputs_that_are_changed_in_another_way(tmp_path):
    save_sae(tmp_path, exported("standard"), {})
    change(tmp_path, normalize_activations="constant_norm_rescale")
    with pytest.raises(
        UserError, match="constant_norm_rescale: only none, layer_norm are"
    ) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_autoencoder_there(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_sae(tmp_path / "none")


def test_sae_lens_refuses_untied_encoders(tmp_path):
    from sae_lens import SAE

    save_sae(tmp_path, exported("gated_untied"), {})
    with pytest.raises(KeyError, match="gated_untied"):
        SAE.load_from_disk(tmp_path)


def test_what_sae_lens_saves_is_read(tmp_path):
    from sae_lens import SAE

    save_sae(tmp_path / "ours", exported("gated"), {})
    SAE.load_from_disk(tmp_path / "ours").save_model(tmp_path / "theirs")
    found, expected = load_sae(tmp_path / "theirs"), load_sae(tmp_path / "ours")
    assert torch.equal(found.encode(inputs()), expected.encode(inputs()))
