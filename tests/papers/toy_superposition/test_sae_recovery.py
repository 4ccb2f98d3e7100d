import numpy as np
import pytest
import torch

from papers.toy_superposition import sae_recovery
from papers.toy_superposition.sae_recovery import (
    Autoencoders,
    Data,
    M,
    N,
    Parameters,
    autoencoder,
    evaluate,
    fit,
    interval,
    measures,
    normalised,
    random_cosine,
)
from papers.toy_superposition.training import Recipe

SOURCE = np.random.default_rng(0)


def directions(*shape: int) -> np.ndarray:
    draws = SOURCE.standard_normal(shape)
    return draws / np.linalg.norm(draws, axis=-1, keepdims=True)


@pytest.mark.parametrize(("count", "m"), [(1, 8), (10, 8), (80, 8), (5, 3)])
def test_random_cosine_is_that_of_random_directions(count, m):
    largest = directions(20_000, count, m)[:, :, 0].max(1)
    mean, exceeds = random_cosine(count, m)
    assert mean == pytest.approx(largest.mean(), abs=0.01)
    assert exceeds == pytest.approx((largest > sae_recovery.RECOVERED).mean(), abs=0.005)


def test_one_random_direction_has_mean_cosine_zero():
    assert random_cosine(1, 8)[0] == pytest.approx(0, abs=1e-6)


def test_the_true_dictionary_recovers_everything():
    W = directions(2, N, M).swapaxes(-1, -2)
    found = measures(3 * W.swapaxes(-1, -2), np.full((2, N), 0.1), 0.5 * W)
    np.testing.assert_allclose(found["mean_max_cosine"], 1)
    assert found["recovered"].tolist() == [1, 1]
    assert found["split"].tolist() == [0, 0]
    np.testing.assert_allclose(found["active"], 0.1 * N)


def test_latents_that_never_fire_find_nothing():
    W = np.eye(4)
    decoder = np.concatenate([np.eye(4), np.eye(4)[:1]])
    fires = np.array([0.5, 0.0, 0.5, 0.5, 0.5])
    found = measures(decoder[None], fires[None], W[None])
    assert found["recovered"] == 0.75
    assert found["split"] == 0.25
    assert found["dead"] == 0.2
    assert found["mean_max_cosine"] == pytest.approx(0.75)


def test_the_opposite_direction_is_not_the_feature():
    true = np.eye(3)[None]
    assert measures(-true, np.ones((1, 3)), true)["recovered"] == 0


def test_interval_is_students():
    mean, low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2
    assert high - mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)
    assert interval(np.array([5.0])).tolist() == [5, 5, 5]


def test_activations_have_the_norm_that_saelens_expects():
    W = torch.randn(2, M, N, generator=torch.Generator().manual_seed(0))
    data = normalised(W, torch.tensor([0.2, 0.05]), torch.Generator().manual_seed(1))
    h = data.draw(20_000, torch.Generator().manual_seed(2))
    torch.testing.assert_close(h.norm(dim=-1).mean(1), torch.full((2,), M**0.5), rtol=0.03, atol=0)


@pytest.mark.parametrize("architecture", sae_recovery.ARCHITECTURES)
def test_training_together_equals_saelens_trainer(architecture):
    """The slow part is the import of sae_lens."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps, batch, width, count, lr, l1 = 6, 16, 12, 2, 0.05, 0.7
    W = torch.randn(count, M, N, generator=torch.Generator().manual_seed(0))
    data = Data(W, torch.full((count,), 0.3), torch.ones(count))
    together = Autoencoders(architecture, M, width, 3, count, 0, "cpu")
    alone = autoencoder(architecture, M, width, 3)
    own = {name: values[1].detach().clone() for name, values in together.parameters.items()}
    alone.load_state_dict({name.removeprefix("sae."): value for name, value in own.items()})
    if architecture != "topk":
        alone.cfg.l1_coefficient = l1

    coefficients = torch.full((count,), l1)
    source = torch.Generator().manual_seed(3)
    fit(together, data, coefficients, Recipe(steps=steps, lr=lr), batch, source, "x")

    source = torch.Generator().manual_seed(3)
    stream = (data.draw(batch, source)[1] for _ in range(steps))
    trainer = SAETrainer(SAETrainerConfig(steps * batch, batch, lr=lr, lr_end=lr), alone, stream)
    trainer.fit()
    for name, value in alone.named_parameters():
        mine = together.parameters[f"sae.{name}"][1]
        torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-5)
        # The trainer moved it, so that equality says something.
        assert not torch.equal(value, own[f"sae.{name}"])


def test_training_longer_than_the_dead_latent_window_is_refused():
    data = Data(torch.ones(1, M, N), torch.ones(1), torch.ones(1))
    together = Autoencoders("standard", M, 2, 1, 1, 0, "cpu")
    with pytest.raises(ValueError, match="at most 1000 steps"):
        fit(together, data, torch.ones(1), Recipe(steps=1001), 4, torch.Generator(), "x")


def test_evaluate_reads_perfect_and_useless_autoencoders():
    seeds = 3
    W = directions(3, seeds, N, M).swapaxes(-1, -2)
    orthonormal = np.broadcast_to(np.eye(N), (3, seeds, N, N))
    arrays = {"W": W, "orthonormal": orthonormal}
    for architecture in sae_recovery.ARCHITECTURES:
        arrays[f"{architecture}_orthonormal_decoder"] = orthonormal
        arrays[f"{architecture}_orthonormal_fires"] = np.ones((3, seeds, N))
        for width in sae_recovery.WIDTHS:
            true = np.tile(W.swapaxes(-1, -2), (1, 1, 4, 1))[:, :, :width]
            arrays[f"{architecture}_{width}_decoder"] = true
            arrays[f"{architecture}_{width}_fires"] = np.full(true.shape[:-1], 0.1)
    recipe = Recipe(steps=1)
    config = Parameters(
        toy=recipe,
        toy_batch=1,
        restarts=3,
        seeds=seeds,
        sae=recipe,
        sae_batch=1,
        l1_coefficients=(1.0,),
        samples=1,
    )
    evaluation = evaluate(config, arrays)
    gated = evaluation.metrics["gated"]
    assert gated["recovered"]["p10"]["equal"].tolist() == [1] * seeds
    assert gated["recovered"]["p10"]["half"].min() >= 0.5
    assert gated["split"]["p20"]["quadruple"].tolist() == [1] * seeds
    assert evaluation.metrics["orthonormal"]["topk"]["recovered_overall"] == 1
    assert evaluation.metrics["toy"]["represented"] == N
    assert evaluation.figures["sae_recovery"]["rows"] == ("mean_max_cosine", "recovered")
