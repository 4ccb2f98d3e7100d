from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from shared.figures.style import (
    DIVERGING,
    FULL_WIDTH,
    HALF_WIDTH,
    PALETTE,
    SEQUENTIAL,
    panel_labels,
    use_style,
)

# What a dichromat sees (Machado, Oliveira and Fernandes 2009, severity 1), on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
RGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def lab(colours, sight):
    """CIELAB of sRGB colours, seen through the eyes of a dichromat."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = (linear @ np.array(SIGHT[sight]).T).clip(0, 1) @ RGB_TO_XYZ.T / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart_by_everyone(sight):
    colours = lab(PALETTE, sight)
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 12
    assert (lab(["white"], sight)[0, 0] - colours[:, 0]).min() > 20


@pytest.mark.parametrize("sight", SIGHT)
def test_maps_read_by_lightness(sight):
    sequential = lab(matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 1, 64)), sight)
    assert (np.diff(sequential[:, 0]) > 0).all()
    low, middle, high = lab(matplotlib.colormaps[DIVERGING]([0.0, 0.5, 1.0]), sight)
    assert middle[0] > 95
    assert abs(low[0] - high[0]) < 10
    assert np.linalg.norm(low - high) > 30


def test_type_is_readable_in_print():
    assert (HALF_WIDTH, FULL_WIDTH) == (3.3, 5.5)
    with use_style():
        fig, axis = plt.subplots(figsize=(HALF_WIDTH, 2))
        axis.plot([0, 1], label="one")
        axis.set(xlabel="x", ylabel="y", title="title")
        legend = axis.legend(title="legend")
        fig.canvas.draw()
        texts = [axis.title, axis.xaxis.label, *axis.get_xticklabels(), *legend.get_texts()]
        assert all(text.get_fontsize() >= 7 for text in texts)
        plt.close(fig)


def test_style_holds_inside_the_block_only_and_overrules_personal_settings():
    with matplotlib.rc_context({"axes.facecolor": "black", "svg.fonttype": "none"}):
        before = dict(matplotlib.rcParams)
        with use_style():
            assert matplotlib.rcParams["axes.facecolor"] == "white"
            assert matplotlib.rcParams["svg.fonttype"] == "path"
            assert matplotlib.rcParams["figure.constrained_layout.use"]
            assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == PALETTE
        assert dict(matplotlib.rcParams) == before


def test_panel_labels_go_row_by_row():
    fig, axes = plt.subplots(2, 2)
    panel_labels(axes)
    assert [axis.get_title(loc="left") for axis in axes.ravel()] == ["a", "b", "c", "d"]
    panel_labels(list(axes[0]))
    plt.close(fig)
