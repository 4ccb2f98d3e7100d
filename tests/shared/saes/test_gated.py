import math

import pytest
import torch
from pydantic import ValidationError

from shared.saes import codes
from shared.saes.architecture import Exported
from shared.saes.gated import GatedConfig, GatedWeights
from shared.saes.geometric_median import geometric_median
from shared.saes.jumprelu import JumpReLUWeights
from shared.saes.weights import save_sae
from shared.training.adam import Adam

D_IN, D_SAE, BATCH = 6, 20, 32
VARIANTS = {
    "paper": {},
    "unfrozen": {"frozen_aux": False},
    "no_r_mag": {"rescaled": False},
    "untied": {"tied": False},
}
SWITCHES = pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS.keys())


def config(**changes):
    return GatedConfig(**{"d_in": D_IN, "d_sae": D_SAE, "l1": 0.02, "seed": 0} | changes)


def inputs(batch=BATCH, seed=1):
    return torch.rand(batch, D_IN, generator=torch.Generator().manual_seed(seed))


def trained(matmul=torch.float32, **changes):
    """As after training: gates that are on have magnitudes of zero now and then."""
    sae = config(**changes).create("cpu", matmul)
    sae.start(inputs())
    generator = torch.Generator().manual_seed(2)
    for name in ("W_mag_T", "b_gate", "r_mag", "b_mag"):
        if name in sae.parameters:
            parameter = sae.parameters[name]
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return sae


def forward(leaves, x, switches):
    """The formulas of the docstring: x̂, x̂', ReLU(π), f."""
    centred = x - leaves["b_dec"]
    gate = centred @ leaves["W_gate_T"].T + leaves["b_gate"]
    if switches.get("tied", True):
        W_mag_T = leaves["W_gate_T"] * leaves["r_mag"].exp()[:, None]
    else:
        W_mag_T = leaves["W_mag_T"]
    f = (gate > 0) * torch.relu(centred @ W_mag_T.T + leaves["b_mag"])
    decoder = leaves["W_dec"], leaves["b_dec"]
    if switches.get("frozen_aux", True):
        decoder = decoder[0].detach(), decoder[1].detach()
    active = torch.relu(gate)
    return f @ leaves["W_dec"] + leaves["b_dec"], active @ decoder[0] + decoder[1], active, f


def loss_by_autograd(sae, x, switches, l1):
    """In float64: the loss of every input, ReLU(π), f and the leaves."""
    leaves = {
        name: tensor.double().clone().requires_grad_() for name, tensor in sae.parameters.items()
    }
    x_hat, auxiliary, active, f = forward(
        {"r_mag": torch.zeros(D_SAE).double()} | leaves, x.double(), switches
    )
    squares = (x - x_hat).square().mean(1) + (x - auxiliary).square().mean(1)
    return squares + l1 * active.sum(1), active.detach(), f.detach(), leaves


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def products(request, monkeypatch):
    """Both ways of multiplying, whatever the share of active entries."""
    monkeypatch.setattr(codes, "SPARSE_BELOW", request.param)


