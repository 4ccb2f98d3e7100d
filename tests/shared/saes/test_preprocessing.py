import pytest
import torch
from torch.nn.functional import layer_norm

from shared.saes.gated import GatedConfig, GatedWeights
from shared.saes.jumprelu import JumpReLUConfig, JumpReLUWeights
from shared.saes.preprocessing import Normalised, for_activations, normalised, restored
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig, TopKWeights
from shared.saes.weights import save_sae, weights_of

D_IN = 12
SIZES = {"d_in": D_IN, "d_sae": 30, "seed": 3}
ALL = {
    "standard": (StandardConfig(**SIZES, l1=0.1), weights_of),
    "gated": (GatedConfig(**SIZES, l1=0.1), GatedWeights.from_export),
    "jumprelu": (JumpReLUConfig(**SIZES, l0=0.1), JumpReLUWeights.from_export),
    "topk": (TopKConfig(**SIZES, k=4), TopKWeights.from_export),
}


def inputs():
    """Vectors of very different means and lengths."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, D_IN, generator=generator)
    scales, means = torch.logspace(-1, 2, 9)[:, None], torch.linspace(-50, 50, 9)[:, None]
    return x * scales + means


def test_mean_zero_and_unbiased_deviation_one():
    """But for an epsilon of 1e-5, which is no more than 2e-4 of the deviations here."""
    x = inputs().double()
    found, statistics = normalised(x)
    one = torch.ones(9, dtype=torch.float64)
    torch.testing.assert_close(found.mean(-1), 0 * one)
    torch.testing.assert_close(found.std(-1), one, rtol=2e-4, atol=0)
    length = (D_IN - 1) ** 0.5 * one
    torch.testing.assert_close(found.norm(dim=-1), length, rtol=2e-4, atol=0)
    torch.testing.assert_close(statistics.mean, x.mean(1, keepdim=True))
    torch.testing.assert_close(statistics.deviation, x.std(1, keepdim=True))


def test_it_is_torch_s_layer_norm_times_a_constant():
    """Whose variance is the biased one; its epsilon is none and ours too small here to matter."""
    x = 1000 * inputs().double()
    expected = layer_norm(x, (D_IN,), eps=0) * ((D_IN - 1) / D_IN) ** 0.5
    torch.testing.assert_close(normalised(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_of_the_mean_and_the_length_nothing_is_left():
    x = inputs()[4:]
    torch.testing.assert_close(normalised(3 * x + 7)[0], normalised(x)[0], rtol=1e-4, atol=1e-5)


def test_restored_undoes_it():
    x = inputs()
    torch.testing.assert_close(restored(*normalised(x)), x, rtol=1e-4, atol=1e-5)


def test_any_shape_of_batch():
    x = inputs()
    found, statistics = normalised(x.view(3, 3, D_IN))
    assert torch.equal(found, normalised(x)[0].view(3, 3, D_IN))
    assert statistics.mean.shape == statistics.deviation.shape == (3, 3, 1)
    assert torch.equal(normalised(x[0])[0], normalised(x)[0][0])


def test_a_constant_vector_becomes_zero():
    x = torch.full((2, D_IN), 3.0)
    found, statistics = normalised(x)
    assert not found.any()
    assert torch.equal(restored(found, statistics), x)


def test_a_single_number_has_no_deviation():
    with pytest.raises(ValueError, match="d_in must be over 1"):
        normalised(torch.ones(4, 1))


def exported(architecture):
    """Parameters moved at random, as by training, on inputs that are normalised."""
    sae = ALL[architecture][0].create()
    sae.start(normalised(inputs())[0])
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return sae.export()


def test_an_autoencoder_of_activations_has_the_same_tensors():
    before = exported("standard")
    after = for_activations(before)
    assert after.tensors is before.tensors
    assert {k for k in after.config if after.config[k] != before.config[k]} == {
        "normalize_activations"
    }
    assert before.config["normalize_activations"] == "none"


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ALL)
def test_sae_lens_computes_the_same_of_activations(tmp_path, architecture, centred):
    from sae_lens import SAE

    before = exported(architecture)
    before = before._replace(config={**before.config, "apply_b_dec_to_input": centred})
    save_sae(tmp_path, for_activations(before), {})
    theirs = SAE.load_from_disk(tmp_path)
    ours = Normalised(ALL[architecture][1](before))
    x = inputs()
    with torch.no_grad():
        f = theirs.encode(x)
        assert f.any(1).all()
        torch.testing.assert_close(ours.encode(x), f, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.reconstruct(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert ours.reconstruct(x.view(3, 3, D_IN)).shape == (3, 3, D_IN)
