"""SAELens' gated class in our engine: the same steps as in its trainer, and the way to ours."""

import pytest
import torch
from pydantic import ValidationError

from papers.gated_sae.sae_lens_gated import SaeLensGatedConfig, variants
from shared.errors import UserError
from shared.saes.gated import GatedConfig
from shared.saes.weights import save_sae
from shared.training.engine import Job, train

D_IN, D_SAE, BATCH, L1 = 8, 24, 64, 0.02


def config(**changes):
    return SaeLensGatedConfig(**{"d_in": D_IN, "d_sae": D_SAE, "l1": L1, "seed": 0} | changes)


def batches(start, count=20):
    """Sparse combinations of fixed directions, off the origin."""
    directions = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(5))
    for number in range(start, count):
        generator = torch.Generator().manual_seed(number)
        codes = torch.rand(BATCH, D_SAE, generator=generator)
        yield (codes - 0.8).relu() @ directions * 5 + 0.3


def job(**changes):
    return Job(**{"name": "one", "sae": config(), "lr": 3e-3, "resampling": None} | changes)


def in_their_trainer(sae, steps, **settings):
    """Return the parameters after so many steps of SAELens' SAETrainer."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae.cfg.l1_coefficient = L1 * D_IN
    trainer = SAETrainer(
        SAETrainerConfig(steps * BATCH, BATCH, lr=3e-3, lr_end=3e-3, **settings), sae, batches(0)
    )
    trainer.fit()
    return dict(sae.named_parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_that_of_their_trainer(precision):
    steps, half = 20, precision == "bfloat16"
    start = config().create().parameters
    alone = in_their_trainer(config().create().sae, steps, autocast=half)
    ours = train([job()], batches, steps, precision=precision)["one"].sae.parameters
    assert ours.keys() == alone.keys() == {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}
    for name, theirs in alone.items():
        torch.testing.assert_close(ours[name], theirs.data, rtol=1e-5, atol=1e-5)
        assert float((theirs.data - start[name]).abs().max()) > 0.01  # it went somewhere


def test_the_penalty_can_warm_up_as_theirs():
    """Theirs is λ (t−1)/n at step t, as is the engine's."""
    steps, share = 8, 0.5
    sae = config().create().sae
    sae.cfg.l1_warm_up_steps = round(share * steps)
    alone = in_their_trainer(sae, steps)
    found = train([job(penalty_warmup=share)], batches, steps, precision="float32")
    for name, theirs in alone.items():
        torch.testing.assert_close(
            found["one"].sae.parameters[name], theirs.data, rtol=1e-5, atol=1e-5
        )


def test_the_loss_is_that_of_the_docstring():
    sae, x = config(init_norm=0.7).create(), next(batches(0))
    for name in ("b_dec", "b_gate", "b_mag", "r_mag"):
        sae.parameters[name].copy_(0.2 * torch.randn(sae.parameters[name].shape))
    p = sae.parameters
    gate = (x - p["b_dec"]) @ p["W_enc"] + p["b_gate"]
    mag = (x - p["b_dec"]) @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]
    f = torch.where(gate > 0, mag.relu(), 0)
    mse, auxiliary = (
        (x - code @ p["W_dec"] - p["b_dec"]).square().mean(1) for code in (f, gate.relu())
    )
    expected = mse + auxiliary + L1 * (gate.relu() * p["W_dec"].norm(dim=1)).sum(1)
    torch.testing.assert_close(sae.losses(x), expected)
    _, measured = sae.gradients(x)
    torch.testing.assert_close(measured.scalars["loss"], expected.mean())
    torch.testing.assert_close(measured.scalars["mse"], mse.mean())
    torch.testing.assert_close(measured.scalars["auxiliary"], auxiliary.mean())
    assert measured.scalars["l0"] == (f > 0).sum(1).float().mean()
    assert torch.equal(measured.fired, (f > 0).any(0))


def test_the_gradient_is_clipped_where_its_norm_is_over_one():
    sae, free, x = config().create(), config(clip=None).create(), next(batches(0))
    clipped, whole = sae.gradients(x)[0], free.gradients(x)[0]
    norm = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    assert norm > 2
    for name, gradient in whole.items():
        torch.testing.assert_close(clipped[name], gradient / norm)


