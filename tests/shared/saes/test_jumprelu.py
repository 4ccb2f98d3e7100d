import math

import pytest
import torch
from pydantic import ValidationError

from shared.saes import codes
from shared.saes.jumprelu import JumpReLUConfig, JumpReLUWeights
from shared.saes.weights import save_sae
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Job, train
from shared.training.resampling import Resampling

D_IN, D_SAE, BATCH = 6, 20, 64


def config(**changes):
    fixed = {"d_in": D_IN, "d_sae": D_SAE, "l0": 0.02, "seed": 0}
    return JumpReLUConfig(**fixed | {"bandwidth": 0.1, "threshold": 0.05} | changes)


def inputs(batch=BATCH, seed=1):
    return 5 * torch.rand(batch, D_IN, generator=torch.Generator().manual_seed(seed))


def started(matmul=torch.float32, **changes):
    sae = config(**changes).create("cpu", matmul)
    generator = torch.Generator().manual_seed(2)
    sae.start(inputs())
    sae.b_dec.copy_(0.1 * torch.randn(D_IN, generator=generator))
    sae.b_enc.copy_(torch.linspace(-0.1, 0.2, D_SAE))
    sae.log_threshold.add_(torch.linspace(-0.5, 1.5, D_SAE))
    sae.W_enc_T.add_(0.2 * torch.randn(D_SAE, D_IN, generator=generator))
    return sae


def dense(sae, x, penalty=1.0):
    """The formulas of the docstrings in float64: every input's loss, z, f and the gradients."""
    leaves = {
        name: tensor.double().clone().requires_grad_() for name, tensor in sae.parameters.items()
    }
    scaled, l0, epsilon = x.double() * sae.scale.double(), sae.config.l0, sae.config.bandwidth
    theta = leaves["log_threshold"].detach().exp()
    z = (scaled - leaves["b_dec"]) @ leaves["W_enc_T"].T + leaves["b_enc"]
    f = z * (z > theta)
    f.retain_grad()
    x_hat = f @ leaves["W_dec"] + leaves["b_dec"]
    losses = (scaled - x_hat).square().sum(1) + penalty * l0 * (z > theta).sum(1)
    losses.mean().backward()
    rectangle = ((z - theta) / epsilon).abs() < 0.5
    at_f = f.grad * -(theta / epsilon) * rectangle
    at_step = penalty * l0 / len(x) * -(1 / epsilon) * rectangle
    rows = leaves["W_dec"].detach()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if name != "log_threshold"}
    full = gradients["W_dec"]
    gradients["W_dec"] = full - (full * rows).sum(1, keepdim=True) * rows
    gradients["log_threshold"] = ((at_f + at_step) * theta).sum(0).detach()
    return losses.detach(), z.detach(), f.detach(), gradients


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def products(request, monkeypatch):
    """Both ways of multiplying, whatever the share of active entries."""
    monkeypatch.setattr(codes, "SPARSE_BELOW", request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("penalty", [1.0, 0.3])
def test_gradients_are_autograd_s_and_the_estimator_s(penalty):
    """Of all parameters but θ by autograd, of log θ by the formula of the estimator."""
    sae, x = started(), inputs()
    gradients, measured = sae.gradients(x, penalty)
    losses, z, f, expected = dense(sae, x, penalty)
    near = (z - sae.log_threshold.exp()).abs() < 0.05
    assert 0.05 < float((f > 0).double().mean()) < 0.95
    assert near[f > 0].any()
    assert near[f == 0].any()
    assert set(gradients) == set(sae.parameters)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-4, atol=1e-6)
        assert gradients[name].shape == sae.parameters[name].shape
    assert float(measured.scalars["loss"]) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert float(measured.scalars["l0"]) == pytest.approx(float((f > 0).sum(1).double().mean()))
    error = f @ sae.W_dec.double() + sae.b_dec - x * sae.scale
    raw = float((error / sae.scale).square().mean())
    assert float(measured.scalars["mse"]) == pytest.approx(raw, rel=1e-5)
    assert torch.equal(measured.fired, (f > 0).any(0))
    if penalty == 1:
        torch.testing.assert_close(sae.losses(x).double(), losses, rtol=1e-5, atol=1e-6)


