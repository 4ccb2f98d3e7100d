"""How often features fire: density histograms, dead and ultralow features, and what they are like.

Sections "Feature density histograms" (appendix) and "Global Analysis" (dead and ultralow counts of
A/1): log10 density for every width and every λ, and a dictionary's features by log density, encoder
bias, and dot product of encoder and decoder direction. A density is a share of the tokens of both
splits of the analysis, so that nothing below one over their number can be told from dead.

From a comment that the paper hosts (Nanda): cosine of encoder and decoder, and the number of
neurons that a decoder column is spread over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field

from papers.towards_monosemanticity import dictionaries
from papers.towards_monosemanticity.firings import SPLITS, Split, load_split
from papers.towards_monosemanticity.series import by_penalty, by_width, described
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import FULL_WIDTH, PALETTE, SEQUENTIAL, panel_labels, subplots
from shared.metrics.sparsity import Firings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FOCUS = "a1"
EDGES = np.linspace(-7, 0, 57)  # of log10 density
TOO_DENSE = 0.01  # the paper: many features above it mean that λ is too low
SPREAD = 0.9  # share of a decoder column's squared length that its neurons are counted for
FEW = 10  # neurons up to which a column is called sparse, more than one


class Parameters(Config):
    """What a profile sets."""

    ultralow: float = Field(1e-5, gt=0, lt=1)
    """Density below which a feature that fires is ultralow; the paper's is 1e-6, of 100M tokens."""


def observations(splits: Sequence[Split]) -> int:
    """Return the number of tokens that features can fire on: all but those of position 0."""
    return sum(split.tokens[:, 1:].size for split in splits)


def counted(splits: Sequence[Split], name: str) -> Firings:
    """Return how often, and how much, each feature of a dictionary fires in several splits."""
    found = [split.features(name) for split in splits]
    counts = sum(np.diff(features.indptr).astype(np.int64) for features in found)
    sums = sum(np.asarray(features.sum(0, dtype=np.float64)).ravel() for features in found)
    return Firings(np.asarray(counts), np.asarray(sums), observations(splits))


def log_densities(firings: Firings) -> Float[np.ndarray, " fired"]:
    """Return log10 of the density of the features that fire at all."""
    return np.log10(firings.density[firings.counts > 0])


def neurons_of(
    W_dec: Float[np.ndarray, "d_sae d_in"], share: float = SPREAD
) -> Int[np.ndarray, " d_sae"]:
    """Return the fewest neurons that hold `share` of the squared length of each decoder vector."""
    squares = -np.sort(-(W_dec.astype(np.float64) ** 2), axis=1)
    held = squares.cumsum(1) / np.maximum(squares.sum(1, keepdims=True), 1e-300)
    return (held < share - 1e-12).sum(1) + 1


class Groups(NamedTuple):
    """Two groups that a mixture of two Gaussians makes of some points.

    group: 0 or 1 for every point; 0 has the lower mean in the first dimension.
    overlap: expected share of points in the wrong group, the mean of the lower of the two posterior
        probabilities; from 0 (groups apart) to 1/2.
    ashman: √2 |μ1 − μ2| / √(σ1² + σ2²) in the first dimension; two normal distributions are
        bimodal where it exceeds 2 (Ashman, Bird and Zepf 1994).
    """

    group: Int[np.ndarray, " points"]
    overlap: float
    ashman: float


def two_groups(points: Float[np.ndarray, "points dimensions"], seed: int) -> Groups:
    """Fit the mixture, to standardised dimensions."""
    from sklearn.mixture import GaussianMixture

    scaled = (points - points.mean(0)) / np.maximum(points.std(0), 1e-12)
    mixture = GaussianMixture(2, n_init=5, random_state=seed, reg_covar=1e-4).fit(scaled)
    order = mixture.means_[:, 0].argsort()
    posterior = mixture.predict_proba(scaled)[:, order]
    apart = np.ptp(mixture.means_[:, 0])
    ashman = np.sqrt(2) * apart / np.sqrt(mixture.covariances_[:, 0, 0].sum())
    return Groups(posterior.argmax(1), float(posterior.min(1).mean()), float(ashman))


