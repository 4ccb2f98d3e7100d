"""The dictionary of features: against SAELens, against what it stands for, and bad input."""

import json

import pytest
import torch

import shared.features.dictionary as dictionary_module
from shared.activations.sites import Site
from shared.corpus.tokenizer import save_tokenizer
from shared.errors import UserError
from shared.features.dictionary import Dictionary, bundled_names, of_sae_lens, open_dictionary
from shared.hub import releases
from shared.language_models.train import save_model
from shared.saes.gated import GatedConfig
from shared.saes.jumprelu import JumpReLUConfig
from shared.saes.preprocessing import Normalised, for_activations
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig
from shared.saes.weights import save_sae

SIZES = {"d_in": 8, "d_sae": 20, "seed": 3}
KINDS = {
    "standard": StandardConfig(**SIZES, l1=0.1),
    "gated": GatedConfig(**SIZES, l1=0.1),
    "jumprelu": JumpReLUConfig(**SIZES, l0=0.1),
    "topk": TopKConfig(**SIZES, k=3),
}
HOOK = "blocks.0.hook_resid_post"


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exported(kind):
    """A few parameters moved at random, as by training."""
    sae = KINDS[kind].create()
    sae.start(random(9, 8))
    for number, parameter in enumerate(sae.parameters.values()):
        parameter.add_(random(*parameter.shape, seed=number), alpha=0.3)
    return sae.export()


@pytest.fixture
def language_model(tiny, tmp_path):
    """The folder of the small model."""
    model = tiny().model
    save_model(model.network, tmp_path / "model", {})
    save_tokenizer(model.tokenizer, tmp_path / "model" / "tokenizer.json")
    return str(tmp_path / "model")


@pytest.fixture
def folder(tmp_path, language_model):
    """The folder of an autoencoder that names the small model and its site."""
    save_sae(tmp_path / "sae", exported("topk"), {"model_name": language_model, "hook_name": HOOK})
    return tmp_path / "sae"


def describe(folder, **metadata):
    """Change what an autoencoder says of its making; None takes a line away."""
    config = json.loads((folder / "cfg.json").read_text())
    merged = {**config["metadata"], **metadata}
    config["metadata"] = {key: value for key, value in merged.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))


def assert_equals_sae_lens(found, theirs, x):
    f = found.encode(x)
    assert 0 < (f > 0).float().mean() < 1
    torch.testing.assert_close(f, theirs.encode(x))
    torch.testing.assert_close(found.decode(f, x), theirs(x))
    torch.testing.assert_close(found.directions, theirs.W_dec)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_sae_lens_does(tiny, tmp_path, kind, normalised):
    from sae_lens import SAE

    export = exported(kind)
    save_sae(tmp_path, for_activations(export) if normalised else export, {})
    theirs = SAE.load_from_disk(tmp_path)
    tiny = tiny()
    x = 4 * random(6, 8) + 2
    assert_equals_sae_lens(Dictionary("", tiny.model, tiny.site, of_sae_lens(theirs)), theirs, x)
    weights = dictionary_module.load_sae(tmp_path)
    assert isinstance(weights, Normalised) is normalised
    assert_equals_sae_lens(Dictionary("", tiny.model, tiny.site, weights), theirs, x)


def test_one_that_sae_lens_made_and_saved(tmp_path, language_model):
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(model_name=language_model, hook_name=HOOK)
    theirs = StandardSAE(
        StandardSAEConfig(d_in=8, d_sae=20, apply_b_dec_to_input=False, metadata=metadata)
    )
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            parameter.copy_(random(*parameter.shape, seed=number))
    theirs.save_model(tmp_path / "theirs")
    found = open_dictionary(str(tmp_path / "theirs"))
    assert (found.d_sae, found.site) == (20, Site("resid_post", 0))
    with torch.no_grad():
        assert_equals_sae_lens(found, theirs, random(6, 8))


