import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chisquare

from shared.saes.standard import StandardConfig
from shared.training.adam import Adam
from shared.training.resampling import Resampling, dead_features, resample, sampling_weights

D_IN, D_SAE = 4, 9


def make():
    """An autoencoder and an Adam that has taken a step."""
    sae = StandardConfig(d_in=D_IN, d_sae=D_SAE, l1=0.1, seed=0).create()
    sae.b_enc.fill_(0.3)
    sae.b_dec.fill_(0.2)
    adam = Adam(sae.parameters, 0.01)
    adam.step(sae.gradients(vectors(64, seed=9))[0])
    sae.constrain()
    return sae, adam


def vectors(count, seed=0):
    return torch.randn(count, D_IN, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


DEAD = torch.zeros(D_SAE, dtype=torch.bool)
DEAD[[1, 6]] = True


def test_dead_is_without_firing_in_the_last_window():
    last_fired = torch.tensor([0, 87, 88, 100])  # counted from 1; 0 is never
    assert dead_features(last_fired, done=100, window=13).tolist() == [True, True, False, False]
    assert not dead_features(torch.zeros(3, dtype=torch.int64), done=5, window=6).any()
    assert dead_features(torch.zeros(3, dtype=torch.int64), done=6, window=6).all()


def test_inputs_are_drawn_in_proportion_to_the_squared_loss():
    """Of 3 inputs with losses 1 : 2 : 3, the one that a feature gets is known by its direction."""
    sae = StandardConfig(d_in=3, d_sae=20_000, l1=0.0, seed=0).create()
    adam = Adam(sae.parameters, 0.01)
    inputs = torch.eye(3)
    losses = torch.tensor([1.0, 2.0, 3.0])
    sae.losses = lambda x: losses
    resample(sae, adam, torch.ones(20_000, dtype=torch.bool), [inputs], generator())
    drawn = sae.W_dec.argmax(1).bincount(minlength=3)
    squared, plain = np.array([1, 4, 9]) / 14, np.array([1, 2, 3]) / 6
    assert chisquare(drawn.numpy(), 20_000 * squared).pvalue > 1e-3
    assert chisquare(drawn.numpy(), 20_000 * plain).pvalue < 1e-9


def test_an_input_without_direction_is_never_drawn():
    inputs = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert sampling_weights(torch.tensor([5.0, 3.0]), inputs).tolist() == [0, 9]


def test_resampled_features():
    sae, adam = make()
    lengths = sae.W_enc_T.norm(dim=1)
    inputs = 3 * vectors(5)
    features = resample(sae, adam, DEAD, [inputs[:2], inputs[2:]], generator())
    assert features.tolist() == [1, 6]
    directions = inputs / inputs.norm(dim=1, keepdim=True)
    for feature in (1, 6):
        row = sae.W_dec[feature]
        assert (directions - row).norm(dim=1).min() < 1e-6  # an input at unit length
        expected = 0.2 * lengths[~DEAD].mean() * row
        torch.testing.assert_close(sae.W_enc_T[feature], expected)
        assert sae.b_enc[feature] == 0


def test_exactly_the_entries_of_the_dead_change():
    sae, adam = make()
    before = {name: tensor.clone() for name, tensor in sae.parameters.items()}
    state = {name: tensor.clone() for name, tensor in adam.state.items()}
    resample(sae, adam, DEAD, [vectors(5)], generator())
    for name in ("W_enc_T", "b_enc", "W_dec"):
        assert torch.equal(sae.parameters[name][~DEAD], before[name][~DEAD])
        for kind in ("mean", "square"):
            moments, earlier = adam.state[f"{kind}.{name}"], state[f"{kind}.{name}"]
            assert torch.equal(moments[~DEAD], earlier[~DEAD])
            assert earlier[DEAD].any()
            assert not moments[DEAD].any()
    assert torch.equal(sae.b_dec, before["b_dec"])
    for name in ("mean.b_dec", "square.b_dec", "steps.W_dec"):
        assert torch.equal(adam.state[name], state[name])


def test_without_anything_alive_the_length_is_that_of_all():
    sae, adam = make()
    typical = sae.W_enc_T.norm(dim=1).mean()
    resample(sae, adam, torch.ones(D_SAE, dtype=torch.bool), [vectors(5)], generator())
    torch.testing.assert_close(sae.W_enc_T.norm(dim=1), (0.2 * typical).expand(D_SAE))


@pytest.mark.parametrize(
    ("dead", "inputs"),
    [
        (torch.zeros(D_SAE, dtype=torch.bool), vectors(5)),
        (DEAD, torch.zeros(5, D_IN)),
        (DEAD, torch.full((5, D_IN), torch.nan)),
    ],
    ids=["none dead", "zeros", "not finite"],
)
def test_nothing_to_resample(dead, inputs):
    sae, adam = make()
    before = {name: tensor.clone() for name, tensor in sae.parameters.items()}
    assert not len(resample(sae, adam, dead, [inputs], generator()))
    for name, tensor in before.items():
        assert torch.equal(sae.parameters[name], tensor)


def test_a_resampled_feature_fires_on_its_input():
    sae, adam = make()
    one = vectors(1)
    sae.b_dec.zero_()
    resample(sae, adam, DEAD, [one], generator())
    assert sae.gradients(one)[1].fired[DEAD].all()


@pytest.mark.parametrize("bad", [{"at": (0.0,)}, {"at": (1.0,)}, {"inputs": 0}])
def test_parameters_that_make_no_sense(bad):
    with pytest.raises(ValidationError):
        Resampling(**bad)
