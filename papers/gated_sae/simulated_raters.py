"""Simulated blinded ratings, in the shape of the paper's two studies, with a known effect.

Section 4.3 and appendix H. A rater labels the two features of a pair, one gated and one of the
baseline, No, Maybe or Yes (0, 1, 2). Here a label is a normal variable, cut in two places: the sum
of the rater's leniency, how easy features of a layer and site are, a feature's own quality and, for
gated features, the effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from shared.experiment import Config

LABELS = 3


@dataclass(frozen=True)
class Design:
    """Who rates what: of every pair the rater, the layer and the site, as numbers from 0."""

    rater: Int[np.ndarray, " pairs"]
    layer: Int[np.ndarray, " pairs"]
    site: Int[np.ndarray, " pairs"]

    def __len__(self) -> int:
        return len(self.rater)


def design(raters: int, layers: int, sites: int, per_panel: int) -> Design:
    """Return a study with so many pairs at each layer and site; raters take turns."""
    panel, place = np.divmod(np.arange(layers * sites * per_panel), per_panel)
    # Raters go on where the last panel stopped, unless each has one pair of every panel.
    rater = place if per_panel == raters else np.arange(len(panel)) % raters
    return Design(rater, panel // sites, panel % sites)


DESIGNS = {
    "pythia": design(raters=5, layers=5, sites=3, per_panel=5),
    "gemma": design(raters=7, layers=4, sites=3, per_panel=8),
}
"""75 pairs, and 96."""


class Raters(Config):
    """How labels come about; a feature's own quality has standard deviation 1."""

    leniency: float = Field(default=0.6, ge=0)
    """Standard deviation between raters."""
    ease: float = Field(default=0.3, ge=0)
    """Standard deviation between layers and sites."""
    cuts: tuple[float, float] = (-0.5, 0.5)
    """Between No and Maybe, and Maybe and Yes."""

    @property
    def deviation(self) -> float:
        """The standard deviation of what is cut."""
        return float(np.sqrt(1 + self.leniency**2 + self.ease**2))

    def mean_label(self, effect: float) -> float:
        """Return the expected label of features that are better by `effect`."""
        from scipy.special import ndtr

        return float(ndtr((effect - np.array(self.cuts)) / self.deviation).sum())

    def difference(self, effect: float) -> float:
        """Return the expected difference of labels that an effect makes."""
        return self.mean_label(effect) - self.mean_label(0.0)

    def effect(self, difference: float) -> float:
        """Return the effect that makes an expected difference of labels.

        Raises ValueError for a difference that no effect makes.
        """
        from scipy.optimize import brentq

        return float(brentq(lambda effect: self.difference(effect) - difference, -20, 20))


def simulate(
    design: Design,
    raters: Raters,
    effects: Float[np.ndarray, " sites"],
    studies: int,
    random: np.random.Generator,
) -> Int[np.ndarray, "studies pairs 2"]:
    """Return the labels of many studies: of every pair, the baseline's feature and the gated one.

    Args:
        effects: how much better gated features are, by site.
    """
    layers, sites = design.layer.max() + 1, design.site.max() + 1
    lenient = raters.leniency * random.standard_normal((studies, design.rater.max() + 1))
    easy = raters.ease * random.standard_normal((studies, layers * sites))
    shared = lenient[:, design.rater] + easy[:, design.layer * sites + design.site]
    quality = random.standard_normal((studies, len(design), 2))
    quality += shared[..., None]
    quality[..., 1] += effects[design.site]
    return np.searchsorted(raters.cuts, quality)
