import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from shared.figures.save import plain, read_provenance, save
from shared.figures.style import FULL_WIDTH, use_style

RECORD = {
    "commit": "0123abc",
    "dirty": False,
    "params": {"densities": (1.0, 0.1), "note": "<&>\"'\\ ]]> é ℓ₂ \x01"},
    "seed": np.int64(3),
    "wall_seconds": 1.5,
}
WORDS = {"title": "A & <b>", "caption": "Ü ∑", "original": "Figure 3, 'Demonstrating <it>'"}


def draw() -> Figure:
    """A figure of everything that takes an id in an SVG: images, clips, markers, gradients."""
    random = np.random.default_rng(0)
    with use_style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(FULL_WIDTH, 2))
        left.imshow(random.random((8, 8)))
        mesh = left.pcolormesh(random.random((4, 4)), rasterized=True)
        fig.colorbar(mesh)
        right.scatter(*random.random((2, 30)), c=random.random(30), label=r"$\|W_i\|^2$")
        right.plot(random.random(30), marker="s")
        right.fill_between([0, 30], [0, 0.5], hatch="//", alpha=0.5)
        right.legend()
    return fig


def write(directory: Path, record=RECORD, data=None, fig=None) -> None:
    fig = fig or plt.figure(figsize=(1, 1))
    save(fig, "one", data or {"x": [1]}, directory=directory, record=record, **WORDS)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_writes_picture_vector_and_numbers(tmp_path):
    numbers = {
        "matrix": np.array([[1.0, np.nan], [np.inf, 2.5]]),
        "counts": np.arange(3, dtype=np.uint16),
        "single": np.float64(0.1),
        "flags": np.array([True, False]),
        "nested": {"tuple": (1, "a", None, float("nan"))},
    }
    write(tmp_path / "new" / "figures", data=numbers, fig=draw())
    folder = tmp_path / "new" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == ["one.json", "one.png", "one.svg"]
    document = json.loads((folder / "one.json").read_text(encoding="utf-8"))
    assert list(document) == ["name", "title", "caption", "original", "provenance", "data"]
    assert document["name"] == "one"
    assert {key: document[key] for key in WORDS} == WORDS
    assert document["data"] == {
        "matrix": [[1.0, None], [None, 2.5]],
        "counts": [0, 1, 2],
        "single": 0.1,
        "flags": [True, False],
        "nested": {"tuple": [1, "a", None, None]},
    }
    with Image.open(folder / "one.png") as image:
        assert image.width == round(FULL_WIDTH * 300)
        assert round(image.info["dpi"][0]) == 300
        assert len((folder / "one.png").read_bytes()) < 300_000


def test_record_is_inside_picture_and_vector(tmp_path):
    write(tmp_path)
    document = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert document["provenance"] == plain(RECORD)
    assert read_provenance(tmp_path / "one.png") == plain(RECORD)
    assert read_provenance(tmp_path / "one.svg") == plain(RECORD)
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")


def test_a_picture_without_a_record_says_so(tmp_path):
    plt.imsave(tmp_path / "bare.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"bare\.png holds no provenance"):
        read_provenance(tmp_path / "bare.png")


def test_same_inputs_give_the_same_bytes(tmp_path):
    record = {"commit": "0123abc"}
    write(tmp_path / "first", record, fig=draw())
    # Neither earlier figures nor a reader's own settings may show.
    with matplotlib.rc_context({"svg.hashsalt": None, "savefig.dpi": 50, "svg.fonttype": "none"}):
        write(tmp_path / "second", record, fig=draw())
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert first == second
    for name in ("one.png", "one.svg"):
        assert b"Matplotlib v" not in first[name]
        assert matplotlib.__version__.encode() not in first[name]
        assert b"dc:date" not in first[name]


def test_closes_the_figure_come_what_may(tmp_path):
    before = plt.get_fignums()
    write(tmp_path, {})
    with pytest.raises(TypeError, match="cannot write object as JSON"):
        write(tmp_path, {}, {"x": object()})
    assert plt.get_fignums() == before


@pytest.mark.parametrize("broken", ["savefig", "write_json"])
def test_failure_leaves_the_previous_files(tmp_path, monkeypatch, broken):
    write(tmp_path, {"run": 1})
    before = contents(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if broken == "savefig":
        monkeypatch.setattr("matplotlib.backends.backend_svg.FigureCanvasSVG.print_svg", full)
    else:
        monkeypatch.setattr("shared.figures.save.write_json", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, {"run": 2})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_stop_between_the_moves_can_be_seen(tmp_path, monkeypatch, moves):
    """New numbers may lie beside an old picture, whose record tells; never the reverse."""
    write(tmp_path, {"run": 1})
    done = []
    replace = Path.replace

    def stop(self, target):
        if Path(target).parent == tmp_path and not Path(target).name.startswith(".partial"):
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"run": 2})
    numbers = json.loads((tmp_path / "one.json").read_text())["provenance"]["run"]
    vector = read_provenance(tmp_path / "one.svg")["run"]
    picture = read_provenance(tmp_path / "one.png")["run"]
    assert [numbers, vector, picture] == sorted([numbers, vector, picture], reverse=True)
    assert [numbers, vector, picture].count(2) == moves


def test_plain_refuses_what_json_cannot_hold():
    with pytest.raises(TypeError, match="complex"):
        plain({"z": np.array([1j])})
