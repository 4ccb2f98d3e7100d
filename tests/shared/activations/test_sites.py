import pytest
import torch

from shared.activations.sites import (
    KINDS,
    Site,
    logits_from,
    read,
    replaced_logits,
    width,
)
from shared.errors import UserError

SITES = [Site(kind, layer) for layer in (0, 1) for kind in KINDS]


@pytest.fixture
def tokens():
    return torch.randint(0, 300, (3, 10), generator=torch.Generator().manual_seed(0))


def hooks(model):
    return [
        hook
        for module in model.network.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


def test_a_site_reads_as_it_is_written():
    for site in SITES:
        assert Site.parse(str(site)) == site
    assert str(Site("mlp_post", 3)) == "blocks.3.mlp_post"


@pytest.mark.parametrize(
    "text",
    ["mlp_post", "blocks.0.mlp", "blocks.-1.mlp_out", "blocks.0.hook_mlp_out", "a.0.mlp_out"],
)
def test_a_site_that_is_none_is_refused_with_those_there_are(text):
    with pytest.raises(UserError, match=r"no site .* resid_pre, resid_post, attn_out") as error:
        Site.parse(text)
    assert "\n" not in str(error.value)


def test_values_are_those_of_transformer_lens(model, tokens):
    _, cache = model.bridge.run_with_cache(tokens)
    values = read(model, tokens, SITES)
    assert list(values) == SITES
    for site in SITES:
        assert values[site].shape == (3, 10, width(model, site))
        torch.testing.assert_close(values[site], cache[site.hook_name], atol=1e-5, rtol=1e-5)


def test_one_site_at_a_time_gives_the_same(model, tokens):
    together = read(model, tokens, SITES)
    for site in SITES:
        assert torch.equal(read(model, tokens, [site])[site], together[site])


def test_nothing_after_the_last_site_is_computed(model, tokens):
    ran = []
    layers = model.network.transformer.h
    parts = {"layer 0": layers[0].ln_1, "down": layers[0].mlp.c_proj, "layer 1": layers[1].ln_1}
    for name, module in parts.items():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    read(model, tokens, [Site("mlp_post", 0), Site("attn_out", 0)])
    assert ran == ["layer 0"]
    read(model, tokens, [Site("resid_pre", 1)])
    assert ran == ["layer 0", "layer 0", "down"]


def test_hooks_are_gone_afterwards(model, tokens):
    before = model.logits(tokens)
    read(model, tokens, SITES)
    replaced_logits(model, tokens, Site("mlp_out", 0), torch.zeros_like)
    with pytest.raises(ZeroDivisionError):
        replaced_logits(model, tokens, Site("mlp_out", 0), lambda _: 1 / 0)
    with pytest.raises(UserError):
        read(model, tokens, [Site("mlp_out", 0), Site("mlp_out", 2)])
    assert hooks(model) == []
    assert torch.equal(model.logits(tokens), before)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_replacing_by_itself_changes_nothing_and_by_another_does(model, tokens, site):
    before = model.logits(tokens)
    assert torch.equal(replaced_logits(model, tokens, site, lambda x: x), before)
    assert not torch.allclose(replaced_logits(model, tokens, site, lambda x: x + 1), before)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_replacing_is_what_transformer_lens_does(model, tokens, site):
    ours = replaced_logits(model, tokens, site, lambda x: 3 * x.flip(0))
    theirs = model.bridge.run_with_hooks(
        tokens, fwd_hooks=[(site.hook_name, lambda x, hook: 3 * x.flip(0))]
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_replacing_the_last_residual_replaces_the_logits(model, tokens):
    state = torch.randn(3, 10, model.d_model)
    transformer = model.network.transformer
    expected = model.network.lm_head(transformer.ln_f(state))
    got = replaced_logits(model, tokens, Site("resid_post", 1), lambda _: state)
    torch.testing.assert_close(got, expected)


def test_a_replacement_of_another_shape_is_refused(model, tokens):
    with pytest.raises(ValueError, match=r"blocks.0.mlp_out holds \(3, 10, 8\)"):
        replaced_logits(model, tokens, Site("mlp_out", 0), lambda x: x[:, :, :1])


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_the_model_lacks_is_refused_with_those_it_has(model, tokens, layer):
    with pytest.raises(UserError, match="LAYER from 0 to 1, KIND one of resid_pre") as error:
        read(model, tokens, [Site("mlp_out", layer)])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        width(model, Site("mlp_out", layer))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1])
def test_going_on_from_a_residual_is_the_full_pass_with_it_replaced(
    model, tokens, layer, attention
):
    model.network.set_attn_implementation(attention)
    site = Site("resid_post", layer)
    changed = 1.5 * read(model, tokens, [site])[site].flip(0)
    whole = replaced_logits(model, tokens, site, lambda _: changed)
    positions = torch.tensor([[0, 4, 9], [3, 3, 1], [8, 5, 7]])
    found = logits_from(model, layer, changed, positions)
    expected = torch.stack([row[at] for row, at in zip(whole, positions, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_going_on_from_a_layer_that_the_model_lacks_is_refused(model):
    with pytest.raises(UserError, match=r"has no blocks\.2\.resid_post"):
        logits_from(model, 2, torch.zeros(1, 3, 8), torch.zeros(1, 1, dtype=torch.int64))
