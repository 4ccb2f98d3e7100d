import json

import numpy as np
from made_up_analysis import make
from made_up_endpoint import KEY, at, said, server

from papers.towards_monosemanticity.explainer import (
    DEMONSTRATIONS,
    _window,
    explain_messages,
    predict_messages,
    read_levels,
    study,
)


def test_there_are_eight_demonstrations_of_windows_of_nine():
    assert len(DEMONSTRATIONS) == 8
    for _, _, *marked in DEMONSTRATIONS:
        for text in marked:
            window = _window(text)
            assert len(window) == 9
            assert max(level for _, level in window) <= 9
    assert _window("␣born ␣1924/9") == [("␣born", 0), ("␣1924", 9)]


def test_the_prediction_is_asked_for_without_the_activations():
    messages = predict_messages("digits", [["␣a"] * 9])
    assert len(messages) == 2 + 2 * len(DEMONSTRATIONS)
    last = messages[-1]["content"]
    assert "digits" in last
    assert json.loads(last.splitlines()[1]) == [["␣a"] * 9]


def test_the_explanation_is_asked_for_with_them():
    window = [("␣a", 3)] * 9
    messages = explain_messages([("top", window)], ["␣b"], ["␣c"])
    origin, _, shown = messages[-1]["content"].splitlines()[0].partition(": ")
    assert (origin, json.loads(shown)) == ("top", [["␣a", 3]] * 9)
    assert '["␣b"]' in messages[-1]["content"]


def test_levels_are_read_or_refused():
    good = json.dumps([[1] * 9, [0] * 9])
    np.testing.assert_array_equal(read_levels(f"Here: {good}.", 2), [[1] * 9, [0] * 9])
    for bad in (
        "", "none", good[:-3], json.dumps([[1] * 9]), json.dumps([[1] * 8, [0] * 8]),
        json.dumps([[10] * 9, [0] * 9]), json.dumps([[-1] * 9, [0] * 9]),
        json.dumps([[0.5] * 9, [0] * 9]), json.dumps([["1"] * 9, [0] * 9]),
        json.dumps([[1] * 9, [0] * 3]),
    ):  # fmt: skip
        assert read_levels(bad, 2) is None


def rater(body):
    """Explains by the strongest token; predicts 9 there. Fails to answer about one explanation."""
    content = body["messages"][-1]["content"]
    if content.startswith("explanation: "):
        words, tokens = content.removeprefix("explanation: ").split("\n")
        levels = [[9 * (token == words) for token in row] for row in json.loads(tokens)]
        return said(json.dumps(levels))
    top = json.loads(content.splitlines()[0].removeprefix("top: "))
    return said(f"<answer>{max(top, key=lambda pair: pair[1])[0]}</answer>")


def test_a_study_of_features_and_neurons(tmp_path, monkeypatch):
    folder = make(tmp_path / "analysis", monkeypatch)
    with server(reply=rater) as (url, seen):
        first = study(at(url), folder, tmp_path / "cache", "a1", units=4, firing=20, seed=0)
        asked = len(seen)
        again = study(at(url), folder, tmp_path / "cache", "a1", units=4, firing=20, seed=0)
        assert len(seen) == asked == 16  # an explanation and a prediction each, then none
    assert first == again
    assert first["features"]["median"] > 0.7
    assert first["neurons"]["median"] < first["features"]["median"]
    assert first["features"]["unreadable"] == 0
    assert [len(first[group]["units"]) for group in ("features", "neurons")] == [4, 4]
    assert KEY not in json.dumps(first)


def test_an_unreadable_prediction_is_counted(tmp_path, monkeypatch):
    folder = make(tmp_path / "analysis", monkeypatch)
    with server(said("I would rather not")) as (url, _):
        result = study(at(url), folder, tmp_path / "cache", "a1", units=2, firing=20, seed=0)
    assert result["features"]["median"] is None
    assert result["features"]["unreadable"] == 2
