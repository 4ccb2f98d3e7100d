"""Dictionaries in series: of rising width, and of rising sparsity penalty λ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from shared.experiment import Arrays

LEAST = 3
"""Penalties from which dictionaries of one width are a series."""


def described(settings: Mapping[str, Mapping[str, Any]]) -> Arrays:
    """Return what `dictionaries.settings` says as arrays: name, d_sae, l1, pre_encoder_bias."""
    return {
        "name": np.array(list(settings)),
        **{
            key: np.array([entry[key] for entry in settings.values()])
            for key in ("d_sae", "l1", "pre_encoder_bias")
        },
    }


def by_width(arrays: Arrays, model: str = "a") -> Int[np.ndarray, " widths"]:
    """Return the places of A/0, A/1, … (a0, a1, …): one λ, rising width."""
    found = [
        place for place, name in enumerate(arrays["name"]) if re.fullmatch(rf"{model}\d", name)
    ]
    return np.array(sorted(found, key=lambda place: arrays["d_sae"][place]), dtype=np.int64)


def by_penalty(arrays: Arrays, model: str = "a") -> dict[str, Int[np.ndarray, " penalties"]]:
    """Return the places of a model's dictionaries of one width by rising λ, for every such series.

    Only dictionaries with the pre-encoder bias count, and only the first of the same λ. The key is
    the model and the width, "a512".
    """
    series = {}
    for width in np.unique(arrays["d_sae"]):
        places = _places(arrays, model, arrays["d_sae"] == width)
        penalties, first = np.unique(arrays["l1"][places], return_index=True)
        if len(penalties) >= LEAST:
            series[f"{model}{width}"] = places[first]
    return series


def lines_of_penalty(
    arrays: Arrays, model: str = "a"
) -> list[tuple[float, Int[np.ndarray, " widths"]]]:
    """Return, for every λ, the places of a model's dictionaries by rising width."""
    lines = []
    for penalty in np.unique(arrays["l1"]):
        places = _places(arrays, model, arrays["l1"] == penalty)
        _, first = np.unique(arrays["d_sae"][places], return_index=True)
        if len(places):
            lines.append((float(penalty), places[first]))
    return lines


def _places(arrays: Arrays, model: str, chosen: np.ndarray) -> Int[np.ndarray, " places"]:
    own = np.array([str(name).startswith(model) for name in arrays["name"]], dtype=bool)
    return np.flatnonzero(own & chosen & arrays["pre_encoder_bias"])
