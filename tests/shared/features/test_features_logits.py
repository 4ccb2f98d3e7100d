"""The direct path of a direction to the logits."""

import pytest
import torch

from shared.features.logits import logit_weights, promoted


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def with_gain(dictionary):
    network = dictionary.model.network
    norm = network.transformer.ln_f
    norm.weight.copy_(torch.rand(8, generator=torch.Generator().manual_seed(5)) + 0.5)
    # Untied, for the embedding, too, would be changed with it.
    network.lm_head.weight = torch.nn.Parameter(random(300, 8), requires_grad=False)
    return dictionary


@pytest.mark.parametrize("site", ["blocks.1.resid_post", "blocks.1.mlp_out", "blocks.1.mlp_post"])
def test_they_are_what_a_small_change_does_to_the_logits(tiny, site):
    """At the last layer, to first order, times the deviation, but for what the deviation does."""
    dictionary = with_gain(tiny(site))
    network = dictionary.model.network.double()
    width = dictionary.directions.shape[1]
    directions = random(3, width).double()
    out = directions
    if site.endswith("mlp_post"):
        out = directions @ network.transformer.h[1].mlp.c_proj.weight
    residual = 1e7 * random(8).double()

    def logits(change):
        return network.lm_head(network.transformer.ln_f(residual + change))

    own = logits(0) - network.lm_head(network.transformer.ln_f.bias)
    found = logit_weights(dictionary, directions)
    for row, direction in zip(found, out, strict=True):
        change = (logits(direction) - logits(0)) * residual.std(correction=0)
        # The deviation changes, too: that scales the logits that the residual has anyway.
        design = torch.stack([own, torch.ones_like(own)], dim=1)
        left = (change - row)[:, None]
        left = left - design @ torch.linalg.lstsq(design, left).solution
        assert left.abs().max() < 1e-4 < row.abs().max()


def test_they_are_linear_and_their_mean_is_zero(tiny):
    dictionary = with_gain(tiny())
    left, right = random(2, 8).split(1)
    found = logit_weights(dictionary, left - 2 * right)
    torch.testing.assert_close(
        found, logit_weights(dictionary, left) - 2 * logit_weights(dictionary, right)
    )
    torch.testing.assert_close(found.mean(1), torch.zeros(1), atol=1e-5, rtol=0)
    # LayerNorm takes away what all directions of the residual stream share.
    torch.testing.assert_close(logit_weights(dictionary, left + 5), logit_weights(dictionary, left))


def test_promoted_tokens_are_the_largest_logits_in_any_chunk(tiny, monkeypatch):
    dictionary = with_gain(tiny())
    directions = random(5, 8)
    found = promoted(dictionary, directions, 4)
    weights = logit_weights(dictionary, directions)
    for row, tokens in zip(weights, found, strict=True):
        order = row.argsort(descending=True)[:4]
        assert [token for token, _ in tokens] == dictionary.shown(order)
        torch.testing.assert_close(torch.tensor([value for _, value in tokens]), row[order])
    monkeypatch.setattr("shared.features.logits.CHUNK", 2)
    assert [[t for t, _ in row] for row in promoted(dictionary, directions, 4)] == [
        [t for t, _ in row] for row in found
    ]
    assert promoted(dictionary, directions[:0], 4) == []
    assert len(promoted(dictionary, directions, 1000)[0]) == 300


def test_neurons_before_their_activation_function_have_no_linear_path(tiny):
    dictionary = tiny("blocks.1.mlp_pre")
    assert logit_weights(dictionary, random(3, 12)) is None
    assert promoted(dictionary, random(3, 12), 4) == [(), (), ()]
