import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from shared.saes import codes, topk
from shared.saes.codes import DenseCodes, SparseCodes, codes_at, codes_of
from shared.saes.geometric_median import geometric_median
from shared.saes.topk import TopKConfig, TopKWeights
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
    """The formulas of the docstring in float64: both losses, f and the gradients by autograd.

    The auxiliary loss is written as in the authors' code: b_dec is in its estimate and its target,
    and what the latter is made of is taken as given.
    """
    leaves = {
        name: tensor.double().clone().requires_grad_() for name, tensor in sae.parameters.items()
    }
    u, settings = x.double() * sae.scale.double(), sae.config
    z = (u - leaves["b_dec"]) @ leaves["W_enc_T"].T
    f = largest(z, settings.k)
    u_hat = f @ leaves["W_dec"] + leaves["b_dec"]
    losses = (u - u_hat).square().sum(1)
    if settings.multi_k:
        second = largest(z, settings.multi_k) @ leaves["W_dec"] + leaves["b_dec"]
        losses = losses + settings.multi_weight * (u - second).square().sum(1)
    losses = losses / sae.variance.double()
    auxiliary = torch.zeros(())
    if dead:
        target = (u - u_hat + leaves["b_dec"]).detach()
        estimate = largest(z[:, dead], settings.auxiliary_width) @ leaves["W_dec"][dead]
        spread = (target - target.mean(0)).square().mean()
        auxiliary = (estimate + leaves["b_dec"] - target).square().mean() / spread
    (losses.mean() + settings.aux * auxiliary).backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    full, rows = gradients["W_dec"], leaves["W_dec"].detach()
    gradients["W_dec"] = full - (full * rows).sum(1, keepdim=True) * rows
    return losses.detach(), auxiliary.detach(), f.detach(), gradients


