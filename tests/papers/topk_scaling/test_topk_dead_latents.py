import json

import numpy as np
import pytest

from papers.topk_scaling.dead_latents import EXPERIMENT, VARIANTS, Parameters
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

LATENTS, RECORDS = 200, 5
DEAD = {"both": 0.01, "aux": 0.02, "transposed": 0.2, "neither": 0.5}


def made(seeds=3):
    rows = [(variant, seed) for variant in VARIANTS for seed in range(seeds)]
    variant, seed = (np.array(column) for column in zip(*rows, strict=True))
    final = np.array([LATENTS * DEAD[v] for v, _ in rows])
    history = final[:, None] * np.array([0, 0.5, 1.2, 1, 1])
    return {
        "name": np.char.add(variant, seed.astype(str)),
        "group": np.full(len(rows), "dead"),
        "variant": variant,
        "seed": seed,
        "d_sae": np.full(len(rows), LATENTS),
        "nmse": 0.3 * (1 + final / LATENTS) + 0.001 * seed,
        "history_vectors": np.tile(np.linspace(1e5, 1e6, RECORDS), (len(rows), 1)),
        "history_dead": history,
    }


def evaluated(table):
    arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", {"autoencoders": table}))
    return EXPERIMENT.evaluate(Parameters(), dict(arrays))


@pytest.mark.parametrize("variant", VARIANTS)
def test_dead_latents_are_a_share(variant):
    found = evaluated(made()).metrics[variant]
    np.testing.assert_allclose(found["dead"], DEAD[variant])
    np.testing.assert_allclose(found["greatest"], 1.2 * DEAD[variant])


def test_errors_are_compared_with_those_of_the_whole_recipe():
    found = evaluated(made()).metrics
    assert found["both"]["relative"]["mean"] == 0
    expected = (1.5 * 0.3 + 0.001 * np.arange(3)) / (1.01 * 0.3 + 0.001 * np.arange(3)) - 1
    assert found["neither"]["relative"]["mean"] == pytest.approx(expected.mean())
    assert found["greatest"] == pytest.approx(0.6)


def test_a_variant_that_lacks_a_seed_is_not_compared():
    table = made()
    keep = ~((table["variant"] == "neither") & (table["seed"] == 1))
    found = evaluated({key: values[keep] for key, values in table.items()}).metrics
    assert np.isnan(found["neither"]["nmse"]).all()
    assert len(found["neither"]["dead"]) == 2
    assert np.isfinite(found["both"]["nmse"]).all()


def test_without_autoencoders_there_is_nothing():
    found = evaluated({key: values[:0] for key, values in made().items()}).metrics
    assert np.isnan(found["greatest"])
    assert len(found["both"]["dead"]) == 0


def test_the_figure_draws_from_what_json_keeps(tables):
    none = made()
    none["history_dead"] = 0 * none["history_dead"]
    for table in (made(), none, made(seeds=1), tables["autoencoders"]):
        plots = json.loads(json.dumps(rounded(evaluated(table).figures)))
        with use_style():
            figure = EXPERIMENT.figures[0].draw(plots["dead_latents"])
            figure.canvas.draw()
            assert len(figure.axes) == 2
