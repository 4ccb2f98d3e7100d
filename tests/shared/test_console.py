"""Results as JSON."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from shared.console import console, to_json


class Pair(NamedTuple):
    left: float
    right: object


@dataclass(frozen=True)
class Result:
    name: str
    pairs: tuple[Pair, ...]


def test_results_become_json():
    result = Result("é", (Pair(float("nan"), None), Pair(1.5, {3: np.float32("inf")})))
    text = to_json([result, torch.tensor([[1, 2]]), np.array([0.5, np.nan]), np.int64(7), True])
    assert json.loads(text) == [
        {
            "name": "é",
            "pairs": [{"left": None, "right": None}, {"left": 1.5, "right": {"3": None}}],
        },
        [[1, 2]],
        [0.5, None],
        7,
        True,
    ]
    assert "é" in text


def test_texts_are_taken_literally(capsys):
    console().print("[bold]a[/bold] :smile: " + 120 * "b")
    assert capsys.readouterr().out == "[bold]a[/bold] :smile: " + 120 * "b" + "\n"
