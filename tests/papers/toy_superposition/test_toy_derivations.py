"""What stands behind the claims sae_toy_features_apart, sae_narrow_bound and …_beats_narrow."""

import numpy as np
import pytest

from papers.toy_superposition.sae_recovery import RECOVERED


def test_one_latent_near_two_features_needs_them_near_each_other():
    """Angle addition: the widest angle between them is twice that to the latent between them."""
    angle = np.arccos(RECOVERED)
    assert np.cos(2 * angle) == pytest.approx(2 * RECOVERED**2 - 1) == pytest.approx(0.62)
    random = np.random.default_rng(0)
    latent = np.eye(8)[0]
    away = random.normal(size=(500, 8)) * (1 - latent)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    near = np.cos(angle) * latent + np.sin(angle) * away  # on the edge of what counts as found
    assert (near @ near.T).min() >= np.cos(2 * angle) - 1e-12


def test_fewer_latents_than_features_find_at_most_one_each():
    """Pigeonhole: features further apart than that share no latent."""
    random = np.random.default_rng(1)
    features = np.eye(8)  # apart, with cosine 0
    latents = random.normal(size=(200, 4, 8)) + 6 * features[random.integers(8, size=(200, 4))]
    latents /= np.linalg.norm(latents, axis=2, keepdims=True)
    found = (latents @ features.T > RECOVERED).any(1).sum(1)
    assert found.max() == 4
