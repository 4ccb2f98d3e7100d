import math

import pytest
import torch
from pydantic import ValidationError

from shared.saes import codes
from shared.saes.codes import DenseCodes, SparseCodes, codes_at, codes_of
from shared.saes.geometric_median import geometric_median
from shared.saes.topk import TopKConfig, TopKWeights, normalised
from shared.saes.weights import save_sae
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Job, train

D_IN, D_SAE, BATCH, K = 6, 40, 32, 4
DEAD = list(range(25, 40))


def config(**changes):
    fixed = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 0, "k_aux": 3, "dead_after": 1000}
    return TopKConfig(**fixed | changes)


def inputs(batch=BATCH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.rand(batch, D_IN, generator=generator)


def started(matmul=torch.float32, **changes):
    sae = config(**changes).create("cpu", matmul)
    sae.start(inputs())
    sae.W_enc_T.add_(0.2 * torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(2)))
    return sae


def with_dead(sae):
    """Let the features DEAD be inactive from now on, and dead from the next batch on."""
    sae.W_enc_T[DEAD] *= 0.01
    sae.unused[DEAD] = 999
    return sae


def largest(z, k):
    """Return z where it is positive and among the k largest of its row, else 0."""
    ranks = z.argsort(1, descending=True).argsort(1)
    return torch.relu(z) * (ranks < k)