def test_the_estimator_is_the_derivative_of_the_expected_loss():
    """Against finite differences of the mean loss over other inputs: within 5% for every threshold.

    What sets the sizes, by other seeds: the sample leaves 1.4% of noise, and the finite bandwidth
    biases the estimate by about ε/(4θ) = 1.4%. Thresholds are far from √λ, where the derivative
    passes through zero and a relative error would mean nothing.
    """
    sae = config(d_in=8, d_sae=2, l0=0.02, bandwidth=0.02, threshold=0.4).create()

    def sample(seed):
        return torch.randn(2**19, 8, generator=torch.Generator().manual_seed(seed))

    sae.start(sample(0))
    sae.log_threshold.add_(torch.tensor([-0.2, 0.2]))
    found = sum(sae.gradients(sample(seed))[0]["log_threshold"] for seed in range(8)) / 8
    others, step = [sample(100), sample(101)], 0.04
    expected = torch.empty(2)
    for feature in range(2):
        means = []
        for change in (step, -2 * step):
            sae.log_threshold[feature] += change
            means.append(sum(float(sae.losses(x).double().mean()) for x in others) / 2)
        sae.log_threshold[feature] += step
        expected[feature] = (means[0] - means[1]) / (2 * step)
    assert expected.abs().min() > 0.01
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


def test_bfloat16_resolves_the_window_around_the_threshold():
    """At θ = 0.4, its numbers are 0.002 apart, and the window is as wide."""
    settings = {"threshold": 0.4, "bandwidth": 0.002, "l0": 0.5}
    x = inputs(2**17, seed=3)
    found = []
    for matmul in (torch.float32, torch.bfloat16):
        sae = config(**settings).create("cpu", matmul)
        sae.start(x)
        found.append(sae.gradients(x)[0])
    exact, rough = found
    for name, gradient in exact.items():
        assert float((rough[name] - gradient).norm() / gradient.norm()) < 0.1, name


def test_gradients_are_those_of_sae_lens():
    """On inputs of our scale, and with dθ = θ d(log θ); the decoder's component is removed here."""
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae, x = started(), inputs()
    theirs = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            jumprelu_bandwidth=sae.config.bandwidth,
            l0_coefficient=sae.config.l0,
        )
    )
    theta = sae.log_threshold.exp()
    theirs.load_state_dict(
        {
            "W_enc": sae.W_enc_T.T,
            "b_enc": sae.b_enc,
            "threshold": theta,
            "W_dec": sae.W_dec,
            "b_dec": sae.b_dec,
        }
    )
    assert theirs.cfg.apply_b_dec_to_input
    out = theirs.training_forward_pass(
        TrainStepInput(x * sae.scale, {"l0": sae.config.l0}, None, 0, False)
    )
    out.loss.backward()
    found, measured = sae.gradients(x)
    assert out.loss.item() == pytest.approx(float(measured.scalars["loss"]), rel=1e-5)
    full = theirs.W_dec.grad
    expected = {
        "W_enc_T": theirs.W_enc.grad.T,
        "b_enc": theirs.b_enc.grad,
        "log_threshold": theirs.threshold.grad * theta,
        "W_dec": full - (full * sae.W_dec).sum(1, keepdim=True) * sae.W_dec,
        "b_dec": theirs.b_dec.grad,
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_initialisation():
    sae = JumpReLUConfig(d_in=64, d_sae=400, l0=0, seed=0).create()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(400))
    assert torch.equal(sae.W_enc_T, sae.W_dec)
    assert sae.W_enc_T.data_ptr() != sae.W_dec.data_ptr()
    assert not sae.b_enc.any()
    torch.testing.assert_close(sae.log_threshold.exp(), torch.full((400,), 0.001))
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) + 1
    sae.start(x)
    assert not sae.b_dec.any()
    assert float((x * sae.scale).square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    assert not torch.equal(
        sae.W_dec, JumpReLUConfig(d_in=64, d_sae=400, l0=0, seed=1).create().W_dec
    )


def test_the_unit_of_the_inputs_does_not_matter():
    """Losses and gradients are those of scaled inputs; what is exported follows the unit."""
    x = inputs()
    saes = [config().create() for _ in range(2)]
    for sae, factor in zip(saes, (1, 8), strict=True):
        sae.start(x * factor)
    (found, _), (expected, _) = (s.gradients(x * n) for s, n in zip(saes, (1, 8), strict=True))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    small, large = (JumpReLUWeights.from_export(sae.export()) for sae in saes)
    torch.testing.assert_close(large.encode(8 * x), 8 * small.encode(x), rtol=1e-5, atol=1e-5)


def test_the_decoder_keeps_unit_rows():
    sae = started()
    sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    direction = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    sae.constrain()
    torch.testing.assert_close(sae.W_dec, direction)


def test_resampled_features_start_again():
    sae, x = started(), inputs()
    features = torch.tensor([3, 11])
    alive = torch.tensor([0, 1, 2, 5])
    before = {name: tensor.clone() for name, tensor in sae.parameters.items()}
    sae.resample(features, x[:2], alive)
    directions = x[:2] / x[:2].norm(dim=1, keepdim=True)
    typical = before["W_enc_T"][alive].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_dec[features], directions)
    torch.testing.assert_close(sae.W_enc_T[features], 0.2 * typical * directions)
    assert not sae.b_enc[features].any()
    torch.testing.assert_close(sae.log_threshold[features].exp(), torch.full((2,), 0.05))
    others = [i for i in range(D_SAE) if i not in (3, 11)]
    for name in sae.per_feature:
        assert torch.equal(sae.parameters[name][others], before[name][others])