def distance(found, expected):
    """Return ‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def products(request, monkeypatch):
    """Both ways of multiplying, whatever the share of active entries."""
    monkeypatch.setattr(codes, "SPARSE_BELOW", request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("multi_k", [None, 3 * K], ids=["topk", "multi_topk"])
@pytest.mark.parametrize("dead", [[], DEAD], ids=["alive", "dead"])
def test_gradients_are_autograd_s(multi_k, dead):
    sae, x = started(multi_k=multi_k), inputs()
    if dead:
        with_dead(sae)
    gradients, measured = sae.gradients(x)
    losses, auxiliary, f, expected = dense(sae, x, dead)
    assert (f > 0).sum(1).tolist() == [K] * BATCH
    assert set(gradients) == set(sae.parameters)
    for name, gradient in expected.items():
        assert gradients[name].shape == sae.parameters[name].shape
        assert distance(gradients[name], gradient) < 1e-5, name
    assert float(measured.scalars["aux"]) == pytest.approx(float(auxiliary), rel=1e-5)
    assert bool(measured.scalars["aux"] > 0) == bool(dead)
    loss = float(losses.mean() + auxiliary / 32)
    assert float(measured.scalars["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(measured.scalars["l0"]) == K
    assert torch.equal(measured.fired, (f > 1e-3).any(0))
    torch.testing.assert_close(sae.losses(x).double(), losses, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("multi_k", [None, 3 * K])
def test_gradients_of_decoder_rows_are_orthogonal_to_them(multi_k):
    sae = with_dead(started(multi_k=multi_k))
    gradient = sae.gradients(inputs())[0]["W_dec"]
    assert ((gradient * sae.W_dec).sum(1).abs() <= 1e-5 * gradient.norm(dim=1)).all()
    assert (gradient.norm(dim=1) > 0).sum() > K


@pytest.mark.parametrize(
    ("matmul", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
def test_sparse_and_dense_products_agree(monkeypatch, matmul, most):
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)) + 0.5
    settings = {"d_in": 64, "d_sae": 512, "k": 8, "seed": 0, "multi_k": 32, "dead_after": 300}
    first = TopKConfig(**settings).create("cpu", matmul)
    first.start(x)
    first.unused[:100] = 299
    found = {}
    for below in (0.0, 1.0):
        monkeypatch.setattr(codes, "SPARSE_BELOW", below)
        sae = TopKConfig(**settings).create("cpu", matmul)
        for name, tensor in sae.state.items():
            tensor.copy_(first.state[name])
        found[below], measured = sae.gradients(x)
        assert measured.scalars["aux"] > 0
    for name, gradient in found[0.0].items():
        assert distance(found[1.0][name], gradient) < most, name


def test_multi_topk_is_the_sum_of_two():
    """The gradient is linear in the loss: that of L(k) plus an eighth of that of L(3k)."""
    x = inputs()
    both, measured = started(multi_k=3 * K, matched=False).gradients(x)
    first, few = started(matched=False).gradients(x)
    second, many = started(k=3 * K, matched=False).gradients(x)
    for name, gradient in both.items():
        assert distance(gradient, (first[name] + second[name] / 8).double()) < 1e-5, name
    expected = float(few.scalars["loss"] + many.scalars["loss"] / 8)
    assert float(measured.scalars["loss"]) == pytest.approx(expected, rel=1e-5)
    for name in ("mse", "l0"):
        assert measured.scalars[name] == few.scalars[name]
    assert torch.equal(measured.fired, few.fired)
    alone = started(multi_k=3 * K, multi_weight=0, matched=False).gradients(x)[0]
    assert all(torch.equal(alone[name], first[name]) for name in first)


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


def test_what_is_hardly_active_does_not_fire():
    """As in the authors' code, under a thousandth of an input's length counts as nothing."""
    sae = config(k=2, dead_after=10).create()
    x = torch.zeros(4, D_IN)
    x[:, 0] = 1
    sae.scale.fill_(1)
    sae.W_enc_T.zero_()
    sae.W_enc_T[:2, 0] = torch.tensor([0.9e-3, 1.1e-3])
    measured = sae.gradients(x)[1]
    assert measured.scalars["l0"] == 2
    assert measured.fired.nonzero().tolist() == [[1]]
    assert sae.unused[:3].tolist() == [4, 0, 4]


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
    settings = {"d_in": 64, "d_sae": 400, "k": 5}
    sae = TopKConfig(**settings, seed=0).create()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(400))
    assert torch.equal(sae.W_enc_T, sae.W_dec)  # of cosine 1
    assert sae.W_enc_T.data_ptr() != sae.W_dec.data_ptr()
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    sae.start(x)
    assert float((x * sae.scale).square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(sae.b_dec, geometric_median(x * sae.scale))
    torch.testing.assert_close(F.cosine_similarity(sae.W_enc_T, sae.W_dec), torch.ones(400))
    centred = x * sae.scale - sae.b_dec
    f, _ = sae._selected(centred @ sae.W_enc_T.T)
    assert float(f.times(sae.W_dec).norm()) == pytest.approx(float(centred.norm()), rel=1e-4)
    unit = TopKConfig(**settings, seed=0, matched=False).create()
    unit.start(x)
    assert torch.equal(unit.W_enc_T, unit.W_dec)
    other = TopKConfig(**settings, seed=1).create()
    assert not torch.equal(other.W_dec, sae.W_dec)


def test_an_encoder_that_does_not_start_as_the_decoder_s_transpose():
    """Its directions are independent: cosines of variance 1/d_in with all decoder rows."""
    settings = {"d_in": 64, "d_sae": 400, "k": 5}
    sae = TopKConfig(**settings, seed=0, transposed=False).create()
    assert torch.equal(sae.W_dec, TopKConfig(**settings, seed=0).create().W_dec)
    torch.testing.assert_close(sae.W_enc_T.norm(dim=1), torch.ones(400))
    cosines = sae.W_enc_T @ sae.W_dec.T
    assert float(cosines.diag().square().mean()) == pytest.approx(1 / 64, rel=0.3)
    assert float(cosines.square().mean()) == pytest.approx(1 / 64, rel=0.03)
    other = TopKConfig(**settings, seed=1, transposed=False).create()
    assert not torch.equal(other.W_enc_T, sae.W_enc_T)


def test_the_geometric_median_is_that_of_the_first_so_many_inputs(monkeypatch):
    assert topk.MEDIAN_OF == 32768
    monkeypatch.setattr(topk, "MEDIAN_OF", 20)
    sae, x = config().create(), inputs()
    sae.start(x)
    assert torch.equal(sae.b_dec, geometric_median(x[:20] * sae.scale))


@pytest.mark.parametrize(("multi_k", "cost"), [(None, 1), (2 * K, 1 + 1 / 8)])
def test_to_predict_the_mean_costs_one(multi_k, cost):
    sae, x = started(multi_k=multi_k), inputs()
    sae.W_enc_T.zero_()
    sae.b_dec.copy_((x * sae.scale).mean(0))
    assert float(sae.losses(x).mean()) == pytest.approx(cost, rel=1e-5)
    scalars = sae.gradients(x)[1].scalars
    assert float(scalars["loss"]) == pytest.approx(cost, rel=1e-5)
    variance = (x - x.mean(0)).square().mean()
    assert float(scalars["mse"]) == pytest.approx(float(variance), rel=1e-5)


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
    trained = train([job(), job(name="two", multi_k=8)], batches, 5)
    for one in trained.values():
        norms = one.sae.W_dec.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(32), rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("in_lengths", [False, True])
@pytest.mark.parametrize("centred", [True, False])
def test_sae_lens_loads_it_and_computes_the_same(tmp_path, centred, in_lengths):
    """Also where activations are taken in lengths of decoder rows, which are 1 in ours."""
    from sae_lens import SAE

    sae, x = started(), inputs()
    sae.W_dec.mul_(torch.linspace(0.5, 2, D_SAE)[:, None])
    exported = sae.export()
    changed = {"apply_b_dec_to_input": centred, "rescale_acts_by_decoder_norm": in_lengths}
    exported = exported._replace(config={**exported.config, **changed})
    save_sae(tmp_path, exported, {"hook_name": "mlp"})
    theirs = SAE.load_from_disk(tmp_path)
    ours = TopKWeights.from_export(exported)
    assert ours.k == theirs.cfg.k == K
    with torch.no_grad():
        f = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), f, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(f), theirs(x), rtol=1e-5, atol=1e-5)


def test_no_more_than_k_features_are_active():
    """Fewer where fewer pre-activations are positive."""
    sae = started()
    weights = TopKWeights.from_export(sae.export())
    x = torch.randn(500, D_IN, generator=torch.Generator().manual_seed(4))
    for k in (1, K, D_SAE):
        count = (weights._replace(k=k).encode(x) != 0).sum(1)
        positive = ((x - weights.b_dec) @ weights.W_enc > 0).sum(1)
        assert torch.equal(count, positive.clamp(max=k))
    sae.W_enc_T[3:] = 0
    assert float(sae.gradients(x)[1].scalars["l0"]) < 3


def batches(start):
    """Sparse combinations of 16 fixed directions, of no particular scale."""
    directions = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for number in range(start, 10**6):
        generator = torch.Generator().manual_seed(1 + number)
        amounts = torch.rand(64, 16, generator=generator) + 0.5
        yield 4 * (amounts * (torch.rand(64, 16, generator=generator) < 0.1)) @ directions + 1


def job(name="one", **changes):
    settings = {"d_in": 8, "d_sae": 32, "k": 2, "seed": 0, "dead_after": 300}
    sae = TopKConfig(**settings | changes)
    return Job(name=name, sae=sae, lr=1e-2, resampling=None)


@pytest.mark.parametrize("multi_k", [None, 8])
def test_it_learns(multi_k):
    """Unseen inputs lose three quarters of their variance to k features."""
    found = train([job(multi_k=multi_k)], batches, 200)["one"]
    weights = TopKWeights.from_export(found.sae.export())
    x = next(batches(10**5))
    error = (weights.decode(weights.encode(x)) - x).square().sum()
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
        ({"multi_k": 4}, "multi_k 4 is not over k 4"),
        ({"multi_k": 41}, "at most d_sae 40"),
        ({"multi_weight": -1}, "multi_weight"),
        ({"layer_norm": True}, "layer_norm"),
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
