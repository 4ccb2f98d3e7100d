"""Pairs of features, one gated and one of the baseline, and a score that stands in for raters.

Section 4.3 has people label pairs of features at random, one of each kind, blinded. Here a feature
is scored by how well the current token and the one before it predict its activation on other text
(`shared.metrics.token_simulator`). That is a stand-in: it measures predictability from n-grams, not
what a person would make of a feature. It is blind by construction, since it is given tokens and
activations and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from pydantic import Field
from torch import Tensor

from papers.gated_sae.held_out import held_out_sites, load_autoencoder, site_of
from shared.errors import UserError
from shared.experiment import Arrays, Config, Run
from shared.language_models.load import load
from shared.metrics.token_simulator import correlations, predicted
from shared.saes.loading import AnyWeights

METHODS = ("baseline", "gated")
DECODER = ("W_dec", "b_dec", "apply_b_dec_to_input")


class Settings(Config):
    """Which features are compared, and on what."""

    l0: float = Field(default=20.0, gt=0)
    """Of the gated autoencoder, as near as there is; its baseline is that of the nearest L0."""
    pairs: int = Field(default=12, ge=1)
    """Pairs of features of every two autoencoders."""
    contexts: int = Field(default=64, ge=1)
    """Contexts of `select`, to fit on, and of `score`, to measure on."""
    least: int = Field(default=20, ge=1)
    """Times that a feature has to fire on the contexts of `select`."""


def stand_in_score(
    fit_tokens: UInt16[np.ndarray, "fit length"],
    fit: Float[np.ndarray, "fit length-1 units"],
    tokens: UInt16[np.ndarray, "contexts length"],
    activations: Float[np.ndarray, "contexts length-1 units"],
) -> Float[np.ndarray, " units"]:
    """Return the correlation of each unit with its prediction from two tokens, fitted elsewhere."""
    return correlations(predicted(fit_tokens, fit, tokens), activations)


def nearest_pair(scores: Arrays, model: str, site: str, seed: int, l0: float) -> tuple[str, str]:
    """Return the names of a baseline and a gated autoencoder of near L0, near `l0`."""
    same = (scores["model"] == model) & (scores["site"] == site) & (scores["seed"] == seed)

    def nearest(method: str, target: float) -> int:
        rows = np.flatnonzero(same & (scores["method"] == method) & (scores["l0"] > 0))
        return int(rows[np.argmin(np.abs(np.log(scores["l0"][rows] / target)))])

    gated = nearest("gated", l0)
    baseline = nearest("baseline", float(scores["l0"][gated]))
    return str(scores["name"][baseline]), str(scores["name"][gated])


def panels(scores: Arrays) -> list[tuple[str, str, int]]:
    """Return model, site and seed wherever there are autoencoders of both kinds that fire."""
    places = [
        {
            (str(scores["model"][row]), str(scores["site"][row]), int(scores["seed"][row]))
            for row in np.flatnonzero((scores["method"] == method) & (scores["l0"] > 0))
        }
        for method in METHODS
    ]
    return sorted(set.intersection(*places))


def only(weights: AnyWeights, features: Int[np.ndarray, " features"]) -> AnyWeights:
    """Return the encoder of some features; what decodes them is left as it is."""
    kept = torch.from_numpy(features)
    encoder = {
        key: value[..., kept] for key, value in weights._asdict().items() if key not in DECODER
    }
    return weights._replace(**encoder)


def score_features(
    names: Sequence[str],
    texts: Sequence[tuple[UInt16[np.ndarray, "contexts length"], Float[Tensor, "contexts _ d"]]],
    settings: Settings,
    random: np.random.Generator,
    run: Run,
) -> Float[np.ndarray, "pairs 2"]:
    """Score features drawn at random of two autoencoders, as pairs.

    Args:
        names: of the two.
        texts: tokens and activations to fit on, and to measure on.

    Returns:
        As many pairs as `settings` say, or as the autoencoder with fewer features that fire often
        enough has.
    """
    (fit_tokens, fit_x), (tokens, x) = texts
    weights = [load_autoencoder(run, name) for name in names]
    often = [
        np.flatnonzero((one.encode(fit_x.flatten(0, 1)) > 0).sum(0).cpu().numpy() >= settings.least)
        for one in weights
    ]
    count = min(settings.pairs, *map(len, often))
    found = []
    for one, candidates in zip(weights, often, strict=True):
        drawn = only(one, random.choice(candidates, count, replace=False))
        fit, measured = (drawn.encode(each).cpu().numpy() for each in (fit_x, x))
        found.append(stand_in_score(fit_tokens, fit, tokens, measured))
    return np.stack(found, axis=1)


@torch.inference_mode()
def scored_pairs(settings: Settings, run: Run) -> Arrays:
    """Score pairs of features of every model, site and seed that has both kinds.

    Returns:
        Of each pair its model, site, seed and number, and the scores of both features.

    Raises:
        UserError: there is no such site.
    """
    scores = run.inputs["scores"]
    everywhere = panels(scores)
    if not everywhere:
        raise UserError("scores hold no site with both gated and baseline autoencoders that fire")
    rows: list[tuple[str, str, int, int, float, float]] = []
    for model_name in sorted({model for model, _, _ in everywhere}):
        model = load(model_name, run.device)
        own = [(site, seed) for name, site, seed in everywhere if name == model_name]
        sites = sorted({site for site, _ in own})
        read = [
            held_out_sites(run, model, [site_of(s) for s in sites], split, settings.contexts)
            for split in ("select", "score")
        ]
        for site, seed in own:
            # By name, so that no panel changes the draws of another.
            random = np.random.default_rng([run.seed, *f"{model_name} {site} {seed}".encode()])
            names = nearest_pair(scores, model_name, site, seed, settings.l0)
            texts = [(tokens, found[site_of(site)]) for tokens, found in read]
            pairs = score_features(names, texts, settings, random, run)
            rows += [
                (model_name, site, seed, number, float(baseline), float(gated))
                for number, (baseline, gated) in enumerate(pairs)
            ]
    if not rows:
        raise UserError(
            f"no feature fires {settings.least} times on {settings.contexts} contexts: "
            f"lower stand_in.least or raise stand_in.contexts"
        )
    columns = ("model", "site", "seed", "number", *METHODS)
    return {
        key: np.array(values) for key, values in zip(columns, zip(*rows, strict=True), strict=True)
    }