def run(config: Parameters, run: Run) -> Arrays:
    """Count firings, and compare encoder and decoder, of every dictionary."""
    splits = [load_split(run.folder, split) for split in SPLITS]
    settings = dictionaries.settings(run.folder)
    arrays: Arrays = described(settings) | {"vectors": np.array(observations(splits))}
    for name in settings:
        weights = dictionaries.load_dictionary(run.folder, name)
        encoder, decoder = weights.W_enc.T.float().cpu(), weights.W_dec.float().cpu()
        firings = counted(splits, name)
        arrays[f"{name}_counts"], arrays[f"{name}_sums"] = firings.counts, firings.sums
        arrays[f"{name}_bias"] = weights.b_enc.cpu().numpy()
        arrays[f"{name}_dot"] = (encoder * decoder).sum(1).numpy()
        arrays[f"{name}_cosine"] = torch.cosine_similarity(encoder, decoder).numpy()
        arrays[f"{name}_neurons"] = neurons_of(decoder.numpy())
    firings = counted(splits, FOCUS)
    fired = firings.counts > 0
    shape = [arrays[f"{FOCUS}_{key}"][fired] for key in ("bias", "dot")]
    points = np.stack([log_densities(firings), *shape], axis=1).astype(float)
    alone, together = two_groups(points[:, :1], run.seed), two_groups(points, run.seed)
    return arrays | {
        "points": points,
        "group": together.group,
        "overlap": np.array([alone.overlap, together.overlap]),
        "ashman": np.array(alone.ashman),
    }


def _firings(arrays: Arrays, name: str) -> Firings:
    return Firings(arrays[f"{name}_counts"], arrays[f"{name}_sums"], int(arrays["vectors"]))


