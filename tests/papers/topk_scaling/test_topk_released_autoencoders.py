import numpy as np
import pytest
import torch
from sae_lens import SAE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from papers.topk_scaling import released_autoencoders
from papers.topk_scaling.released_autoencoders import (
    COLUMNS,
    EXPERIMENT,
    REFERENCES,
    Parameters,
    evaluate,
    train,
)
from shared.activations.sites import Site, read, replaced_logits
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.experiment import Run
from shared.figures.style import use_style
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.saes.loading import load_sae
from shared.saes.preprocessing import for_activations, normalised
from shared.saes.topk import TopKConfig
from shared.saes.weights import TENSORS, save_sae
from shared.stages import rounded

D_IN, LENGTH, VOCABULARY, CONTEXTS = 8, 12, 30, 20
SITE = Site("resid_post", 0)


@pytest.fixture(scope="module")
def model():
    shape = {"layers": 2, "d_model": D_IN, "d_mlp": 16, "heads": 2, "activation": "gelu_new"}
    config = ModelConfig(**shape, tied=True, steps=1, seed=0)
    network = create(config, VOCABULARY, LENGTH).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(8 if weight.dim() > 1 else 1)
    return LanguageModel("made up", network, Tokenizer(WordLevel({"a": 0}, unk_token="a")))


