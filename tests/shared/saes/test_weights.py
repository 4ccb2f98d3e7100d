import json

import pytest
import torch

from shared.errors import UserError
from shared.saes.standard import StandardConfig, summed_error_l1
from shared.saes.weights import load_weights, save_sae, weights_of

D_IN, D_SAE = 5, 12


def trained(pre_encoder_bias=True):
    config = StandardConfig(
        d_in=D_IN, d_sae=D_SAE, l1=0.03, pre_encoder_bias=pre_encoder_bias, seed=3
    )
    sae = config.create()
    sae.b_dec.copy_(torch.rand(D_IN, generator=torch.Generator().manual_seed(0)))
    sae.b_enc.copy_(torch.linspace(-0.2, 0.3, D_SAE))
    return sae


def inputs():
    return torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pre_encoder_bias", [True, False])
def test_what_is_saved_is_read_again(tmp_path, pre_encoder_bias):
    sae = trained(pre_encoder_bias)
    save_sae(tmp_path / "new", sae.export(), {"seed": 3})
    weights = load_weights(tmp_path / "new")
    assert weights.apply_b_dec_to_input == pre_encoder_bias
    for name in ("b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(weights, name), getattr(sae, name))
    assert torch.equal(weights.W_enc, sae.W_enc_T.T)
    x = inputs()
    centred = x - sae.b_dec if pre_encoder_bias else x
    f = torch.relu(centred @ sae.W_enc_T.T + sae.b_enc)
    torch.testing.assert_close(weights.encode(x), f)
    torch.testing.assert_close(weights.decode(f), f @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(weights.encode(x.view(3, 3, D_IN)), f.view(3, 3, D_SAE))


def test_an_export_is_a_copy():
    sae = trained()
    exported = weights_of(sae.export())
    sae.W_dec.zero_()
    sae.W_enc_T.zero_()
    assert exported.W_dec.any()
    assert exported.W_enc.any()


@pytest.mark.parametrize("pre_encoder_bias", [True, False])
def test_sae_lens_loads_it_and_computes_the_same(tmp_path, pre_encoder_bias):
    from sae_lens import SAE

    sae = trained(pre_encoder_bias)
    save_sae(tmp_path, sae.export(), {"model_name": "mine", "hook_name": "mlp", "l1": 0.03})
    theirs = SAE.load_from_disk(tmp_path)
    ours = load_weights(tmp_path)
    x = inputs()
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x), ours.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs(x), ours.decode(ours.encode(x)), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.metadata.hook_name == "mlp"
    assert theirs.cfg.metadata.l1 == 0.03
    theirs.save_model(tmp_path / "theirs")
    assert torch.equal(load_weights(tmp_path / "theirs").W_enc, ours.W_enc)


@pytest.mark.parametrize("pre_encoder_bias", [True, False])
def test_gradients_are_those_of_sae_lens(pre_encoder_bias):
    """Its loss is d_in times ours; the component along the decoder rows is projected out here."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae, x = trained(pre_encoder_bias), inputs()
    theirs = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            apply_b_dec_to_input=pre_encoder_bias,
            l1_coefficient=summed_error_l1(sae.config),
        )
    )
    theirs.load_state_dict(dict(sae.export().tensors))
    out = theirs.training_forward_pass(
        TrainStepInput(x, {"l1": theirs.cfg.l1_coefficient}, None, 0, False)
    )
    out.loss.backward()
    found, measured = sae.gradients(x)
    assert out.loss.item() == pytest.approx(D_IN * float(measured.scalars["loss"]), rel=1e-5)
    full = theirs.W_dec.grad
    rows = theirs.W_dec.detach()
    expected = {
        "W_enc_T": theirs.W_enc.grad.T,
        "b_enc": theirs.b_enc.grad,
        "W_dec": full - (full * rows).sum(1, keepdim=True) * rows,
        "b_dec": theirs.b_dec.grad,
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(D_IN * found[name], gradient, rtol=1e-4, atol=1e-6)


def spoil_missing(folder):
    (folder / "sae_weights.safetensors").unlink()


def spoil_truncated(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def spoil_config(folder):
    (folder / "cfg.json").write_text("{")


def changed(**fields):
    def change(folder):
        path = folder / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "sae_weights.safetensors is missing: train"),
        (spoil_truncated, "is damaged"),
        (spoil_config, "is damaged"),
        (changed(architecture="gated"), "has architecture gated: only standard"),
        (changed(normalize_activations="layer_norm"), "normalize_activations layer_norm"),
        (changed(d_sae=13), r"lacks a W_enc of shape \(5, 13\)"),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path, spoil, message):
    save_sae(tmp_path, trained().export(), {})
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_weights(tmp_path / "none")
