from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from papers.topk_scaling import ablation_sparsity
from papers.topk_scaling.ablation_sparsity import (
    EXPERIMENT,
    GAUSSIAN,
    HORIZONS,
    READINGS,
    Ablations,
    Parameters,
    T,
    channel_directions,
    effect_sparsity,
    effects,
    evaluate,
    norms,
    of_directions,
    of_latents,
    random_directions,
    scene,
    train,
)
from shared.activations.sites import Site, read, replaced_logits
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.experiment import Run
from shared.figures.style import use_style
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.saes.preprocessing import Normalised, for_activations, normalised, restored
from shared.saes.topk import TopKConfig, TopKWeights
from shared.saes.weights import save_sae
from shared.stages import rounded

D_IN, LENGTH, VOCABULARY = 8, 24, 31
SITE = Site("resid_post", 0)
CONFIG = Parameters(model="made up", contexts=5, ablations=12, batch=4)


def make_model(layers=2):
    shape = {"layers": layers, "d_model": D_IN, "d_mlp": 16, "heads": 2, "activation": "gelu_new"}
    config = ModelConfig(**shape, tied=True, steps=1, seed=0)
    network = create(config, VOCABULARY, LENGTH).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(8 if weight.dim() > 1 else 1)
    return LanguageModel("made up", network, Tokenizer(WordLevel({"a": 0}, unk_token="a")))


def exported(n, k, seed=0):
    return for_activations(TopKConfig(d_in=D_IN, d_sae=n, k=k, seed=seed).create().export())


def autoencoder(n=20, k=3, seed=0):
    return Normalised(TopKWeights.from_export(exported(n, k, seed)))


def text(contexts=30):
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (contexts, LENGTH))
    tokens[:, 0] = 0
    return tokens.astype(np.uint16)


def rng():
    return np.random.default_rng(3)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def shown(model):
    return scene(model, SITE, text(7), rng(), batch=3)


def sparsity(difference):
    found = norms(difference[None] if difference.ndim == 2 else difference)
    return effect_sparsity(*(part.numpy() for part in found), difference.shape[-1])


def test_one_affected_logit_is_the_sparsest_effect():
    difference = torch.zeros(T, 101)
    difference[3, 7] = -2.5
    assert sparsity(difference) == pytest.approx(1 / (101 * T))


def test_an_effect_of_the_same_size_everywhere_is_the_densest():
    signs = torch.ones(4, 101)
    signs[:, ::2] = -1
    signs[:, 0] = 0  # the median
    assert sparsity(7 * signs) == pytest.approx(100 / 101)


def test_a_gaussian_effect_has_two_over_pi():
    drawn = torch.from_numpy(rng().standard_normal((50, T, 2001)))
    assert sparsity(drawn).mean() == pytest.approx(GAUSSIAN, abs=1e-3)
    assert sparsity(drawn).std() < 0.01


def test_tokens_count_together_not_one_by_one():
    difference = torch.zeros(2, 101)
    difference[0, 5] = 3.0
    difference[1, 6:10] = 1.0
    assert sparsity(difference) == pytest.approx((3 + 4) ** 2 / (9 + 4) / (2 * 101))


