"""Save a figure with the numbers it shows and the record of how they came about."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from shared.figures.style import use_style
from shared.files import atomic, write_json

_DESCRIPTION = ".//{http://purl.org/dc/elements/1.1/}description"


def save(
    fig: Figure,
    name: str,
    data: Mapping[str, Any],
    *,
    directory: Path,
    title: str,
    caption: str,
    original: str,
    record: Mapping[str, Any],
) -> None:
    """Write `<name>.png` (300 dpi), `.svg` and `.json` into `directory`, and close the figure.

    `data` are the plotted numbers, `original` is the figure or section of the paper that this one
    regenerates, `record` says how it was made; all three files carry it. Title, caption and
    `original` are plain text. The same inputs give the same bytes: no dates, versions or random
    identifiers beyond what `record` holds.
    """
    try:
        provenance = plain(record)
        document = {
            "name": name,
            "title": title,
            "caption": caption,
            "original": original,
            "provenance": provenance,
            "data": plain(data),
        }
        embedded = json.dumps(provenance)
        without_layout = plt.rc_context({"figure.constrained_layout.use": False})
        with use_style(), without_layout, ExitStack() as moves:
            # Everything is on the disk before the first move, and the moves run in reverse: JSON,
            # SVG, PNG. A kill between them leaves an old picture whose embedded record differs
            # from the JSON beside it, never a new picture with old numbers.
            png, svg, numbers = (
                moves.enter_context(atomic(directory / f"{name}.{suffix}"))
                for suffix in ("png", "svg", "json")
            )
            # Lay out once: a figure with a layout engine is drawn twice for each file.
            if layout := fig.get_layout_engine():
                layout.execute(fig)
            fig.set_layout_engine(None)
            metadata = {"Software": None, "Title": title, "provenance": embedded}
            fig.savefig(png, dpi=300, metadata=metadata)
            fig.savefig(
                svg,
                metadata={"Creator": None, "Date": None, "Title": title, "Description": embedded},
            )
            write_json(numbers, document)
    finally:
        plt.close(fig)


def read_provenance(path: Path) -> dict[str, Any]:
    """The record inside a PNG or SVG that `save` wrote."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            text = image.info.get("provenance")
    else:
        text = ElementTree.parse(path).findtext(_DESCRIPTION)
    if text is None:
        raise ValueError(f"{path} holds no provenance")
    return json.loads(text)


def plain(value: Any) -> Any:
    """`value` in JSON's own types: arrays become lists, and what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON: {value!r}")
