import pytest
import torch
from pydantic import ValidationError

from shared.saes import codes
from shared.saes.batchtopk import RATE, BatchTopKConfig
from shared.saes.jumprelu import JumpReLUWeights
from shared.saes.loading import load_sae
from shared.saes.topk import TopKConfig
from shared.saes.weights import save_sae
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Job, train

D_IN, D_SAE, BATCH, K = 6, 40, 32, 4
DEAD = list(range(25, 40))


def config(**changes):
    fixed = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 0, "k_aux": 3, "dead_after": 1000}
    return BatchTopKConfig(**fixed | changes)


def inputs(batch=BATCH, seed=1):
    """Vectors of very different lengths, so that inputs differ in how many features they get."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(0.3, 3, batch)[:, None]
    return 5 * lengths * torch.rand(batch, D_IN, generator=generator)


def started(matmul=torch.float32, **changes):
    sae = config(**changes).create("cpu", matmul)
    sae.start(inputs())
    sae.W_enc_T.add_(0.2 * torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(2)))
    return sae


def with_dead(sae):
    """Let the features DEAD be inactive from now on, and dead from the next batch on."""
    sae.W_enc_T[DEAD] *= 0.001
    sae.unused[DEAD] = 999
    return sae


def largest_of_batch(z, k):
    """Return z where it is positive and among the k · batch largest of all, else 0."""
    f = torch.relu(z)
    bound = f.flatten().sort(descending=True).values[k * len(z) - 1]
    return torch.where(f >= bound, f, 0)


def largest_of_rows(z, k):
    ranks = z.argsort(1, descending=True).argsort(1)
    return torch.relu(z) * (ranks < k)


def dense(sae, x, dead=()):
    """The formulas of the docstrings in float64: losses, f and the gradients by autograd."""
    leaves = {
        name: tensor.double().clone().requires_grad_() for name, tensor in sae.parameters.items()
    }
    x = x.double() * sae.scale.double()
    z = (x - leaves["b_dec"]) @ leaves["W_enc_T"].T
    f = largest_of_batch(z, sae.config.k)
    x_hat = f @ leaves["W_dec"] + leaves["b_dec"]
    losses = (x - x_hat).square().sum(1) / sae.variance.double()
    total = losses.mean()
    if dead:
        missing = (x - x_hat).detach()
        rows = largest_of_rows(z[:, dead], sae.config.auxiliary_width)
        error = rows @ leaves["W_dec"][dead] - missing
        # In what is missing, b_dec alone is not taken as given.
        error = error + leaves["b_dec"] - leaves["b_dec"].detach()
        spread = (missing - missing.mean(0)).square().mean()
        total = total + sae.config.aux * error.square().mean() / spread
    total.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    full, rows = gradients["W_dec"], leaves["W_dec"].detach()
    gradients["W_dec"] = full - (full * rows).sum(1, keepdim=True) * rows
    return losses.detach(), total.detach(), f.detach(), gradients


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def products(request, monkeypatch):
    """Both ways of multiplying, whatever the share of active entries."""
    monkeypatch.setattr(codes, "SPARSE_BELOW", request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dead", [[], DEAD], ids=["alive", "dead"])
def test_gradients_are_autograd_s(dead):
    sae, x = started(), inputs()
    if dead:
        with_dead(sae)
    gradients, measured = sae.gradients(x)
    losses, total, f, expected = dense(sae, x, dead)
    counts = (f > 0).sum(1)
    assert int(counts.sum()) == K * BATCH
    assert counts.min() < K < counts.max()  # inputs share as the paper wants it
    assert set(gradients) == set(sae.parameters)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-4, atol=1e-6)
        assert gradients[name].shape == sae.parameters[name].shape
    assert (gradients["W_dec"] * sae.W_dec).sum(1).abs().max() < 1e-6
    assert float(measured.scalars["loss"]) == pytest.approx(float(total), rel=1e-5)
    assert bool(measured.scalars["aux"] > 0) == bool(dead)
    assert float(measured.scalars["l0"]) == K
    torch.testing.assert_close(sae.losses(x).double(), losses, rtol=1e-4, atol=1e-6)


def test_one_input_is_a_topk_autoencoder():
    sae, x = started(), inputs()[:1]
    topk = TopKConfig(**sae.config.model_dump()).create()
    for name, tensor in topk.state.items():
        tensor.copy_(sae.state[name])
    expected, measured = topk.gradients(x)
    found, also = sae.gradients(x)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    assert torch.equal(also.fired, measured.fired)


def test_codes_are_those_of_sae_lens():
    from sae_lens.saes.batchtopk_sae import BatchTopK

    sae, x = started(), inputs()
    z = (x * sae.scale - sae.b_dec) @ sae.W_enc_T.T
    expected = BatchTopK(K)(z)
    f = sae._selected(z)[0].times(torch.eye(D_SAE))
    torch.testing.assert_close(f, expected, rtol=1e-5, atol=1e-6)


def test_negative_ones_do_not_pass():
    """Fewer are active where fewer are positive."""
    sae, x = started(k=D_SAE), inputs()
    z = (x * sae.scale - sae.b_dec) @ sae.W_enc_T.T
    f = sae._selected(z)[0].times(torch.eye(D_SAE))
    torch.testing.assert_close(f, z.relu(), rtol=1e-5, atol=1e-6)


def test_the_second_code_of_multi_topk_is_of_the_batch_as_well():
    sae, x = started(multi_k=8), inputs()
    first, second = sae._selected((x * sae.scale - sae.b_dec) @ sae.W_enc_T.T)
    assert float(first.firings().sum()) == K * BATCH
    assert float(second.firings().sum()) == 8 * BATCH


def test_the_threshold_is_that_of_sae_lens_corrected_for_its_start_at_zero():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = started()
    theirs = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    least = []
    for step in range(1, 31):
        x = inputs(seed=step)
        f = dense(sae, x)[2]
        sae.gradients(x)
        theirs.update_topk_threshold(f)
        least.append(float(f[f > 0].min()))
        corrected = float(theirs.topk_threshold) / (1 - (1 - RATE) ** step)
        found = sae.export().tensors["threshold"] * sae.scale
        torch.testing.assert_close(found, torch.full((D_SAE,), corrected), rtol=1e-4, atol=0)
        if step == 1:
            assert float(found[0]) == pytest.approx(least[0], rel=1e-4)
    assert min(least) < float(found[0]) < max(least)


def test_looking_at_losses_leaves_the_threshold_alone():
    sae, x = started(), inputs()
    sae.gradients(x)
    before = {name: tensor.clone() for name, tensor in sae.state.items()}
    sae.losses(inputs(seed=3))
    assert all(torch.equal(sae.state[name], tensor) for name, tensor in before.items())


def test_untrained_it_has_the_threshold_zero():
    assert not started().export().tensors["threshold"].any()
    silent = started()
    silent.W_enc_T.zero_()
    silent.gradients(inputs())  # nothing is active
    assert not silent.export().tensors["threshold"].any()


def test_bfloat16_is_float32_to_its_precision():
    x = inputs(256)
    exact, measured = with_dead(started()).gradients(x)
    rough, roughly = with_dead(started(torch.bfloat16)).gradients(x)
    for name, gradient in exact.items():
        assert float((rough[name] - gradient).norm() / gradient.norm()) < 0.1, name
    loss = float(measured.scalars["loss"])
    assert float(roughly.scalars["loss"]) == pytest.approx(loss, rel=0.02)


@pytest.mark.parametrize("spoilt", ["x", "W_enc_T"])
def test_what_is_not_finite_gives_a_loss_that_is_not(spoilt):
    sae, x = started(), inputs()
    (x if spoilt == "x" else sae.W_enc_T)[3, 2] = torch.nan
    assert not sae.gradients(x)[1].scalars["loss"].isfinite()


def test_the_decoder_keeps_unit_rows():
    sae = started()
    sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    sae.constrain()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_sae_lens_loads_it_and_computes_the_same(tmp_path):
    from sae_lens import SAE

    sae, x = started(), inputs()
    for _ in range(3):
        sae.gradients(x)  # the same batch: the threshold is its least active value
    save_sae(tmp_path, sae.export(), {"hook_name": "resid"})
    theirs, ours = SAE.load_from_disk(tmp_path), load_sae(tmp_path)
    assert theirs.cfg.architecture() == "jumprelu"
    assert isinstance(ours, JumpReLUWeights)
    f = dense(sae, x)[2]
    f[f == f[f > 0].min()] = 0  # which the threshold cuts or not, by rounding
    least = ours.threshold[0] * (1 + 1e-4)
    with torch.no_grad():
        for found in (ours.encode(x), theirs.encode(x)):
            found = torch.where(found > least, found, 0)
            torch.testing.assert_close(found, (f / sae.scale).float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.decode(ours.encode(x)), theirs(x), rtol=1e-4, atol=1e-4)


def batches(start):
    """Sparse combinations of 16 fixed directions, of no particular scale."""
    directions = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for number in range(start, 10**6):
        generator = torch.Generator().manual_seed(1 + number)
        amounts = torch.rand(64, 16, generator=generator) + 0.5
        yield 4 * (amounts * (torch.rand(64, 16, generator=generator) < 0.1)) @ directions + 1


def job(**changes):
    settings = {"d_in": 8, "d_sae": 32, "k": 2, "seed": 0, "dead_after": 300}
    return Job(name="one", sae=BatchTopKConfig(**settings | changes), lr=1e-2, resampling=None)


def test_it_learns():
    """Unseen inputs lose three quarters of their variance to k features of each on average."""
    found = train([job()], batches, 300)["one"]
    weights = JumpReLUWeights.from_export(found.sae.export())
    x = torch.cat([next(batches(10**5 + i)) for i in range(8)])
    f = weights.encode(x)
    assert float((f > 0).sum(1).float().mean()) == pytest.approx(2, rel=0.15)
    error = (weights.decode(f) - x).square().sum()
    assert error < 0.25 * (x - x.mean(0)).square().sum()


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    one = job(dead_after=128)  # two batches
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
    assert set(found.state) == {*found.parameters, "scale", "variance", "unused", "least", "weight"}
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name
    assert torch.equal(found.export().tensors["threshold"], expected.export().tensors["threshold"])


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 41}, {"aux": -1}, {"dead_after": 0}, {"l1": 1}])
def test_parameters_that_make_no_sense(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        config(**bad)
