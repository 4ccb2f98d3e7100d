"""The experiments that compare fronts, on scores whose truth is known."""

import importlib
import json

import numpy as np
import pytest
from made_up_scores import NEEDS, SITES, recovered, rows, table

from papers.gated_sae import ablations, alive, fronts, sites
from papers.gated_sae.jumprelu_front import METHODS as RIVALS
from papers.gated_sae.rescaled_and_shifted import METHODS as RESCALED
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

NAMES = (
    *("pareto", "shrinkage", "ablations", "rescaled_and_shifted", "sites", "jumprelu_front"),
    "alive",
)


def evaluated(name, scores):
    experiment = importlib.import_module(f"papers.gated_sae.{name}").EXPERIMENT
    config = experiment.config()
    arrays = experiment.train(config, Run(0, "cpu", {"scores": scores}))
    return experiment, experiment.evaluate(config, dict(arrays))


def metrics_of(name, scores):
    return json.loads(json.dumps(rounded(evaluated(name, scores)[1].metrics)))


def without(scores, **conditions):
    keep = np.ones(len(scores["name"]), dtype=bool)
    for key, value in conditions.items():
        keep &= scores[key] == value
    return {key: values[~keep] for key, values in scores.items()}


def changed(scores, column, value, **conditions):
    rows_ = np.ones(len(scores["name"]), dtype=bool)
    for key, wanted in conditions.items():
        rows_ &= scores[key] == wanted
    assert rows_.any()
    return {**scores, column: np.where(rows_, value, scores[column])}


@pytest.mark.parametrize("name", NAMES)
def test_figures_draw_from_what_json_keeps(name, scores, smoke_scores):
    for table_ in (scores, smoke_scores):
        experiment, evaluation = evaluated(name, table_)
        plots = json.loads(json.dumps(rounded(evaluation.figures)))
        assert set(plots) == {figure.name for figure in experiment.figures}
        with use_style():
            for figure in experiment.figures:
                assert figure.draw(plots[figure.name]).axes


@pytest.mark.parametrize("name", NAMES)
def test_without_any_scores_nothing_is_claimed(name, scores):
    nothing = {key: values[:0] for key, values in scores.items()}
    numbers = metrics_of(name, nothing)

    def measured(value):
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in measured(item)]
        if isinstance(value, list):
            return [leaf for item in value for leaf in measured(item)]
        return [] if value is None else [value]

    assert not any(measured(numbers)), numbers  # counts of zero are left


def test_a_baseline_that_needs_twice_the_l0_has_a_ratio_of_two(exact_scores):
    found = metrics_of("pareto", exact_scores)
    assert found["l0_ratio"]["quartiles"][1] == pytest.approx(2, abs=0.1)
    assert found["points"] == {"gated": [5] * 3, "baseline": [5] * 3}
    assert min(found["least_gap"]) > 0


def test_the_gap_is_that_of_the_true_curves(exact_scores):
    found = metrics_of("pareto", exact_scores)
    low, high = found["common"]["low"][0], found["common"]["high"][0]
    l0 = np.exp(np.linspace(np.log(low), np.log(high), 1000))
    truth = (recovered(l0) - recovered(l0 / NEEDS["baseline"])).mean()
    assert found["gap"]["mean"] == pytest.approx(truth, abs=0.005)


def test_a_missing_autoencoder_shows_in_the_points(scores):
    holed = changed(scores, "recovered", np.nan, method="gated", seed=1, penalty=0.4)
    assert metrics_of("pareto", holed)["points"]["gated"] == [5, 4, 5]


def test_a_missing_seed_is_null(scores):
    holed = without(scores, method="baseline", seed=1)
    found = metrics_of("pareto", holed)
    assert found["baseline"][1] is None
    assert found["least_gap"][1] is None
    assert found["l0_ratio"]["by_seed"][1] is None
    assert found["gap"]["mean"] is None


