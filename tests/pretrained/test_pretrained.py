"""The parts of `nox -s pretrained`, on a small untrained model and made-up scores."""

import numpy as np
import pytest
import torch
import yaml

from pretrained import smollm2
from pretrained.autoencoders import Parameters, plan, score, train_all
from pretrained.examples import draw_examples
from shared.activations.sites import Site
from shared.activations.stream import ActivationStream
from shared.claims.schema import load_claims
from shared.corpus.shards import pack
from shared.errors import UserError
from shared.features.dictionary import Dictionary, open_dictionary
from shared.features.examples import Panels, portraits
from shared.features.known import density
from shared.files import ROOT
from shared.language_models.load import load
from shared.metrics.reconstruction import Reconstruction
from shared.saes.loading import load_sae
from shared.saes.preprocessing import Normalised, normalised

CONFIG = Parameters(
    model="llama",
    site="blocks.0.resid_post",
    text="made up",
    length=12,
    batch=32,
    steps=9,
    latents=40,
    seeds=2,
    lr=0.01,
    ema=0.5,
    methods={"topk": (4,), "gated": (0.01,), "baseline": (0.01, 0.05)},
    resample_inputs=64,
    counted=6,
    predicted=2,
    examined=4,
)


def text(contexts, seed):
    rng = np.random.default_rng(seed)
    return pack([rng.integers(1, 257, contexts * 11).tolist()], [0], 12)


@pytest.fixture
def model(llama_folder):
    return load(str(llama_folder))


@pytest.fixture
def trained(model, tmp_path):
    planned = plan(CONFIG, model.d_model)
    checkpoint = train_all(CONFIG, planned, model, text(40, 0), tmp_path / "saes")
    return planned, checkpoint, tmp_path / "saes"


def test_every_method_penalty_and_seed_is_one_job():
    planned = plan(CONFIG, 32)
    assert len(planned) == 2 * 4
    assert len({one.job.name for one in planned}) == 8
    assert {(one.method, one.penalty, one.job.sae.seed) for one in planned} == {
        (method, penalty, seed)
        for method, penalties in CONFIG.methods.items()
        for penalty in penalties
        for seed in (0, 1)
    }
    for one in planned:
        assert one.job.sae.d_in == 32
        assert (one.job.resampling is None) == (one.method == "topk")


def test_a_run_that_has_ended_writes_the_same_again_and_another_is_refused(model, trained):
    planned, checkpoint, folder = trained
    assert checkpoint.path.exists()
    before = {one.job.name: load_sae(folder / one.job.name) for one in planned}
    train_all(CONFIG, planned, model, text(40, 0), folder)
    for name, sae in before.items():
        again = load_sae(folder / name)
        assert all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(sae.sae, again.sae, strict=True)
            if isinstance(ours, torch.Tensor)
        )
    with pytest.raises(UserError, match="a run with other parameters"):
        train_all(CONFIG, planned, model, text(40, 1), folder)


def test_autoencoders_are_trained_on_normalised_activations(model, trained):
    planned, _, folder = trained
    (step,) = [one for one in planned if one.job.name == "topk_0_s1"]
    found = open_dictionary(str(folder / step.job.name), model=str(folder.parent / "llama"))
    assert isinstance(found.sae, Normalised)
    assert str(found.site) == "blocks.0.resid_post"
    site = Site.parse(CONFIG.site)
    stream = ActivationStream(model, text(40, 0), (site,), 32, 0)
    x = next(stream.batches())[site]
    spread = normalised(x)[0]
    error = (found.sae.sae.decode(found.sae.encode(x)) - spread).square().sum()
    assert error < (spread - spread.mean(0)).square().sum()


def test_scores_are_those_by_hand(model, trained):
    planned, _, folder = trained
    held_out = text(8, 2)
    table, effect = score(CONFIG, planned, model, held_out, folder)
    assert table["name"].tolist() == [one.job.name for one in planned]
    assert all(len(column) == len(planned) for column in table.values())
    site = Site.parse(CONFIG.site)
    for number, one in enumerate(planned):
        name = str(folder / one.job.name)
        dictionary = Dictionary(name, model, site, load_sae(folder / one.job.name))
        tokens = torch.from_numpy(held_out.tokens[: CONFIG.counted].astype(np.int64))
        x = dictionary.activations(tokens)[:, 1:].flatten(0, 1)
        f = dictionary.encode(x)
        inputs = normalised(x)[0]
        by_hand = Reconstruction()
        by_hand.update(inputs, dictionary.sae.sae.decode(f))
        assert table["fvu"][number] == pytest.approx(by_hand.result().fvu, rel=1e-3)
        assert table["gamma"][number] == pytest.approx(by_hand.result().gamma, rel=1e-3)
        assert table["l0"][number] == pytest.approx(float((f > 0).sum() / len(x)))
        found = density(dictionary)
        torch.testing.assert_close(found, (f > 0).float().mean(0), atol=1e-4, rtol=1e-3)
    assert effect.loss == pytest.approx(
        float(
            torch.nn.functional.cross_entropy(
                model.logits(torch.from_numpy(held_out.tokens[:2].astype(np.int64)))[
                    :, :-1
                ].flatten(0, 1),
                torch.from_numpy(held_out.tokens[:2, 1:].astype(np.int64)).flatten(),
            )
        ),
        rel=1e-4,
    )


