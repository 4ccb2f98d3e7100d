import matplotlib.pyplot as plt
import numpy as np
import pytest

from shared.figures.fronts import Look, draw_curves, floats, l0_axis, plain_ticks
from shared.figures.style import PALETTE, use_style

LOOKS = {"a": Look("A", PALETTE[0]), "b": Look("B", PALETTE[1], "s", "--")}


def data(height):
    l0 = [1.0, 10.0, 100.0]
    band = {"l0": l0, "mean": [height] * 3, "low": [height - 0.1] * 3, "high": [height + 0.1] * 3}
    return {"l0": l0 * 2, "value": [height - 0.1] * 3 + [height + 0.1] * 3, "band": band}


@pytest.fixture
def panel():
    with use_style():
        figure, panel = plt.subplots()
        yield panel
        plt.close(figure)


def test_a_null_is_nan():
    np.testing.assert_array_equal(floats([1, None]), [1, np.nan])


def test_every_method_is_drawn_with_its_look_and_named_once(panel):
    draw_curves(panel, LOOKS, {"a": data(0.5), "b": data(0.8)}, "share")
    handles, labels = panel.get_legend_handles_labels()
    assert labels == ["A", "B"]
    assert [handle.get_color() for handle in handles] == PALETTE[:2]
    assert handles[1].get_linestyle() == "--"
    assert (panel.get_xscale(), panel.get_xlabel(), panel.get_ylabel()) == ("log", "L0", "share")
    points = [line for line in panel.lines if len(line.get_xdata()) == 6]
    np.testing.assert_allclose(points[0].get_ydata(), data(0.5)["value"])


def test_a_method_without_a_band_shows_its_points(panel):
    none = {"l0": [], "mean": [], "low": [], "high": []}
    draw_curves(panel, LOOKS, {"a": {"l0": [3.0], "value": [None], "band": none}}, "share")
    assert len(panel.lines) == 3


def test_ticks_are_plain_numbers(panel):
    panel.set(yscale="log", ylim=(0.05, 20))
    plain_ticks(panel.yaxis)
    panel.figure.canvas.draw()
    shown = {label.get_text() for label in panel.get_yticklabels()}
    assert {"0.1", "0.2", "0.5", "1", "2", "5", "10"} <= shown


@pytest.mark.parametrize("x", [[], [2, 4]], ids=["no_points", "no_values"])
def test_a_log_axis_without_data_can_be_drawn(panel, x):
    panel.plot(x, [np.nan] * len(x))
    panel.axhline(0)
    panel.get_xlim()  # settles limits, on a linear scale
    l0_axis(panel)
    panel.figure.canvas.draw()
    assert panel.get_xlim() == (1, 10)


def test_limits_of_a_log_axis_are_those_of_its_data(panel):
    panel.plot([0, 2, 400], [1, 2, 3])
    assert panel.get_xlim()[0] < 0  # on a linear scale, with its margin
    l0_axis(panel)
    panel.figure.canvas.draw()
    low, high = panel.get_xlim()
    assert 0 < low < 2
    assert 400 < high < 1000