def test_sae_lens_kinds_that_are_not_read():
    from sae_lens import SAE, StandardSAE, StandardSAEConfig

    scaled = StandardSAEConfig(d_in=8, d_sae=20, normalize_activations="constant_norm_rescale")
    with pytest.raises(UserError, match="'standard' with normalize_activations 'constant_norm_"):
        of_sae_lens(StandardSAE(scaled))
    config = {"d_in": 8, "d_sae": 20, "d_out": 8, "apply_b_dec_to_input": False}
    transcoder = SAE.from_dict({"architecture": "transcoder", **config, "device": "cpu"})
    with pytest.raises(UserError, match=r"'transcoder'.*: choose one of standard, gated"):
        of_sae_lens(transcoder)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_change_is_the_difference_of_two_reconstructions(tiny, normalised, centred):
    plain = tiny(normalised=normalised)
    dictionary = Dictionary("", plain.model, plain.site, plain.sae, centred=centred)
    x = 4 * random(2, 5, 8) + 2
    f, after = dictionary.encode(x), random(2, 5, 20, seed=2).abs()
    assert f.shape == after.shape
    expected = dictionary.decode(after, x) - dictionary.decode(f, x)
    torch.testing.assert_close(dictionary.change(after - f, x), expected)
    assert not dictionary.change(torch.zeros_like(f), x).any()
    one = torch.zeros_like(f)
    one[..., 7] = 2
    deviation = x.std(-1, keepdim=True) if normalised else torch.ones(2, 5, 1)
    added = 2 * dictionary.directions[7] * deviation
    torch.testing.assert_close(dictionary.change(one, x), added)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_centred_one_is_of_activations_less_their_mean(tiny, normalised):
    plain = tiny(normalised=normalised)
    centred = Dictionary("", plain.model, plain.site, plain.sae, centred=True)
    x = 4 * random(6, 8) + 2
    mean = x.mean(1, keepdim=True)
    f = centred.encode(x)
    torch.testing.assert_close(f, plain.encode(x - mean))
    torch.testing.assert_close(centred.encode(x + 100), f, rtol=1e-3, atol=1e-3)
    assert normalised == torch.allclose(f, plain.encode(x), atol=1e-4)
    expected = plain.decode(f, x - mean) + mean
    torch.testing.assert_close(centred.decode(f, x), expected)


def test_the_way_weights_were_centred_is_read(folder):
    assert not open_dictionary(str(folder)).centred
    describe(folder, model_from_pretrained_kwargs={"center_writing_weights": True})
    assert open_dictionary(str(folder)).centred
    describe(folder, model_from_pretrained_kwargs={"center_writing_weights": False})
    assert not open_dictionary(str(folder)).centred


