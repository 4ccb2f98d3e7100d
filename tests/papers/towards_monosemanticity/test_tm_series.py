import numpy as np
from made_up_dictionaries import SETTINGS

from papers.towards_monosemanticity.series import (
    by_penalty,
    by_width,
    described,
    lines_of_penalty,
)

ARRAYS = described(SETTINGS)


def named(places):
    return ARRAYS["name"][places].tolist()


def test_settings_become_arrays():
    assert ARRAYS["name"].tolist() == list(SETTINGS)
    assert ARRAYS["d_sae"].tolist() == [entry["d_sae"] for entry in SETTINGS.values()]
    assert not ARRAYS["pre_encoder_bias"][-1]


def test_the_width_series_is_a_digit_after_the_model():
    assert named(by_width(ARRAYS)) == ["a0", "a1", "a2"]
    assert named(by_width(ARRAYS, "b")) == ["b1"]
    assert named(by_width(ARRAYS, "q")) == []


def test_a_penalty_series_needs_three_penalties_at_one_width():
    series = by_penalty(ARRAYS)
    assert list(series) == ["a12"]
    assert named(series["a12"]) == ["a0_l1", "a0", "a0_l2"]


def test_lines_connect_widths_of_one_penalty_without_the_unbiased():
    lines = {penalty: named(places) for penalty, places in lines_of_penalty(ARRAYS)}
    assert lines == {0.1: ["a0_l1", "am_l1"], 0.2: ["a0", "a1", "a2"], 0.4: ["a0_l2"]}


def test_the_order_of_the_settings_does_not_matter():
    turned = described(dict(reversed(SETTINGS.items())))
    places = by_width(turned)
    assert turned["name"][places].tolist() == ["a0", "a1", "a2"]
    assert np.all(np.diff(turned["l1"][by_penalty(turned)["a12"]]) > 0)
