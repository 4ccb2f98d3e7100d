"""Divergence of predictions and surprise at tokens, against their definitions."""

import numpy as np
import torch
from scipy.special import log_softmax, rel_entr, softmax

from shared.features.effect import divergence, surprise


def test_divergence_is_the_relative_entropy():
    before, after = torch.randn(2, 4, 3, 50, generator=torch.Generator().manual_seed(0)) * 3
    expected = rel_entr(softmax(before.double(), -1), softmax(after.double(), -1)).sum(-1)
    np.testing.assert_allclose(divergence(before, after), expected, rtol=1e-4)
    assert torch.equal(divergence(before, before), torch.zeros(4, 3))


def test_surprise_is_the_negative_log_probability_of_the_next_token():
    logits = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 3, 9, 1], [0, 2, 2, 7]])
    log_p = log_softmax(logits.double().numpy(), -1)
    expected = [[-log_p[row, at, tokens[row, at + 1]] for at in range(3)] for row in range(2)]
    np.testing.assert_allclose(surprise(logits, tokens), expected, rtol=1e-5)