@torch.no_grad()
def test_activations_are_those_of_the_site_and_go_on_to_the_same_logits(tiny):
    dictionary = tiny()
    tokens = dictionary.tokens("abcd")
    model = dictionary.model
    x = dictionary.activations(tokens)
    hidden = model.network(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(x, hidden[1])
    assert torch.equal(dictionary.logits_with(tokens, x), model.logits(tokens))
    assert not torch.allclose(dictionary.logits_with(tokens, x + 1 + x**2), model.logits(tokens))


def test_tokens_begin_with_the_end_of_text_and_are_shown_as_they_are(tiny):
    dictionary = tiny()
    tokens = dictionary.tokens("a é\n")
    assert tokens[0, 0] == 0
    texts = dictionary.shown(tokens[0])
    assert texts[0] == "<|endoftext|>"
    # The two bytes of é are tokens of their own, and no text alone.
    assert len(texts) == 6
    assert [texts[1], texts[3], texts[4], texts[5]] == ["a", "�", "�", "\n"]
    assert dictionary.model.tokenizer.decode(tokens[0, 1:].tolist()) == "a é\n"


def test_a_token_by_its_text(tiny):
    dictionary = tiny()
    assert dictionary.shown(torch.tensor([dictionary.token("b")])) == ["b"]
    with pytest.raises(UserError, match=r"'bc' is no single token, it is \['b', 'c'\]"):
        dictionary.token("bc")
    with pytest.raises(UserError, match="'' is no single token"):
        dictionary.token("")


def test_texts_that_cannot_be_read(tiny):
    dictionary = tiny()
    with pytest.raises(UserError, match="the text is empty"):
        dictionary.tokens("")
    assert dictionary.tokens("b" * 11).shape == (1, 12)
    with pytest.raises(UserError, match="has 12 tokens, and tiny reads up to 11: shorten it"):
        dictionary.tokens("b" * 12)


def test_features_that_are_not_there(tiny):
    dictionary = tiny()
    assert (dictionary.feature(0), dictionary.feature(19)) == (0, 19)
    for number in (-1, 20):
        with pytest.raises(UserError, match=f"no feature {number}: tiny sae has 0 to 19"):
            dictionary.feature(number)


def test_what_an_autoencoder_names_is_opened_unless_something_else_is_given(folder, language_model):
    found = open_dictionary(str(folder))
    assert (found.name, found.model.name, found.d_sae) == (str(folder), language_model, 20)
    assert found.site == Site("resid_post", 0)
    assert open_dictionary(str(folder), hook="blocks.1.attn_out").site == Site("attn_out", 1)
    assert open_dictionary(str(folder), hook="blocks.1.hook_mlp_out").site == Site("mlp_out", 1)
    describe(folder, model_name=None, hook_name=None)
    with pytest.raises(UserError, match="does not say its model: give it"):
        open_dictionary(str(folder))
    with pytest.raises(UserError, match="does not say its hook: give it"):
        open_dictionary(str(folder), model=language_model)
    assert open_dictionary(str(folder), language_model, HOOK).site == Site("resid_post", 0)


def test_a_bundled_one_is_opened_by_its_name(folder, monkeypatch):
    monkeypatch.setattr(dictionary_module, "BUNDLED", folder.parent)
    assert bundled_names() == ["sae"]
    assert open_dictionary("sae").d_sae == 20
    with pytest.raises(UserError, match=r"no autoencoder 'other': choose a bundled one \(sae\)"):
        open_dictionary("other")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "mini_gpt2"}, "has a d_in of 8, and blocks.0.resid_post of mini_gpt2 has 256"),
        ({"hook": "blocks.0.mlp_post"}, "has a d_in of 8, and blocks.0.mlp_post of .* has 12"),
        ({"hook": "blocks.2.resid_post"}, "has no blocks.2.resid_post: .* LAYER from 0 to 1"),
        ({"hook": "blocks.0.hook_z"}, "no hook 'blocks.0.hook_z'"),
        ({"hook": "layer 0"}, "no site 'layer 0'"),
    ],
)
def test_one_that_does_not_fit(folder, given, message):
    with pytest.raises(UserError, match=message) as caught:
        open_dictionary(str(folder), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-release:blocks.0.hook_resid_pre", "SAELens has no no-such-release"),
        ("gpt2-small-res-jb:blocks.99.hook_resid_pre", "has no gpt2-small-res-jb blocks.99"),
    ],
)
def test_releases_that_are_not_there(name, message):
    with pytest.raises(UserError, match=message) as caught:
        open_dictionary(name)
    assert "\n" not in str(caught.value)


def test_a_release_that_cannot_be_fetched(monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled
    from sae_lens import SAE

    def fetch(*_, **__):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(SAE, "from_pretrained", fetch)
    monkeypatch.setattr(releases, "fetch", lambda *_: None)
    with pytest.raises(UserError, match=r"gpt2-small-res-jb .* here, and .* cannot be reached"):
        open_dictionary("gpt2-small-res-jb:blocks.8.hook_resid_pre")


def test_a_release_is_opened_with_what_it_says_of_itself(monkeypatch, language_model):
    """As `gpt2-small-res-jb` comes: a standard autoencoder of a model with centred weights."""
    from sae_lens import SAE, StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(
        model_name="gpt2-small",
        hook_name="blocks.1.hook_resid_pre",
        model_from_pretrained_kwargs={"center_writing_weights": True},
    )
    theirs = StandardSAE(StandardSAEConfig(d_in=8, d_sae=20, metadata=metadata))
    asked = []

    def fetch(*arguments, **_):
        asked.append(arguments)
        return theirs

    monkeypatch.setattr(SAE, "from_pretrained", fetch)
    monkeypatch.setattr(releases, "fetch", lambda *_: None)
    monkeypatch.setattr(dictionary_module, "MODELS", {"gpt2-small": language_model})
    found = open_dictionary("gpt2-small-res-jb:blocks.1.hook_resid_pre")
    assert asked == [("gpt2-small-res-jb", "blocks.1.hook_resid_pre")]
    assert (found.site, found.centred) == (Site("resid_pre", 1), True)
    assert found.model.name == language_model