def without_parallel(gradient, rows):
    return gradient - (gradient * rows).sum(1, keepdim=True) * rows


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("penalty", [1.0, 0.25])
@SWITCHES
def test_gradients_of_a_gated_autoencoder_are_autograd_s(switches, penalty):
    sae, x = trained(**switches), inputs()
    gradients, measured = sae.gradients(x, penalty)
    losses, active, f, leaves = loss_by_autograd(sae, x, switches, sae.config.l1 * penalty)
    assert 0 < float((active > 0).double().mean()) < 1
    assert bool(((active > 0) & (f == 0)).any())  # on, with a magnitude of zero
    losses.mean().backward()
    assert gradients.keys() == sae.parameters.keys()
    for name, leaf in leaves.items():
        expected = leaf.grad
        if name == "W_dec":
            expected = without_parallel(expected, sae.W_dec.double())
        torch.testing.assert_close(gradients[name].double(), expected, rtol=1e-5, atol=1e-7)
        assert gradients[name].shape == sae.parameters[name].shape
    assert (gradients["W_dec"] * sae.W_dec).sum(1).abs().max() < 1e-7
    scalars = {name: float(value) for name, value in measured.scalars.items()}
    assert scalars["loss"] == pytest.approx(float(losses.detach().mean()), rel=1e-5)
    assert scalars["l0"] == pytest.approx(float((f > 0).sum(1).double().mean()))
    assert scalars["l1"] == pytest.approx(float(active.sum(1).mean()), rel=1e-5)
    weighted = scalars["mse"] + scalars["auxiliary"] + sae.config.l1 * penalty * scalars["l1"]
    assert scalars["loss"] == pytest.approx(weighted, rel=1e-6)
    assert torch.equal(measured.fired, (f > 0).any(0))
    whole = loss_by_autograd(sae, x, switches, sae.config.l1)[0].detach()
    torch.testing.assert_close(sae.losses(x).double(), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("products")
@SWITCHES
def test_gated_gradients_in_bfloat16_are_those_in_float32_to_its_precision(switches):
    x = inputs(256)
    expected, measured = trained(**switches).gradients(x)
    found, rough = trained(torch.bfloat16, **switches).gradients(x)
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 0.05, name
    assert float(rough.scalars["loss"]) == pytest.approx(float(measured.scalars["loss"]), rel=0.01)


def test_the_penalty_reaches_the_gate_alone():
    """Not the decoder, nor the magnitudes: these are where shrinkage would come from."""
    sae, x = trained(), inputs()
    without, full = sae.gradients(x, penalty=0.0)[0], sae.gradients(x)[0]
    changed = {name for name in full if not torch.equal(full[name], without[name])}
    assert changed == {"W_gate_T", "b_gate", "b_dec"}  # b_dec: that of x − b_dec


def test_initialisation_of_a_gated_autoencoder():
    x = inputs(50)
    sae = config(tied=False).create()
    sae.start(x)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(sae.W_gate_T, sae.W_dec)
    assert torch.equal(sae.W_mag_T, sae.W_dec)
    assert not any(t.any() for t in (sae.b_gate, sae.r_mag, sae.b_mag))
    assert torch.equal(sae.b_dec, geometric_median(x))
    assert not torch.equal(config(seed=1).create().W_dec, sae.W_dec)


@SWITCHES
def test_training_moves_every_parameter_and_keeps_the_constraints(switches):
    sae = trained(**switches)
    before = sae.export().tensors
    adam = Adam(sae.parameters, lr=0.01, betas=(0.0, 0.999))
    for _ in range(3):
        adam.step(sae.gradients(inputs())[0])
        sae.constrain()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    after = sae.export().tensors
    unmoved = {name for name in before if torch.equal(before[name], after[name])}
    assert unmoved == ({"r_mag"} if switches == VARIANTS["no_r_mag"] else set())
    assert sae.r_mag.any() == (switches in (VARIANTS["paper"], VARIANTS["unfrozen"]))


@SWITCHES
def test_a_resampled_gate_starts_on_its_input(switches):
    sae, x = trained(**switches), inputs(3, seed=4)
    sae.W_gate_T.mul_(3)
    before = {name: tensor.clone() for name, tensor in sae.parameters.items()}
    features = torch.tensor([1, 5, 7])
    alive = torch.tensor([n for n in range(D_SAE) if n not in (1, 5, 7)])
    sae.resample(features, x, alive)
    directions = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(sae.W_dec[features], directions)
    typical = before["W_gate_T"][alive].norm(dim=1).mean()
    for encoder in (sae.W_gate_T, sae.W_mag_T):
        torch.testing.assert_close(encoder[features], directions * 0.2 * typical)
    for vector in (sae.b_gate, sae.b_mag, sae.r_mag):
        assert not vector[features].any()
    assert set(sae.per_feature) == sae.parameters.keys() - {"b_dec"}
    for name in sae.per_feature:
        assert torch.equal(sae.parameters[name][alive], before[name][alive])
    assert torch.equal(sae.b_dec, before["b_dec"])


@SWITCHES
def test_gated_weights_compute_what_was_trained(switches):
    sae, x = trained(**switches), inputs()
    weights = GatedWeights.from_export(sae.export())
    leaves = {"r_mag": torch.zeros(D_SAE)} | sae.parameters
    x_hat, _, _, f = forward(leaves, x, switches)
    torch.testing.assert_close(weights.encode(x), f)
    torch.testing.assert_close(weights.decode(weights.encode(x)), x_hat)
    torch.testing.assert_close(weights.encode(x.view(4, 8, D_IN)), f.view(4, 8, D_SAE))
    sae.W_gate_T.zero_()
    assert weights.W_gate.any()  # a copy


def test_a_gated_export_without_b_dec_in_its_input():
    exported, x = trained().export(), inputs()
    sae = GatedWeights.from_export(
        Exported({**exported.config, "apply_b_dec_to_input": False}, exported.tensors)
    )
    t = exported.tensors
    product = x @ t["W_enc"]
    f = (product + t["b_gate"] > 0) * torch.relu(product * t["r_mag"].exp() + t["b_mag"])
    torch.testing.assert_close(sae.encode(x), f)


@pytest.mark.parametrize("rescaled", [True, False])
def test_a_gated_autoencoder_is_a_jumprelu_one(rescaled):
    """Appendix E, to 1e-6; where θ < 0, its ReLU is at work."""
    sae = trained(rescaled=rescaled)
    weights = GatedWeights.from_export(sae.export())
    jumprelu, x = weights.jumprelu(), inputs(4096)
    theta = sae.b_mag - sae.r_mag.exp() * sae.b_gate
    torch.testing.assert_close(jumprelu.threshold, theta, rtol=1e-6, atol=1e-6)
    assert bool((theta < 0).any())
    assert bool((theta > 0).any())
    torch.testing.assert_close(jumprelu.encode(x), weights.encode(x), rtol=0, atol=1e-6)
    f = weights.encode(x)
    torch.testing.assert_close(jumprelu.decode(f), weights.decode(f), rtol=0, atol=1e-6)


def test_a_gate_without_weights_in_a_jumprelu():
    """A feature that only its bias turns on, always or never."""
    sae = trained()
    sae.W_gate_T[[2, 3]] = 0
    sae.b_gate[[2, 3]] = torch.tensor([0.5, -0.5])
    sae.b_mag[[2, 3]] = 1.0
    weights, x = GatedWeights.from_export(sae.export()), inputs()
    f = weights.jumprelu().encode(x)
    assert f[:, 2].eq(1).all()
    assert not f[:, 3].any()
    torch.testing.assert_close(f, weights.encode(x), rtol=0, atol=1e-6)


def test_untied_encoders_are_no_jumprelu():
    weights = GatedWeights.from_export(trained(tied=False).export())
    with pytest.raises(ValueError, match="not tied"):
        weights.jumprelu()


def test_sae_lens_loads_a_gated_autoencoder_and_its_jumprelu(tmp_path):
    from sae_lens import SAE

    sae, x = trained(), inputs()
    weights = GatedWeights.from_export(sae.export())
    save_sae(tmp_path / "gated", sae.export(), {"hook_name": "mlp"})
    jumprelu = weights.export_jumprelu()
    save_sae(tmp_path / "jumprelu", jumprelu, {})
    torch.testing.assert_close(
        JumpReLUWeights.from_export(jumprelu).encode(x), weights.encode(x), rtol=0, atol=1e-6
    )
    for name, tolerance in (("gated", 1e-5), ("jumprelu", 1e-6)):
        theirs = SAE.load_from_disk(tmp_path / name)
        with torch.no_grad():
            f = theirs.encode(x)
            torch.testing.assert_close(f, weights.encode(x), rtol=0, atol=tolerance)
            torch.testing.assert_close(theirs(x), weights.decode(f), rtol=1e-5, atol=1e-5)
        assert theirs.cfg.architecture() == name


def test_unfrozen_gradients_are_those_of_sae_lens():
    """Its loss is d_in times ours. Its penalty times the lengths of the decoder rows differs along
    these alone while they are 1, which is projected out."""
    from sae_lens import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae, x = trained(frozen_aux=False), inputs()
    l1 = D_IN * sae.config.l1
    theirs = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=l1))
    theirs.load_state_dict(dict(sae.export().tensors))
    out = theirs.training_forward_pass(TrainStepInput(x, {"l1": l1}, None, 0, False))
    out.loss.backward()
    found, measured = sae.gradients(x)
    assert out.loss.item() == pytest.approx(D_IN * float(measured.scalars["loss"]), rel=1e-5)
    expected = {
        "W_gate_T": theirs.W_enc.grad.T,
        "b_gate": theirs.b_gate.grad,
        "r_mag": theirs.r_mag.grad,
        "b_mag": theirs.b_mag.grad,
        "W_dec": without_parallel(theirs.W_dec.grad, theirs.W_dec.detach()),
        "b_dec": theirs.b_dec.grad,
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(D_IN * found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_gated_loss_is_not_finite_where_an_input_is_not():
    sae, x = trained(), inputs()
    x[3, 2] = torch.nan
    assert not sae.gradients(x)[1].scalars["loss"].isfinite()


@pytest.mark.parametrize("bad", [{"d_sae": 0}, {"l1": -0.1}, {"l1": math.nan}, {"r_mag": False}])
def test_gated_parameters_that_make_no_sense(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        config(**bad)