def test_fronts_that_share_no_l0_are_not_compared(scores):
    far = {**scores, "l0": np.where(scores["method"] == "baseline", 1e4, 1) * scores["l0"]}
    found = metrics_of("pareto", far)
    assert found["gap"]["mean"] is None
    assert found["gated"] == [None] * 3
    assert metrics_of("sites", far)["all"]["share_above"] is None
    assert metrics_of("sites", far)["all"]["compared"] == 0


def test_shrinkage_is_that_of_the_scores(scores):
    found = metrics_of("shrinkage", scores)
    assert found["gated"]["gamma"] == [1] * 15
    assert found["gated"]["error"] == [0] * 3
    falling = found["baseline"]["by_penalty"]["gamma"]
    assert found["baseline"]["by_penalty"]["penalty"] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert falling == sorted(falling, reverse=True)
    own = (scores["method"] == "baseline") & (scores["site"] == "mlp_post.0")
    assert np.mean(found["baseline"]["mean"]) == pytest.approx(
        scores["gamma"][own].mean(), abs=1e-4
    )


def test_a_bias_that_is_not_finite_is_not_left_out(scores):
    holed = changed(scores, "gamma", np.nan, method="gated", seed=2, penalty=1.6)
    found = metrics_of("shrinkage", holed)
    assert found["gated"]["gamma"].count(None) == 1
    assert found["gated"]["mean"][2] is None


def test_a_worse_ablation_has_no_lead_and_a_better_one_has(scores):
    found = metrics_of("ablations", scores)
    assert found["unfrozen"]["gap"]["high"] < 0
    assert found["unfrozen"]["lead"] < 0
    better = {
        **scores,
        "recovered": scores["recovered"] + 0.05 * (scores["method"] == "gated_untied"),
    }
    assert metrics_of("ablations", better)["untied"]["lead"] > 0


def test_nearness_to_the_unfrozen_front(exact_scores):
    found = metrics_of("ablations", exact_scores)["sae_lens"]
    assert len(found["to_gated"]["gap"]) == 1
    assert found["to_gated"]["gap"][0] < found["to_unfrozen"]["gap"][0] < 0
    assert found["to_unfrozen"]["greatest"][0] >= -found["to_unfrozen"]["gap"][0]


def test_the_path_is_in_order_and_comes_nearer(exact_scores):
    path = metrics_of("ablations", exact_scores)["sae_lens"]["path"]
    assert path["steps"] == ["gated", "unit_norm", "betas"]
    inner = np.array(path["gap"], dtype=float)[:, 1:-1]
    assert (np.diff(np.abs(inner), axis=0) < 0).all()


def test_the_path_has_the_penalties_of_all_its_steps(scores):
    holed = without(scores, method="sae_lens_betas", penalty=0.2)
    assert metrics_of("ablations", holed)["sae_lens"]["path"]["penalty"] == [0.1, 0.4, 0.8, 1.6]


def test_the_path_knows_every_step_that_is_trained():
    from papers.gated_sae.sae_lens_gated import variants
    from shared.saes.gated import GatedConfig
    from shared.training.engine import Job

    sae = GatedConfig(d_in=4, d_sae=8, l1=0.1, seed=0, frozen_aux=False)
    warmups = {"lr_warmup": 0.1, "penalty_warmup": 0.1}
    ours = Job(name="x", sae=sae, lr=1e-3, betas=(0.0, 0.999), ema=0.9, **warmups)
    trained = [name.removeprefix("sae_lens_") for name in variants(ours)]
    assert trained == [step for step in ablations.PATH if step in trained]


def test_most_of_the_gain_is_left_after_rescaling(scores):
    found = metrics_of("rescaled_and_shifted", scores)
    whole = np.array(found["gated"]) - np.array(found["baseline_equal"])
    parts = np.array(found["by_rescaling"]) + np.array(found["rest"])
    np.testing.assert_allclose(parts, whole, atol=2e-4)
    assert found["rest_interval"]["low"] > found["by_rescaling_interval"]["high"]
    assert set(found["points"]) == set(RESCALED)