def test_neither_scale_nor_a_shift_of_all_logits_matters():
    drawn = torch.from_numpy(rng().standard_normal((6, T, 101)))
    shift = torch.arange(T, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(sparsity(5 * drawn + shift), sparsity(drawn), rtol=1e-10)


def test_the_median_is_numpys():
    drawn = rng().standard_normal((6, T, 101))
    centred = drawn - np.median(drawn, axis=-1, keepdims=True)
    found = norms(torch.from_numpy(drawn))
    np.testing.assert_allclose(found.absolute, np.abs(centred).sum(-1))
    np.testing.assert_allclose(found.squared, (centred**2).sum(-1))


def test_no_effect_has_no_sparsity():
    assert np.isnan(sparsity(torch.zeros(T, 101)))


def test_an_ablated_latent_takes_out_its_own_part_of_the_reconstruction(shown):
    sae, x = autoencoder(), shown.x
    ablations = of_latents(sae, x, 1000, rng())
    inputs, statistics = normalised(x)
    f = sae.sae.encode(inputs)
    whole = restored(sae.sae.decode(f), statistics)
    pairs = torch.nonzero(f[:, 0])
    assert len(ablations.context) == len(pairs)  # all of them
    for row, latent in pairs.tolist():
        without = f.clone()
        without[..., latent] = 0
        expected = (whole - restored(sae.sae.decode(without), statistics))[row]
        apart = (ablations.removed - expected).abs().amax((1, 2))[ablations.context == row]
        assert apart.min() < 1e-5


def test_pairs_of_token_and_latent_are_drawn_evenly_and_once(shown):
    sae = autoencoder()
    active = (sae.encode(shown.x[:, 0]) > 0).sum(1).numpy()
    counts, half = np.zeros(len(active)), int(active.sum()) // 2
    for seed in range(200):
        drawn = of_latents(sae, shown.x, half, np.random.default_rng(seed))
        assert len(torch.unique(drawn.removed, dim=0)) == half
        counts += np.bincount(drawn.context, minlength=len(counts))
    np.testing.assert_allclose(counts / counts.sum(), active / active.sum(), atol=0.02)


def test_a_direction_is_taken_out_whole_at_every_token(shown):
    for directions in (channel_directions, random_directions):
        chosen = directions(40, D_IN, rng())
        torch.testing.assert_close(chosen.norm(dim=1), torch.ones(40))
        found = of_directions(shown.x, chosen, rng())
        left = shown.x[found.context] - found.removed
        component = torch.einsum("atd,ad->at", left, chosen)
        torch.testing.assert_close(component, torch.zeros(40, T), atol=1e-5, rtol=0)
    axes = channel_directions(40, D_IN, rng())
    assert ((axes == 1).sum(1) == 1).all()


def test_the_two_readings_take_out_the_same_at_the_token(shown):
    ablations = of_latents(autoencoder(), shown.x, 10, rng())
    assert ablations.read_as("window") is ablations
    token = ablations.read_as("token")
    assert torch.equal(token.context, ablations.context)
    assert torch.equal(token.removed[:, 0], ablations.removed[:, 0])
    assert token.removed.shape == ablations.removed.shape
    assert (token.removed[:, 1:] == 0).all()
    assert (ablations.removed[:, 1:] != 0).any()


@pytest.mark.parametrize("reading", READINGS)
def test_effects_are_those_of_the_whole_model(model, shown, reading):
    ablations = of_latents(autoencoder(), shown.x, 10, rng()).read_as(reading)
    found = effects(shown, ablations, batch=4)
    tokens = torch.from_numpy(text(7).astype(np.int64))
    for number, (context, removed) in enumerate(zip(*ablations, strict=True)):
        at = shown.at[context]
        row = tokens[context][None]

        def without(x, at=at, removed=removed):
            changed = x.clone()
            changed[0, at] -= removed
            return changed

        difference = replaced_logits(model, row, SITE, without) - model.logits(row)
        expected = norms(difference[0, at])
        assert torch.allclose(found.absolute[number], expected.absolute, atol=1e-3)
        assert torch.allclose(found.squared[number], expected.squared, atol=1e-3)
        assert (difference[0, : at[0]] == 0).all()


def test_taking_nothing_out_has_no_effect(shown):
    nothing = Ablations(torch.arange(3), torch.zeros(3, T, D_IN))
    assert effects(shown, nothing, batch=3).absolute.max() < 1e-4
    none = Ablations(torch.zeros(0, dtype=torch.int64), torch.zeros(0, T, D_IN))
    assert effects(shown, none, batch=3).absolute.shape == (0, T)


def test_after_the_last_layer_only_the_token_itself_is_affected():
    last = scene(make_model(), Site("resid_post", 1), text(5), rng(), batch=5)
    ablations = of_latents(autoencoder(), last.x, 9, rng()).read_as("token")
    found = effects(last, ablations, batch=4).absolute
    assert (found[:, 0] > 0.01).all()
    assert found[:, 1:].max() < 1e-4


def test_tokens_leave_room_for_all_that_are_affected(model):
    seen = scene(model, SITE, text(200), rng(), batch=64).at
    assert int(seen.min()) == 1
    assert int(seen.max()) == LENGTH - 1
    assert (seen.diff(dim=1) == 1).all()
    x = read(model, torch.from_numpy(text(2).astype(np.int64)), [SITE])[SITE]
    some = scene(model, SITE, text(2), rng(), batch=1)
    torch.testing.assert_close(some.x[:, 3], x[torch.arange(2), some.at[:, 3]])


def test_contexts_that_are_too_short_are_refused(model):
    with pytest.raises(UserError, match="contexts have 16 tokens, and ablation_sparsity needs 17"):
        scene(model, SITE, text(2)[:, :T], rng(), batch=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    """Three seeds: k of 1, 2 and 4 at n = 20, and n of 10, 20 and 40 at k = 2."""
    folder = tmp_path_factory.mktemp("ablation") / "smoke"
    planned = [("fronts", 20, k) for k in (1, 2, 4)] + [("widths", n, 2) for n in (10, 20, 40)]
    table = []
    for seed in range(3):
        for group, n, k in planned:
            name = f"{group}_{n}_{k}_s{seed}"
            save_sae(folder / "autoencoders" / name, exported(n, k, seed), {})
            table.append((name, group, "topk", str(SITE), n, float(k), seed))
        table.append((f"relu_s{seed}", "fronts", "relu", str(SITE), 20, 0.1, seed))
    columns = ("name", "group", "method", "site", "d_sae", "penalty", "seed")
    columns = {
        key: np.array(values) for key, values in zip(columns, zip(*table, strict=True), strict=True)
    }
    none = np.zeros((30, LENGTH))
    contexts = Contexts(text(), none.astype(np.uint8), none.astype(np.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_sparsity, "load", lambda name, device: model)
        patch.setattr(ablation_sparsity, "load_split", lambda folder, split: contexts)
        yield Run(0, "cpu", inputs={"autoencoders": columns}, folder=folder)


@pytest.fixture(scope="module")
def arrays(made):
    return train(CONFIG, made)


def test_every_autoencoder_and_control_has_a_row_for_each_reading(arrays):
    kinds, counts = np.unique(arrays["kind"], return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {
        "channels": 6,
        "fronts": 18,
        "gaussian": 3,
        "random": 6,
        "widths": 18,
    }
    assert arrays["absolute"].shape == (51, 12, T)
    measured = (~np.isnan(arrays["absolute"]).any(2)).sum(1)
    few = (arrays["kind"] == "fronts") & (arrays["k"] == 1)  # five tokens, so five pairs at most
    assert (measured[few] <= 5).all()
    assert (measured[arrays["kind"] == "channels"] == 12).all()
    assert (measured[arrays["kind"] == "gaussian"] == 1).all()
    token, window = (arrays["absolute"][arrays["reading"] == reading] for reading in READINGS)
    np.testing.assert_allclose(token[..., 0], window[..., 0], rtol=1e-3)


def test_the_same_run_has_the_same_result(made, arrays):
    again = train(CONFIG, made)
    assert all(np.array_equal(arrays[key], again[key], equal_nan=True) for key in ("absolute", "k"))
    other = train(CONFIG, replace(made, seed=1))
    assert not np.array_equal(arrays["absolute"], other["absolute"], equal_nan=True)


@pytest.mark.parametrize("reading", READINGS)
def test_it_reports_by_k_by_n_and_by_horizon(arrays, reading):
    everything = rounded(evaluate(CONFIG, arrays).metrics)
    metrics = everything[reading]
    assert metrics["by_k"]["k"] == [1, 2, 4]
    assert metrics["by_n"]["n"] == [10, 20, 40]
    assert metrics["smallest_n"] == metrics["by_n"]["by_seed"][0]
    assert metrics["largest_n"] == metrics["by_n"]["by_seed"][2]
    assert metrics["smallest_k"] == metrics["by_k"]["by_seed"][0]
    assert metrics["largest_k"] == metrics["by_k"]["by_seed"][1]  # 4 is over a third of d_in
    values = effect_sparsity(arrays["absolute"], arrays["squared"], VOCABULARY)
    row = (arrays["kind"] == "widths") & (arrays["n"] == 40) & (arrays["seed"] == 2)
    value = np.nanmean(values[row & (arrays["reading"] == reading)])
    assert metrics["by_n"]["by_seed"][2][2] == pytest.approx(value, rel=1e-3)
    assert metrics["horizons"]["T16"]["channels"] == metrics["channels"]
    assert metrics["horizons"]["T1"] == everything["token"]["horizons"]["T1"]
    assert metrics["horizons"]["T4"]["latents"] != metrics["latents"]
    assert all(0 < value <= 1 for value in metrics["latents"] + metrics["random"])
    assert everything["gaussian"] == pytest.approx([GAUSSIAN] * 3, abs=0.05)


def test_it_draws(arrays):
    with use_style():
        (figure,) = EXPERIMENT.figures
        panels = figure.draw(rounded(evaluate(CONFIG, arrays).figures)[figure.name]).axes
    assert len(panels) == 6
    for panel in (panels[2], panels[5]):
        assert [len(line.get_xdata()) for line in panel.lines[:3]] == [len(HORIZONS)] * 3


def test_a_dead_autoencoder_gives_missing_numbers_only(made, arrays):
    dead = {key: value.copy() for key, value in arrays.items()}
    dead["absolute"][arrays["kind"] == "fronts"] = np.nan
    evaluation = evaluate(CONFIG, dead)
    assert rounded(evaluation.metrics)["window"]["latents"] == [None] * 3
    with use_style():
        EXPERIMENT.figures[0].draw(rounded(evaluation.figures)["ablation_sparsity"])


def test_groups_may_be_missing(made):
    table = made.inputs["autoencoders"]
    one = {key: column[[1]] for key, column in table.items()}
    evaluation = evaluate(CONFIG, train(CONFIG, replace(made, inputs={"autoencoders": one})))
    metrics = rounded(evaluation.metrics)["token"]
    assert metrics["by_n"]["by_seed"] == []
    assert metrics["largest_k"] is None
    with use_style():
        EXPERIMENT.figures[0].draw(rounded(evaluation.figures)["ablation_sparsity"])


def test_without_topk_at_one_residual_stream_it_says_so(made):
    table = made.inputs["autoencoders"]

    def changed(**columns):
        return replace(made, inputs={"autoencoders": table | columns})

    several = np.where(table["seed"] == 0, "blocks.1.resid_post", table["site"])
    for method, site, expected in (
        ("relu", table["site"], "are at no site"),
        ("topk", several, r"are at blocks\.0\.resid_post, blocks\.1\.resid_post"),
        ("topk", np.full(len(several), "blocks.0.mlp_out"), r"not from blocks\.0\.mlp_out"),
    ):
        run = changed(method=np.full(len(several), method), site=site)
        with pytest.raises(UserError, match=expected):
            train(CONFIG, run)
