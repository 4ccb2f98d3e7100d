import math

import pytest
import torch
from pydantic import ValidationError

from shared.saes import codes
from shared.saes.geometric_median import geometric_median
from shared.saes.standard import StandardConfig, l1_from_summed_error, summed_error_l1

D_IN, D_SAE, BATCH = 6, 20, 32


def config(**changes):
    return StandardConfig(**{"d_in": D_IN, "d_sae": D_SAE, "l1": 0.02, "seed": 0} | changes)


def inputs(batch=BATCH, seed=1):
    return torch.rand(batch, D_IN, generator=torch.Generator().manual_seed(seed))


def started(**changes):
    sae = config(**changes).create()
    sae.start(inputs())
    sae.b_enc.copy_(torch.linspace(-0.3, 0.2, D_SAE))
    return sae


def loss_by_autograd(sae, x, pre_encoder_bias, l1):
    """The formula of the docstring, in float64; returns the loss of every input and leaves."""
    leaves = {
        name: tensor.double().clone().requires_grad_() for name, tensor in sae.parameters.items()
    }
    centred = x.double() - leaves["b_dec"] if pre_encoder_bias else x.double()
    f = torch.relu(centred @ leaves["W_enc_T"].T + leaves["b_enc"])
    x_hat = f @ leaves["W_dec"] + leaves["b_dec"]
    return (x.double() - x_hat).square().mean(1) + l1 * f.sum(1), f, leaves


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def products(request, monkeypatch):
    """Both ways of multiplying, whatever the share of active entries."""
    monkeypatch.setattr(codes, "SPARSE_BELOW", request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("pre_encoder_bias", [True, False])
def test_gradients_are_autograd_s(pre_encoder_bias):
    sae, x = started(pre_encoder_bias=pre_encoder_bias), inputs()
    gradients, measured = sae.gradients(x)
    losses, f, leaves = loss_by_autograd(sae, x, pre_encoder_bias, sae.config.l1)
    assert 0 < float((f > 0).float().mean()) < 1
    losses.mean().backward()
    losses, f = losses.detach(), f.detach()
    rows = sae.W_dec.double()
    full = leaves["W_dec"].grad
    leaves["W_dec"].grad = full - (full * rows).sum(1, keepdim=True) * rows
    for name, leaf in leaves.items():
        torch.testing.assert_close(gradients[name].double(), leaf.grad, rtol=1e-5, atol=1e-7)
        assert gradients[name].shape == sae.parameters[name].shape
    assert (gradients["W_dec"] * sae.W_dec).sum(1).abs().max() < 1e-7
    assert float(measured.scalars["loss"]) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert float(measured.scalars["l0"]) == pytest.approx(float((f > 0).sum(1).double().mean()))
    assert float(measured.scalars["l1"]) == pytest.approx(float(f.sum(1).mean()), rel=1e-5)
    assert torch.equal(measured.fired, (f > 0).any(0))
    torch.testing.assert_close(sae.losses(x).double(), losses, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("products")
def test_gradients_in_bfloat16_are_those_in_float32_to_its_precision():
    x = inputs(256)
    full, half = started(), config().create("cpu", torch.bfloat16)
    for name, tensor in half.parameters.items():
        tensor.copy_(full.parameters[name])
    expected, measured = full.gradients(x)
    found, rough = half.gradients(x)
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 0.03, name
    assert float(rough.scalars["loss"]) == pytest.approx(float(measured.scalars["loss"]), rel=0.01)


def test_initialisation():
    wide = StandardConfig(d_in=64, d_sae=400, l1=0, seed=0).create()
    bound = 1 / math.sqrt(64)  # fan-in of the encoder
    assert 0.99 * bound < wide.W_enc_T.abs().max() <= bound
    assert float(wide.W_enc_T.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    torch.testing.assert_close(wide.W_dec.norm(dim=1), torch.ones(400))
    cosines = torch.cosine_similarity(wide.W_dec, wide.W_enc_T)
    assert cosines.abs().mean() < 0.2  # untied
    assert not wide.b_enc.any()
    x = inputs(50)
    sae = config().create()
    sae.start(x)
    assert torch.equal(sae.b_dec, geometric_median(x))
    assert not torch.equal(config(seed=1).create().W_dec, sae.W_dec)


def test_the_decoder_keeps_unit_rows():
    sae = started()
    sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    direction = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    sae.constrain()
    torch.testing.assert_close(sae.W_dec, direction)


def test_an_input_that_is_not_finite_gives_a_loss_that_is_not():
    sae, x = started(), inputs()
    x[3, 2] = torch.nan
    assert not sae.gradients(x)[1].scalars["loss"].isfinite()


def test_conversion_to_a_summed_error():
    """λ as SAELens and dictionary_learning define it gives d_in times the loss."""
    sae, x = started(), inputs()
    losses, f, leaves = loss_by_autograd(sae, x, True, sae.config.l1)
    x_hat = f @ leaves["W_dec"] + leaves["b_dec"]
    summed = (x.double() - x_hat).square().sum(1) + summed_error_l1(sae.config) * f.sum(1)
    torch.testing.assert_close(summed, D_IN * losses)
    assert l1_from_summed_error(summed_error_l1(sae.config), D_IN) == pytest.approx(0.02)


@pytest.mark.parametrize(
    "bad", [{"d_in": 0}, {"d_sae": 0}, {"l1": -0.1}, {"l1": math.nan}, {"l1": math.inf}, {"lr": 1}]
)
def test_parameters_that_make_no_sense(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        config(**bad)