def made_up_table(gain):
    rows = [
        (method, seed, l0)
        for seed in range(3)
        for method in ("topk", "gated", "baseline")
        for l0 in ((32.0,) if method == "topk" else (10.0, 40.0, 160.0))
    ]
    method, seed, l0 = (np.array(column) for column in zip(*rows, strict=True))
    better = gain * (method == "gated")
    return {
        "method": method,
        "seed": seed,
        "l0": l0,
        "recovered": 0.5 + 0.1 * np.log10(l0) + better + 0.001 * seed,
        "fvu": 0.6 - 0.1 * np.log10(l0) - better,
        "gamma": np.where(method == "gated", 1.0, 0.9) + 0.001 * seed,
    }


def test_a_gain_at_matched_l0_is_found_for_every_seed():
    table = made_up_table(0.05)
    found = smollm2.front_metrics(table)
    assert found["recovered"]["gap"]["mean"] == pytest.approx(0.05)
    assert found["fvu"]["gap"]["mean"] == pytest.approx(-0.05)
    assert found["common"]["span"] == pytest.approx([16, 16, 16])
    assert smollm2.by_seed(table, "gated", "gamma") == pytest.approx([1.0, 1.001, 1.002])


def test_fronts_are_drawn_with_what_they_show():
    numbers = smollm2.front_numbers(made_up_table(0.05))
    figure = smollm2.draw_fronts(numbers)
    recovered, _, gaps = figure.axes
    assert [text.get_text() for text in recovered.get_legend().get_texts()] == [
        *("Gated", "Baseline", "TopK")
    ]
    assert len(gaps.lines) == 3 + 1
    np.testing.assert_allclose(gaps.lines[0].get_ydata(), 5)


def test_examples_are_shaded_where_the_feature_is_active(model, trained):
    _, _, folder = trained
    dictionary = Dictionary("x", model, Site.parse(CONFIG.site), load_sae(folder / "topk_0_s0"))
    chosen = [0, 3]
    found = portraits(dictionary, text(8, 2), chosen, Panels(top=2, before=3, after=1))
    figure = draw_examples(found)
    figure.set_dpi(600)  # at which hardly any of a width is rounding
    panel = figure.axes[0]
    shaded = sum(z > 0 for one in found for example in one.top for z in example.activations)
    assert shaded == len(panel.patches) > 0
    assert any(text.get_text().startswith("feature 3, density") for text in panel.texts)
    title = panel.texts[0]
    width = title.get_window_extent().width / len(title.get_text())
    assert width == pytest.approx(figure.bbox.width / panel.get_xlim()[1], rel=0.05)


def test_features_to_show_are_neither_common_nor_rare(model, trained, monkeypatch):
    planned, _, folder = trained
    score(CONFIG, planned, model, text(8, 2), folder)
    name = str(folder / "topk_0_s0")
    dictionary = Dictionary(name, model, Site.parse(CONFIG.site), load_sae(folder / "topk_0_s0"))
    monkeypatch.setattr(smollm2, "COMMONEST", 0.3)
    found = smollm2.features_to_show(dictionary, 5)
    assert found == sorted(set(found))
    assert found == smollm2.features_to_show(dictionary, 5)
    dense = density(dictionary)
    assert all(smollm2.RAREST < dense[feature] < 0.3 for feature in found)


def test_the_profile_is_valid_and_claims_name_what_the_script_measures():
    params = yaml.safe_load((ROOT / "pretrained" / "params.yaml").read_text())
    config = Parameters(**params[params["profile"]])
    assert config.seeds >= 3
    assert config.batch * config.steps >= 1_000_000
    assert {claim.figure for claim in load_claims("pretrained")} <= {"fronts", "features"}