def test_every_site_has_a_verdict(scores):
    found = metrics_of("sites", scores)
    assert found["sites"] == sorted(
        SITES, key=lambda site: (["mlp", "att", "res"].index(site[:3]), site)
    )
    assert found["all"]["above"] == [1] * 12
    assert found["all"]["share_above"] == 1
    assert found["all"]["not_above"] == 0
    assert found["all"]["compared"] == 12
    assert len(found["all"]["gamma"]["gated"]["gamma"]) == 60
    assert len(found["attn_out"]["gap"]) == 4


def test_a_front_below_at_one_l0_is_not_above(scores):
    sunk = changed(
        scores, "recovered", 0.3, method="gated", model="mini_gpt2", site="mlp_out.2", penalty=0.4
    )
    found = metrics_of("sites", sunk)
    assert found["panel"]["mlp_out_2"]["above"] == 0
    assert found["all"]["not_above"] == 1
    assert found["without_attention"]["not_above"] == 1
    assert found["attn_out"]["not_above"] == 0


def test_a_site_without_one_of_the_methods_leaves_the_verdict_open(scores):
    found = metrics_of("sites", without(scores, site="resid_post.0", method="gated"))
    assert found["all"]["compared"] == 11
    assert found["all"]["share_above"] is None
    assert found["resid_post"]["gated"][0] is None


def test_every_seed_of_a_site_counts(scores):
    again = {**scores, "seed": scores["seed"] + 1}
    both = {key: np.concatenate([scores[key], again[key]]) for key in scores}
    once = metrics_of("sites", scores)["l0_ratio"]
    assert metrics_of("sites", both)["l0_ratio"]["exact"] == 2 * once["exact"] > 0


def test_a_kind_of_site_that_is_absent_is_null(smoke_scores):
    found = metrics_of("sites", smoke_scores)
    assert found["sites"] == ["mlp_out.3", "resid_post.1"]
    assert found["attn_out"]["share_above"] is None
    assert found["attn_out"]["gamma"]["gated"]["gamma"] == []


def test_jumprelu_is_compared_by_the_loss_that_it_adds(exact_scores):
    found = metrics_of("jumprelu_front", exact_scores)
    assert max(found["to_gated"]["jumprelu"]) < min(found["to_gated"]["gated"])
    assert found["to_gated"]["gap"]["high"] < 0
    assert found["to_topk"]["lower_bound"] < 0
    assert found["frequent"]["topk"]["gap"]["low"] > 0
    own = (exact_scores["method"] == "topk") & (exact_scores["site"] == "mlp_post.0")
    assert found["frequent"]["greatest"]["topk"] == pytest.approx(
        exact_scores["frequent"][own].max(), rel=1e-3
    )
    assert set(found["points"]) == set(RIVALS)


def test_alive_is_listed_by_method_and_by_site(scores):
    found = metrics_of("alive", scores)
    assert found["method"]["topk"]["penalty"] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert found["method"]["topk"]["seeds"] == 3
    np.testing.assert_allclose(
        found["method"]["topk"]["alive"],
        [1 / (1 + penalty / 4) for penalty in found["method"]["topk"]["penalty"]],
        atol=1e-4,
    )
    assert set(found["site"]) == {site.replace(".", "_") for site in SITES}


def test_methods_that_share_a_panel_do_not_share_colour_and_dashes():
    for group in (*alive.GROUPS, (ablations.FULL, *ablations.ABLATIONS.values(), "sae_lens_gated")):
        looks = [(fronts.METHODS[name].colour, fronts.METHODS[name].line) for name in group]
        assert len(set(looks)) == len(looks)


def test_gaps_of_the_paper_are_between_rows_of_one_l0():
    for kind in sites.KINDS:
        for row in sites.PAPER_GAPS[kind]:
            assert 0 < row["gated"] - row["baseline"] < 0.1


def test_made_up_scores_have_a_row_for_everything():
    assert len(rows()) == len(table(rows())["name"])