def dense(sae, x, dead=()):
    """The formulas of the docstring in float64: both losses, f and the gradients by autograd."""
    leaves = {
        name: tensor.double().clone().requires_grad_() for name, tensor in sae.parameters.items()
    }
    x = x.double()
    if sae.config.layer_norm:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.std(1, keepdim=True) + 1e-5) / math.sqrt(D_IN - 1)
    else:
        x = x * sae.scale.double()
    z = (x - leaves["b_dec"]) @ leaves["W_enc_T"].T
    f = largest(z, sae.config.k)
    x_hat = f @ leaves["W_dec"] + leaves["b_dec"]
    losses = (x - x_hat).square().sum(1) / sae.variance.double()
    auxiliary = torch.zeros(())
    if dead:
        missing = (x - x_hat).detach()
        estimate = largest(z[:, dead], sae.config.auxiliary_width) @ leaves["W_dec"][dead]
        spread = (missing - missing.mean(0)).square().mean()
        auxiliary = (estimate - missing).square().mean() / spread
    (losses.mean() + sae.config.aux * auxiliary).backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    full, rows = gradients["W_dec"], leaves["W_dec"].detach()
    gradients["W_dec"] = full - (full * rows).sum(1, keepdim=True) * rows
    return losses.detach(), auxiliary.detach(), f.detach(), gradients


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def products(request, monkeypatch):
    """Both ways of multiplying, whatever the share of active entries."""
    monkeypatch.setattr(codes, "SPARSE_BELOW", request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dead", [[], DEAD], ids=["alive", "dead"])
def test_gradients_are_autograd_s(layer_norm, dead):
    sae, x = started(layer_norm=layer_norm), inputs()
    if dead:
        with_dead(sae)
    gradients, measured = sae.gradients(x)
    losses, auxiliary, f, expected = dense(sae, x, dead)
    assert (f > 0).sum(1).tolist() == [K] * BATCH
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-4, atol=1e-6)
        assert gradients[name].shape == sae.parameters[name].shape
    assert set(gradients) == set(sae.parameters)
    assert (gradients["W_dec"] * sae.W_dec).sum(1).abs().max() < 1e-6
    assert float(measured.scalars["aux"]) == pytest.approx(float(auxiliary), rel=1e-5)
    assert bool(measured.scalars["aux"] > 0) == bool(dead)
    loss = float(losses.mean() + auxiliary / 32)
    assert float(measured.scalars["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(measured.scalars["l0"]) == K
    assert torch.equal(measured.fired, (f > 0).any(0))
    torch.testing.assert_close(sae.losses(x).double(), losses, rtol=1e-4, atol=1e-6)


def test_the_auxiliary_loss_moves_dead_features_only():
    """Encoder rows of those alive get exactly what they get without it."""
    x = inputs()
    found = with_dead(started()).gradients(x)[0]
    without = with_dead(started(aux=0)).gradients(x)[0]
    alive = [i for i in range(D_SAE) if i not in DEAD]
    for name in ("W_enc_T", "W_dec"):
        assert torch.equal(found[name][alive], without[name][alive])
        assert not without[name][DEAD].any()
        assert found[name][DEAD].any()


def test_features_die_after_so_many_vectors_and_revive_when_they_fire():
    sae, x = started(dead_after=2 * BATCH), inputs()
    fired = sae.gradients(x)[1].fired
    assert torch.equal(sae.unused, torch.where(fired, 0, BATCH))
    assert 0 < int(fired.sum()) < D_SAE
    assert sae.gradients(x)[1].scalars["aux"] > 0  # not active on 2 batches: dead within the second
    sae.unused.fill_(10**9)
    sae.gradients(x)
    assert torch.equal(sae.unused == 0, fired)  # what fires is alive in the same step


def test_without_dead_features_nothing_is_added():
    sae, x = started(), inputs()
    assert sae.gradients(x)[1].scalars["aux"] == 0
    assert with_dead(started()).gradients(x[:1])[1].scalars["aux"] == 0  # one input has no variance


def test_bfloat16_is_float32_to_its_precision():
    x = inputs(256)
    exact, measured = with_dead(started()).gradients(x)
    rough, roughly = with_dead(started(torch.bfloat16)).gradients(x)
    for name, gradient in exact.items():
        assert float((rough[name] - gradient).norm() / gradient.norm()) < 0.1, name
    loss = float(measured.scalars["loss"])
    assert float(roughly.scalars["loss"]) == pytest.approx(loss, rel=0.02)


def test_losses_are_those_of_sae_lens():
    """Its sums of squares over d_in are ours times the variances that ours are divided by."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    x = inputs()
    sae = with_dead(started())
    theirs = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, k=K, rescale_acts_by_decoder_norm=False, aux_loss_coefficient=1
        )
    )
    theirs.load_state_dict(
        {
            "W_enc": sae.W_enc_T.T,
            "b_enc": torch.zeros(D_SAE),
            "W_dec": sae.W_dec,
            "b_dec": sae.b_dec,
        }
    )
    scaled = x * sae.scale
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[DEAD] = True
    out = theirs.training_forward_pass(TrainStepInput(scaled, {}, mask, 0, False))
    out.losses["mse_loss"].backward()
    gradients, measured = sae.gradients(x)
    missing = (scaled - out.sae_out).detach()
    largest_dead = out.hidden_pre[:, DEAD].topk(D_IN // 2).values
    assert (largest_dead > 0).all()  # else theirs, which has no ReLU, would differ
    variance = (missing - missing.mean(0)).square().sum(1).mean()
    theirs_auxiliary = out.losses["auxiliary_reconstruction_loss"]
    assert float(measured.scalars["aux"] * variance) == pytest.approx(
        theirs_auxiliary.item(), rel=1e-4
    )
    main = measured.scalars["loss"] - measured.scalars["aux"] / 32
    assert float(main * sae.variance) == pytest.approx(out.losses["mse_loss"].item(), rel=1e-4)
    alive = [i for i in range(D_SAE) if i not in DEAD]
    torch.testing.assert_close(
        gradients["W_enc_T"][alive] * sae.variance, theirs.W_enc.grad.T[alive], rtol=1e-4, atol=1e-6
    )


def test_initialisation():
    sae = TopKConfig(d_in=64, d_sae=400, k=5, seed=0, layer_norm=True).create()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(400))
    assert torch.equal(sae.W_enc_T, sae.W_dec)
    assert sae.W_enc_T.data_ptr() != sae.W_dec.data_ptr()
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    sae.start(x)
    unit = normalised(x)[0] / math.sqrt(63)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(50), rtol=1e-4, atol=0)
    torch.testing.assert_close(sae.b_dec, geometric_median(unit))
    other = TopKConfig(d_in=64, d_sae=400, k=5, seed=1).create()
    assert not torch.equal(other.W_dec, sae.W_dec)
    other.start(x)
    assert float((x * other.scale).square().sum(1).mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_to_predict_the_mean_costs_one(layer_norm):
    sae, x = started(layer_norm=layer_norm), inputs()
    sae.W_enc_T.zero_()
    sae.b_dec.copy_(sae._inputs(x).mean(0))
    assert float(sae.losses(x).mean()) == pytest.approx(1, rel=1e-5)


def test_the_default_of_k_aux_is_the_power_of_two_next_to_half_of_d_in():
    widths = {d: config(d_in=d, k_aux=None).auxiliary_width for d in (1, 2, 64, 512, 768, 1024)}
    assert widths == {1: 1, 2: 1, 64: 32, 512: 256, 768: 512, 1024: 512}
    assert config(k_aux=7).auxiliary_width == 7


def test_the_decoder_keeps_unit_rows():
    sae = started()
    sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    direction = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    sae.constrain()
    torch.testing.assert_close(sae.W_dec, direction)


def test_resampled_features_start_again():
    sae, x = with_dead(started()), inputs()
    alive = torch.tensor([0, 1, 2])
    typical = sae.W_enc_T[alive].norm(dim=1).mean()
    features = torch.tensor([30, 31])
    sae.resample(features, x[:2], alive)
    directions = x[:2] / x[:2].norm(dim=1, keepdim=True)
    torch.testing.assert_close(sae.W_dec[features], directions)
    torch.testing.assert_close(sae.W_enc_T[features], 0.2 * typical * directions)
    assert sae.unused[29:33].tolist() == [999, 0, 0, 999]


@pytest.mark.parametrize("spoilt", ["x", "W_enc_T"])
def test_what_is_not_finite_gives_a_loss_that_is_not(spoilt):
    sae, x = started(), inputs()
    (x if spoilt == "x" else sae.W_enc_T)[3, 2] = torch.nan
    assert not sae.gradients(x)[1].scalars["loss"].isfinite()


def test_exported_weights_take_activations_as_they_are():
    sae, x = started(), inputs()
    weights = TopKWeights.from_export(sae.export())
    f = dense(sae, x)[2]
    torch.testing.assert_close(weights.encode(x).double(), f / sae.scale, rtol=1e-4, atol=1e-4)
    x_hat = (f @ sae.W_dec.double() + sae.b_dec) / sae.scale
    torch.testing.assert_close(weights.decode(weights.encode(x)), x_hat.float())
    assert weights.encode(x[0]).shape == (D_SAE,)
    torch.testing.assert_close(
        weights.encode(x.view(4, 8, D_IN)), weights.encode(x).view(4, 8, D_SAE)
    )
    assert (weights.encode(x) > 0).sum(1).tolist() == [K] * BATCH
    sae.W_dec.zero_()
    assert weights.W_dec.any()  # a copy


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("centred", [True, False])
def test_sae_lens_loads_it_and_computes_the_same(tmp_path, layer_norm, centred):
    from sae_lens import SAE

    sae, x = started(layer_norm=layer_norm), inputs()
    exported = sae.export()
    exported = exported._replace(config={**exported.config, "apply_b_dec_to_input": centred})
    save_sae(tmp_path, exported, {"hook_name": "mlp"})
    theirs = SAE.load_from_disk(tmp_path)
    ours = TopKWeights.from_export(exported)
    assert ours.k == theirs.cfg.k == K
    with torch.no_grad():
        f = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), f, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(f, x), theirs(x), rtol=1e-5, atol=1e-5)


def test_with_layer_norm_decoding_needs_the_inputs():
    weights = TopKWeights.from_export(started(layer_norm=True).export())
    with pytest.raises(ValueError, match="needs its inputs"):
        weights.decode(weights.encode(inputs()))


def batches(start):
    """Sparse combinations of 16 fixed directions, of no particular scale."""
    directions = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for number in range(start, 10**6):
        generator = torch.Generator().manual_seed(1 + number)
        amounts = torch.rand(64, 16, generator=generator) + 0.5
        yield 4 * (amounts * (torch.rand(64, 16, generator=generator) < 0.1)) @ directions + 1


def job(**changes):
    settings = {"d_in": 8, "d_sae": 32, "k": 2, "seed": 0, "dead_after": 300}
    sae = TopKConfig(**settings | changes)
    return Job(name="one", sae=sae, lr=1e-2, resampling=None)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_it_learns(layer_norm):
    """Unseen inputs lose three quarters of their variance to k features."""
    found = train([job(layer_norm=layer_norm)], batches, 200)["one"]
    weights = TopKWeights.from_export(found.sae.export())
    x = next(batches(10**5))
    error = (weights.decode(weights.encode(x), x) - x).square().sum()
    assert error < 0.25 * (x - x.mean(0)).square().sum()


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    one = job(dead_after=128)  # two batches
    trained = train([one], batches, 12, record_every=1)["one"]
    expected = trained.sae
    assert trained.history["aux"][9:].any()  # which depends on what was counted before
    checkpoint = Checkpoint(path=tmp_path / "run.safetensors", every_steps=4)

    def broken(start):
        for number, x in enumerate(batches(start), start):
            if number == 9:
                raise KeyboardInterrupt
            yield x

    with pytest.raises(KeyboardInterrupt):
        train([one], broken, 12, record_every=1, checkpoint=checkpoint)
    found = train([one], batches, 12, record_every=1, checkpoint=checkpoint)["one"].sae
    assert set(found.state) == {*found.parameters, "scale", "variance", "unused"}
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"k": 0}, "k"),
        ({"k": 41}, "k 41 is more than d_sae 40"),
        ({"aux": -1}, "aux"),
        ({"k_aux": 0}, "k_aux"),
        ({"dead_after": 0}, "dead_after"),
        ({"d_in": 1, "layer_norm": True}, "d_in of 2"),
        ({"l1": 1}, "l1"),
    ],
)
def test_parameters_that_make_no_sense(bad, message):
    with pytest.raises(ValidationError, match=message):
        config(**bad)


@pytest.mark.usefixtures("products")
def test_codes_by_place_are_those_of_the_matrix():
    f = largest(torch.randn(9, D_SAE, generator=torch.Generator().manual_seed(0)), 3)
    values, features = f.topk(3, dim=1)
    values[4, 1] = f[4, features[4, 1]] = 0
    found, expected = codes_at(values, features, D_SAE), codes_of(f)
    assert type(found) is (SparseCodes if codes.SPARSE_BELOW else DenseCodes)
    matrix, rows = torch.randn(D_SAE, 5), torch.randn(9, 5)
    torch.testing.assert_close(found.times(matrix), expected.times(matrix))
    torch.testing.assert_close(found.transposed_times(rows), expected.transposed_times(rows))
    torch.testing.assert_close(found.firings(), expected.firings())
    slope = found.where_active(rows, matrix, plus=0.5)
    torch.testing.assert_close(
        slope.feature_sums(), expected.where_active(rows, matrix, plus=0.5).feature_sums()
    )
