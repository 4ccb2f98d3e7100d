import pytest
import torch
from pydantic import ValidationError

from shared.saes import codes
from shared.saes.geometric_median import geometric_median
from shared.saes.jumprelu import JumpReLUWeights
from shared.saes.loading import load_sae
from shared.saes.prolu import ProLUConfig
from shared.saes.standard import StandardConfig
from shared.saes.weights import save_sae
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Job, train

D_IN, D_SAE, BATCH = 6, 40, 64


def config(**changes):
    return ProLUConfig(**{"d_in": D_IN, "d_sae": D_SAE, "l1": 0.05, "seed": 0} | changes)


def inputs(batch=BATCH, seed=1):
    return 5 * torch.rand(batch, D_IN, generator=torch.Generator().manual_seed(seed))


def started(matmul=torch.float32, **changes):
    """One whose thresholds lie among the pre-activations, some biases without effect (positive)."""
    sae = config(**changes).create("cpu", matmul)
    sae.start(inputs())
    sae.W_enc_T.mul_(1.3)
    sae.b_enc.copy_(torch.linspace(-0.3, 0.1, D_SAE))
    return sae


class StraightThrough(torch.autograd.Function):
    """ProLU-STE: 1[t > 0] has the derivative of ReLU, in m · 1[m + b > 0] · 1[m > 0]."""

    @staticmethod
    def forward(ctx, m, b):
        active = (m + b > 0) & (m > 0)
        ctx.save_for_backward(m, active)
        return torch.where(active, m, 0)

    @staticmethod
    def backward(ctx, at_f):
        m, active = ctx.saved_tensors
        at_b = torch.where(active, at_f * m, 0)
        return torch.where(active, at_f, 0) + at_b, at_b.sum(0)


def by_autograd(sae, x):
    """The formulas of the docstring in float64: losses, f and the gradients."""
    leaves = {
        name: tensor.double().clone().requires_grad_() for name, tensor in sae.parameters.items()
    }
    x = x.double() * sae.scale.double()
    m = (x - leaves["b_dec"]) @ leaves["W_enc_T"].T
    f = StraightThrough.apply(m, leaves["b_enc"])
    x_hat = f @ leaves["W_dec"] + leaves["b_dec"]
    losses = (x - x_hat).square().sum(1) + sae.config.l1 * f.sum(1)
    losses.mean().backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    full, rows = gradients["W_dec"], leaves["W_dec"].detach()
    gradients["W_dec"] = full - (full * rows).sum(1, keepdim=True) * rows
    return losses.detach(), f.detach(), gradients


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def products(request, monkeypatch):
    """Both ways of multiplying, whatever the share of active entries."""
    monkeypatch.setattr(codes, "SPARSE_BELOW", request.param)


@pytest.mark.usefixtures("products")
def test_gradients_are_autograd_s():
    sae, x = started(), inputs()
    gradients, measured = sae.gradients(x)
    losses, f, expected = by_autograd(sae, x)
    assert 0.05 < float((f > 0).double().mean()) < 0.5
    assert set(gradients) == set(sae.parameters)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-4, atol=1e-6)
        assert gradients[name].shape == sae.parameters[name].shape
    assert gradients["b_enc"].any()
    assert (gradients["W_dec"] * sae.W_dec).sum(1).abs().max() < 1e-6
    assert float(measured.scalars["loss"]) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert float(measured.scalars["l0"]) == pytest.approx(float((f > 0).sum(1).double().mean()))
    assert float(measured.scalars["l1"]) == pytest.approx(float(f.sum(1).mean()), rel=1e-5)
    x_hat = (f @ sae.W_dec.double() + sae.b_dec) / sae.scale
    mse = float((x - x_hat).square().mean())
    assert float(measured.scalars["mse"]) == pytest.approx(mse, rel=1e-5)
    assert torch.equal(measured.fired, (f > 0).any(0))
    torch.testing.assert_close(sae.losses(x).double(), losses, rtol=1e-4, atol=1e-6)


def test_the_penalty_warms_up():
    x = inputs()
    half = started(l1=0.05).gradients(x, 0.5)[0]
    expected = started(l1=0.025).gradients(x)[0]
    for name, gradient in expected.items():
        torch.testing.assert_close(half[name], gradient)