@pytest.fixture(scope="module")
def tokens(model):
    """Text that the model goes on with, so that ablating its activations costs something."""
    drawn = np.random.default_rng(0).integers(1, VOCABULARY, (CONTEXTS, 3))
    drawn[:, 0] = 0
    found = torch.from_numpy(drawn)
    while found.shape[1] < LENGTH:
        found = torch.cat([found, model.logits(found)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return found.numpy().astype(np.uint16)


@pytest.fixture
def made(model, tokens, tmp_path, monkeypatch):
    """A run; and in the format of SAELens one autoencoder, as we and as SAELens save it."""
    exported = for_activations(TopKConfig(d_in=D_IN, d_sae=20, k=3, seed=0).create().export())
    save_sae(tmp_path / "ours", exported, {"hook_name": SITE.hook_name})
    SAE.load_from_disk(tmp_path / "ours").save_model(tmp_path / "theirs")
    none = np.zeros(tokens.shape)
    contexts = Contexts(tokens, none.astype(np.uint8), none.astype(np.int32))
    monkeypatch.setattr(released_autoencoders, "load", lambda name, device: model)
    monkeypatch.setattr(released_autoencoders, "load_split", lambda folder, split: contexts)
    return Run(0, "cpu", folder=tmp_path)


def parameters(**autoencoders):
    return Parameters(model="made up", site=str(SITE), contexts=CONTEXTS, autoencoders=autoencoders)


def test_a_saved_autoencoder_is_measured_as_the_definitions_say(made, model, tokens):
    config = parameters(
        ours={"folder": made.folder / "ours"}, theirs={"folder": made.folder / "theirs"}
    )
    arrays = train(config, made)
    assert arrays["name"].tolist() == ["ours", "theirs"]
    assert all(arrays[key][0] == arrays[key][1] for key in COLUMNS)

    ids = torch.from_numpy(tokens.astype(np.int64))
    x = read(model, ids, [SITE])[SITE][:, 1:].flatten(0, 1)
    sae = load_sae(made.folder / "ours")
    inputs = normalised(x)[0]
    f = sae.encode(x)
    error = (inputs - sae.sae.decode(f)).square().sum()
    baseline = (inputs - inputs.mean(0)).square().sum()
    assert arrays["nmse"][0] == pytest.approx(float(error / baseline), rel=1e-4)
    assert arrays["l0"][0] == pytest.approx(float((f > 0).sum(1).float().mean()), rel=1e-6)
    assert arrays["d_sae"][0] == 20

    def spliced(activation):
        return torch.cat([activation[:, :1], sae.reconstruct(activation[:, 1:])], dim=1)

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    before, after = loss(model.logits(ids)), loss(replaced_logits(model, ids, SITE, spliced))
    assert arrays["loss"][0] == pytest.approx(float(before), rel=1e-5)
    assert arrays["ce"][0] == pytest.approx(float(after - before), abs=1e-4)


def test_a_perfect_autoencoder_costs_nothing(made, monkeypatch):
    monkeypatch.setattr(SAE, "load_from_disk", lambda *_, **__: Identity())
    arrays = train(parameters(perfect={"folder": "anywhere"}), made)
    assert arrays["nmse"][0] == pytest.approx(0, abs=1e-6)
    assert arrays["ce"][0] == pytest.approx(0, abs=1e-5)
    assert arrays["recovered"][0] == pytest.approx(1, abs=1e-4)


class Identity:
    """What `train` uses of an autoencoder of SAELens."""

    class cfg:
        d_in = d_sae = D_IN

        class metadata:
            hook_name = None

    def encode(self, x):
        return x

    def decode(self, f):
        return f


def test_without_autoencoders_nothing_is_run_and_the_figure_says_so(made):
    config = parameters()
    arrays = train(config, made)
    assert all(len(column) == 0 for column in arrays.values())
    evaluation = evaluate(config, arrays)
    assert evaluation.metrics == {"autoencoders": 0}
    (figure,) = EXPERIMENT.figures
    with use_style():
        panels = figure.draw(rounded(evaluation.figures)[figure.name]).axes
    assert all("not run" in [text.get_text() for text in panel.texts] for panel in panels)


def test_it_draws_ours_as_bars_and_others_as_lines(made):
    arrays = train(parameters(ours={"folder": made.folder / "ours"}), made)
    evaluation = evaluate(parameters(), arrays)
    assert evaluation.metrics["ours"]["nmse"] == arrays["nmse"][0]
    (figure,) = EXPERIMENT.figures
    with use_style():
        panels = figure.draw(rounded(evaluation.figures)[figure.name]).axes
    assert [len(panel.patches) for panel in panels] == [1, 1]
    lines = {float(line.get_ydata()[0]) for panel in panels for line in panel.lines}
    assert lines == {one.value for one in REFERENCES}


def test_a_hub_out_of_reach_is_one_clear_line(made, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made.folder / "empty"))
    release = {"release": "gpt2-small-resid-post-v5-32k", "id": "blocks.8.hook_resid_post"}
    with pytest.raises(UserError, match="the Hugging Face hub cannot be reached: go on") as error:
        train(parameters(v5_32k=release), made)
    assert "gpt2-small-resid-post-v5-32k blocks.8.hook_resid_post" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("release", "sae"), [("no-such-release", "a"), ("gpt2-small-resid-post-v5-32k", "blocks.99")]
)
def test_an_unknown_release_is_refused_before_anything_is_fetched(made, release, sae):
    with pytest.raises(UserError, match="SAELens has no ") as error:
        train(parameters(wrong={"release": release, "id": sae}), made)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_missing_or_damaged_is_refused(made):
    with pytest.raises(UserError, match="holds no autoencoder in the format of SAELens"):
        train(parameters(gone={"folder": made.folder / "gone"}), made)
    for content in (b"", b"no tensors"):
        (made.folder / "ours" / TENSORS).write_bytes(content)
        with pytest.raises(UserError, match="is damaged") as error:
            train(parameters(ours={"folder": made.folder / "ours"}), made)
        assert "\n" not in str(error.value)


def test_an_autoencoder_of_another_site_or_width_is_refused(made):
    ours = {"folder": made.folder / "ours"}
    elsewhere = parameters(ours=ours).model_copy(update={"site": "blocks.1.resid_post"})
    with pytest.raises(UserError, match=r"of blocks\.0\.hook_resid_post, not of blocks\.1"):
        train(elsewhere, made)
    wide = TopKConfig(d_in=D_IN + 1, d_sae=20, k=3, seed=0).create().export()
    save_sae(made.folder / "wide", wide, {})
    with pytest.raises(UserError, match="takes vectors of 9 numbers, and made up has 8"):
        train(parameters(wide={"folder": made.folder / "wide"}), made)


def test_names_are_those_that_a_metric_path_can_hold():
    with pytest.raises(ValueError, match="should match pattern"):
        parameters(**{"v5.32k": {"folder": "x"}})
    with pytest.raises(ValueError, match="autoencoders"):
        parameters(v5={"folder": "x", "release": "y"})