def _of_dictionary(config: Parameters, arrays: Arrays, name: str) -> dict[str, float]:
    """Return the measures of one dictionary."""
    firings = _firings(arrays, name)
    neurons = arrays[f"{name}_neurons"]
    return {
        "l0": firings.l0,
        "dead": firings.dead,
        "ultralow": firings.ultralow(config.ultralow),
        "too_dense": float((firings.density > TOO_DENSE).mean()),
        "median_log_density": float(np.median(log_densities(firings))),
        "enc_dec_cosine": float(np.median(arrays[f"{name}_cosine"])),
        "one_neuron": float((neurons == 1).mean()),
        "few_neurons": float(((neurons > 1) & (neurons <= FEW)).mean()),
    }


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Summarise each dictionary, and each series of them."""
    names = [str(name) for name in arrays["name"]]
    measured = {name: _of_dictionary(config, arrays, name) for name in names}

    def series(places: Int[np.ndarray, " places"]) -> dict[str, Any]:
        chosen = [names[place] for place in places]
        keys = ("l0", "median_log_density", "too_dense", "dead")
        return {
            "dictionaries": chosen,
            "d_sae": arrays["d_sae"][places],
            "l1": arrays["l1"][places],
            **{key: [measured[name][key] for name in chosen] for key in keys},
        }

    sweeps = by_penalty(arrays)
    metrics = {
        "tokens": int(arrays["vectors"]),
        "lowest_density": 1 / int(arrays["vectors"]),
        "dictionary": measured,
        "width": series(by_width(arrays)),
        "penalty": {key: series(places) for key, places in sweeps.items()},
        "ashman": float(arrays["ashman"]),
        "overlap_density": arrays["overlap"][0],
        "overlap_all": arrays["overlap"][1],
    }
    panels = {"width": by_width(arrays), **sweeps}
    shown = {
        title: [
            {
                "name": names[place],
                "d_sae": int(arrays["d_sae"][place]),
                "l1": float(arrays["l1"][place]),
                "dead": measured[names[place]]["dead"],
                "share": np.histogram(log_densities(_firings(arrays, names[place])), EDGES)[0]
                / arrays["d_sae"][place],
            }
            for place in places
        ]
        for title, places in panels.items()
    }
    points = arrays["points"].T
    return Evaluation(
        metrics,
        {
            "density_histograms": {
                "edges": EDGES,
                "lowest": -np.log10(arrays["vectors"]),
                "panels": shown,
            },
            "density_bias_alignment": {
                **dict(zip(("log_density", "bias", "dot"), points, strict=True)),
                "group": arrays["group"],
            },
        },
    )


def draw_histograms(data: Mapping[str, Any]) -> Canvas:
    """Draw a panel for the widths, and one for every series of λ."""
    import matplotlib

    panels = data["panels"]
    figure, axes = subplots(len(panels), 1, 0.5 + 1.7 * len(panels), sharex=True)
    for panel, (title, shown) in zip(axes[:, 0], panels.items(), strict=True):
        for place, entry in enumerate(shown):
            colour = (
                PALETTE[place % len(PALETTE)]
                if title == "width"
                else matplotlib.colormaps[SEQUENTIAL](0.9 * place / max(len(shown) - 1, 1))
            )
            what = f"{entry['d_sae']:,}" if title == "width" else f"{entry['l1']:g}"
            label = f"{what} (never fire: {100 * entry['dead']:.1f}%)"
            panel.stairs(entry["share"], data["edges"], color=colour, label=label, linewidth=1.1)
        panel.axvline(data["lowest"], color="0.5", linestyle="--", linewidth=0.7)
        panel.set(ylabel="share of features")
        heading = "width" if title == "width" else f"{int(title[1:]):,} features, by λ"
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), title=heading, alignment="left")
    axes[-1, 0].set(xlabel="log₁₀ density (share of tokens on which a feature fires)")
    axes[-1, 0].set(xlim=(data["lowest"] - 0.3, 0))
    panel_labels(axes)
    return figure


def draw_alignment(data: Mapping[str, Any]) -> Canvas:
    """Draw density, bias and dot product of encoder and decoder: all three, and two by two."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(FULL_WIDTH, 2.4))
    grid = figure.add_gridspec(1, 3, width_ratios=[1.2, 1, 1])
    x, y, z = (np.asarray(data[key]) for key in ("log_density", "bias", "dot"))
    labels = ("log₁₀ density", "encoder bias", "encoder · decoder")
    colours = np.array([PALETTE[4], PALETTE[0]])[np.asarray(data["group"], dtype=int)]
    cloud: Any = figure.add_subplot(grid[0, 0], projection="3d")
    cloud.scatter(x, y, z, c=colours, s=1, alpha=0.4, linewidths=0)
    for axis, label in zip((cloud.xaxis, cloud.yaxis, cloud.zaxis), labels, strict=True):
        axis.set_label_text(label, fontsize=6)
        axis.set_ticklabels([])
        axis.labelpad = -14
    cloud.set_box_aspect((1, 1, 1), zoom=0.95)
    flat: list[Axes] = [figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[0, 2])]
    for panel, values, label in zip(flat, (y, z), labels[1:], strict=True):
        panel.scatter(x, values, c=colours, s=2, alpha=0.4, linewidths=0)
        panel.set(xlabel=labels[0], ylabel=label)
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="density_histograms",
            title="How often features fire: by width, and by sparsity penalty",
            caption="Share of features by the share of tokens on which they fire. Left of the "
            "dashed line a feature would fire on less than one token of the analysis.",
            original='appendix "Feature density histograms"',
            draw=draw_histograms,
        ),
        Figure(
            name="density_bias_alignment",
            title="Density, encoder bias, and the agreement of encoder and decoder",
            caption="Every feature of A/1 that fires. Colours: the two groups that a mixture of "
            "two Gaussians finds in the three measures together.",
            original='appendix "Feature density histograms", three-dimensional view',
            draw=draw_alignment,
        ),
    ),
)