def test_the_activation_does_not_shrink():
    """Over its threshold a feature is its pre-activation, whatever the bias."""
    sae, x = started(), inputs()
    m = (x * sae.scale - sae.b_dec) @ sae.W_enc_T.T
    weights = JumpReLUWeights.from_export(sae.export())
    f = weights.encode(x) * sae.scale
    expected = torch.where((m + sae.b_enc > 0) & (m > 0), m, 0)
    assert ((m > 0) & (expected == 0)).any()  # held back by a bias
    torch.testing.assert_close(f, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_float32_to_its_precision():
    x = inputs(512)
    exact, measured = started().gradients(x)
    rough, roughly = started(torch.bfloat16).gradients(x)
    for name, gradient in exact.items():
        assert float((rough[name] - gradient).norm() / gradient.norm()) < 0.1, name
    loss = float(measured.scalars["loss"])
    assert float(roughly.scalars["loss"]) == pytest.approx(loss, rel=0.02)


def test_the_loss_is_that_of_a_standard_autoencoder_where_biases_are_zero():
    """Scaled, and with λ converted as the docstring says."""
    x = inputs()
    sae = started()
    sae.b_enc.zero_()
    factor = float(D_IN * sae.scale)
    standard = StandardConfig(d_in=D_IN, d_sae=D_SAE, l1=sae.config.l1 / factor, seed=0).create()
    for name in ("W_enc_T", "W_dec"):
        standard.parameters[name].copy_(sae.parameters[name])
    standard.b_dec.copy_(sae.b_dec / sae.scale)
    expected = standard.losses(x) * factor * sae.scale
    torch.testing.assert_close(sae.losses(x), expected, rtol=1e-4, atol=1e-6)


def test_initialisation():
    sae = ProLUConfig(d_in=64, d_sae=400, l1=0, seed=0).create()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(400))
    assert torch.equal(sae.W_enc_T, sae.W_dec)
    assert sae.W_enc_T.data_ptr() != sae.W_dec.data_ptr()
    assert not sae.b_enc.any()
    x = 3 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) + 1
    sae.start(x)
    assert float((x * sae.scale).square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(sae.b_dec, geometric_median(x * sae.scale))
    assert not torch.equal(config(seed=1).create().W_dec, config().create().W_dec)


def test_the_decoder_keeps_unit_rows():
    sae = started()
    sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    direction = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    sae.constrain()
    torch.testing.assert_close(sae.W_dec, direction)


def test_resampled_features_start_again():
    sae, x = started(), inputs()
    alive = torch.tensor([0, 1, 2])
    typical = sae.W_enc_T[alive].norm(dim=1).mean()
    features = torch.tensor([5, 9])
    sae.resample(features, x[:2], alive)
    directions = x[:2] / x[:2].norm(dim=1, keepdim=True)
    torch.testing.assert_close(sae.W_dec[features], directions)
    torch.testing.assert_close(sae.W_enc_T[features], 0.2 * typical * directions)
    assert not sae.b_enc[features].any()
    assert sae.b_enc[[4, 6]].all()


@pytest.mark.parametrize("spoilt", ["x", "W_enc_T"])
def test_what_is_not_finite_gives_a_loss_that_is_not(spoilt):
    sae, x = started(), inputs()
    (x if spoilt == "x" else sae.W_enc_T)[3, 2] = torch.nan
    assert not sae.gradients(x)[1].scalars["loss"].isfinite()


def test_sae_lens_loads_it_and_computes_the_same(tmp_path):
    from sae_lens import SAE

    sae, x = started(), inputs()
    exported = sae.export()
    save_sae(tmp_path, exported, {"hook_name": "resid"})
    theirs, ours = SAE.load_from_disk(tmp_path), load_sae(tmp_path)
    assert theirs.cfg.architecture() == "jumprelu"
    assert isinstance(ours, JumpReLUWeights)
    assert (ours.threshold >= 0).all()
    f = by_autograd(sae, x)[1]
    x_hat = ((f @ sae.W_dec.double() + sae.b_dec) / sae.scale).float()
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x), (f / sae.scale).float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs(x), x_hat, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.decode(ours.encode(x)), x_hat, rtol=1e-4, atol=1e-4)
    sae.W_dec.zero_()
    assert exported.tensors["W_dec"].any()  # a copy


def batches(start):
    """Sparse combinations of 16 fixed directions, of no particular scale."""
    directions = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for number in range(start, 10**6):
        generator = torch.Generator().manual_seed(1 + number)
        amounts = torch.rand(64, 16, generator=generator) + 0.5
        yield 4 * (amounts * (torch.rand(64, 16, generator=generator) < 0.1)) @ directions + 1


def job(**changes):
    sae = ProLUConfig(**{"d_in": 8, "d_sae": 32, "l1": 0.1, "seed": 0} | changes)
    return Job(name="one", sae=sae, lr=1e-2, resampling=None)


def test_it_learns():
    """Unseen inputs lose three quarters of their variance; more penalty means fewer features."""
    x = next(batches(10**5))
    active = []
    for l1 in (0.1, 0.3):
        found = train([job(l1=l1)], batches, 300)["one"]
        weights = JumpReLUWeights.from_export(found.sae.export())
        f = weights.encode(x)
        active.append(float((f > 0).sum(1).float().mean()))
        error = (weights.decode(f) - x).square().sum()
        assert error < 0.25 * (x - x.mean(0)).square().sum()
        assert (found.sae.b_enc < 0).any()  # thresholds were learned
    assert active[0] > active[1] > 0


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    one = job()
    expected = train([one], batches, 12)["one"].sae
    checkpoint = Checkpoint(path=tmp_path / "run.safetensors", every_steps=4)

    def broken(start):
        for number, x in enumerate(batches(start), start):
            if number == 9:
                raise KeyboardInterrupt
            yield x

    with pytest.raises(KeyboardInterrupt):
        train([one], broken, 12, checkpoint=checkpoint)
    found = train([one], batches, 12, checkpoint=checkpoint)["one"].sae
    assert set(found.state) == {*found.parameters, "scale"}
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name


@pytest.mark.parametrize("bad", [{"d_in": 0}, {"l1": -1}, {"l1": float("nan")}, {"k": 3}])
def test_parameters_that_make_no_sense(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        config(**bad)