def test_initialisation():
    one, same, other = (config(seed=seed).create().parameters for seed in (0, 0, 1))
    torch.testing.assert_close(one["W_dec"].norm(dim=1), torch.full((D_SAE,), 0.1))
    assert torch.equal(one["W_enc"], one["W_dec"].T)
    assert torch.equal(one["W_dec"], same["W_dec"])
    assert not torch.equal(one["W_dec"], other["W_dec"])
    before = torch.get_rng_state()
    held = config(unit_norm=True).create()
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(held.parameters["W_dec"].norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(held.parameters["W_enc"].norm(dim=0), torch.full((D_SAE,), 0.1))


def test_the_last_variant_is_our_unfrozen_gated():
    """At the same weights: the same start of b_dec, gradients and constraint."""
    ours = GatedConfig(d_in=D_IN, d_sae=D_SAE, l1=L1, seed=0, frozen_aux=False).create()
    changed = list(variants(job(sae=ours.config, betas=(0.0, 0.999), lr_warmup=0.1)).values())[-1]
    theirs = changed.sae.create()
    x = next(batches(0))
    generator = torch.Generator().manual_seed(1)
    for name in ("b_gate", "b_mag", "r_mag"):
        ours.parameters[name].copy_(0.2 * torch.randn(D_SAE, generator=generator))
    for name, tensor in ours.export().tensors.items():
        theirs.parameters[name].copy_(tensor)
    for sae in (ours, theirs):
        sae.start(x)
    assert torch.equal(ours.b_dec, theirs.parameters["b_dec"])
    expected, seen = ours.gradients(x)
    found, measured = theirs.gradients(x)
    expected["W_enc"] = expected.pop("W_gate_T").T
    assert expected.keys() == found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, D_IN * expected[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured.scalars["loss"], seen.scalars["loss"])
    for sae in (ours, theirs):
        sae.parameters["W_dec"].mul_(3)
        sae.constrain()
    torch.testing.assert_close(ours.W_dec, theirs.parameters["W_dec"])


def test_the_last_variant_trains_as_our_unfrozen_gated():
    """From the same draw of the first weights."""
    gated = GatedConfig(d_in=D_IN, d_sae=D_SAE, l1=L1, seed=3, frozen_aux=False)
    ours = job(sae=gated, betas=(0.0, 0.999), lr_warmup=0.2, penalty_warmup=0.3, ema=0.5)
    last = list(variants(ours).values())[-1]
    trained = train([ours, last], batches, 20, precision="float32")
    theirs = trained[last.name].sae.parameters
    for name, tensor in trained["one"].sae.export().tensors.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4)


def test_every_variant_changes_one_thing():
    gated = GatedConfig(d_in=D_IN, d_sae=D_SAE, l1=L1, seed=3, frozen_aux=False)
    ours = job(sae=gated, site="neurons", betas=(0.0, 0.999), lr_warmup=0.1, ema=0.9)
    ours = ours.model_copy(update={"dead_window": 0.2})
    found = variants(ours)
    assert next(iter(found)) == "sae_lens_gated"
    assert found["sae_lens_gated"].sae == config(seed=3)
    assert all(name == variant.name for name, variant in found.items())
    flat = []
    for variant in found.values():
        fields = variant.model_dump(exclude={"name", "sae"})
        flat.append({**fields, **variant.sae.model_dump()})
        assert variant.resampling is None
        assert (variant.site, variant.lr, variant.dead_window) == ("neurons", ours.lr, 0.2)
    for before, after, name in zip(flat, flat[1:], list(found)[1:], strict=False):
        assert [key for key in after if after[key] != before[key]] == [name[len("sae_lens_") :]]
    last = list(found.values())[-1]
    assert (last.betas, last.lr_warmup, last.ema) == (ours.betas, ours.lr_warmup, ours.ema)


def test_saelens_loads_the_export(tmp_path):
    from sae_lens import SAE

    sae, x = train([job()], batches, 5, precision="float32")["one"].sae, next(batches(7))
    save_sae(tmp_path, sae.export(), {"model_name": "mine"})
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == "gated"
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), sae.sae(x))
    sae.parameters["W_dec"].zero_()
    assert sae.export().tensors["W_enc"].any()
    assert loaded.W_dec.any()


def test_it_cannot_be_resampled():
    sae = config().create()
    with pytest.raises(UserError, match="resampling=None"):
        sae.resample(torch.tensor([0]), torch.ones(1, D_IN), torch.tensor([1]))


@pytest.mark.parametrize("bad", [{"l1": -1}, {"init_norm": 0}, {"clip": 0}, {"d_sae": 0}])
def test_parameters_that_make_no_sense(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        config(**bad)