@pytest.mark.parametrize("spoilt", ["x", "b_enc"])
def test_what_is_not_finite_gives_a_loss_that_is_not(spoilt):
    sae, x = started(), inputs()
    (x[3] if spoilt == "x" else sae.b_enc)[2] = torch.nan
    assert not sae.gradients(x)[1].scalars["loss"].isfinite()


def test_exported_weights_take_activations_as_they_are():
    sae, x = started(), inputs()
    weights = JumpReLUWeights.from_export(sae.export())
    f = dense(sae, x)[2]
    assert 0 < float((f > 0).double().mean()) < 1
    torch.testing.assert_close(weights.encode(x).double(), f / sae.scale, rtol=1e-4, atol=1e-4)
    x_hat = (f @ sae.W_dec.double() + sae.b_dec) / sae.scale
    torch.testing.assert_close(weights.decode(weights.encode(x)), x_hat.float())
    assert weights.encode(x[0]).shape == (D_SAE,)
    torch.testing.assert_close(weights.W_dec.norm(dim=1), torch.ones(D_SAE))
    sae.W_dec.zero_()
    assert weights.W_dec.any()  # a copy


def test_a_negative_threshold_lets_nothing_negative_through():
    weights = JumpReLUWeights.from_export(started().export())
    assert (weights._replace(threshold=torch.full((D_SAE,), -1.0)).encode(inputs()) >= 0).all()


@pytest.mark.parametrize("centred", [True, False])
def test_sae_lens_loads_it_and_computes_the_same(tmp_path, centred):
    from sae_lens import SAE

    sae, x = started(), inputs()
    exported = sae.export()
    exported = exported._replace(config={**exported.config, "apply_b_dec_to_input": centred})
    save_sae(tmp_path, exported, {"hook_name": "mlp"})
    theirs = SAE.load_from_disk(tmp_path)
    ours = JumpReLUWeights.from_export(exported)
    with torch.no_grad():
        f = theirs.encode(x)
        assert 0 < float((f > 0).float().mean()) < 1
        torch.testing.assert_close(ours.encode(x), f, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(f), theirs(x), rtol=1e-5, atol=1e-5)


def batches(start):
    """Sparse combinations of 16 fixed directions, of no particular scale."""
    directions = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for number in range(start, 10**6):
        generator = torch.Generator().manual_seed(1 + number)
        amounts = torch.rand(64, 16, generator=generator) + 0.5
        yield 4 * (amounts * (torch.rand(64, 16, generator=generator) < 0.1)) @ directions


def job(**changes):
    sae = JumpReLUConfig(d_in=8, d_sae=32, l0=0.03, seed=0, bandwidth=0.03, threshold=0.03)
    return Job(**{"name": "one", "sae": sae, "lr": 1e-2, "resampling": None} | changes)


def test_it_learns():
    """Unseen inputs lose three quarters of their variance to half as many features as at first."""
    found = train([job()], batches, 200)["one"]
    untrained = job().sae.create()
    untrained.start(next(batches(0)))
    x = next(batches(10**5))
    before, after = (JumpReLUWeights.from_export(s.export()) for s in (untrained, found.sae))
    error = (after.decode(after.encode(x)) - x).square().sum()
    assert error < 0.25 * (x - x.mean(0)).square().sum()
    assert (after.encode(x) > 0).sum() < 0.5 * (before.encode(x) > 0).sum()
    assert (found.sae.log_threshold > math.log(0.03)).any()


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    one = job(resampling=Resampling(at=(0.5,), inputs=100), dead_window=0.3)
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


@pytest.mark.parametrize(
    "bad", [{"l0": -1}, {"l0": math.inf}, {"bandwidth": 0}, {"threshold": 0}, {"l1": 1}]
)
def test_parameters_that_make_no_sense(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        config(**bad)
