"""A page for every feature and an index of them, each one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from shared.features.dictionary import Dictionary
from shared.features.examples import Portrait
from shared.files import write_text

INDEX = "index.html"


def page_name(feature: int) -> str:
    """Return the file that a feature's page is in."""
    return f"feature_{feature}.html"


def write_pages(
    folder: Path, dictionary: Dictionary, text: str, portraits: Sequence[Portrait]
) -> Path:
    """Write a page for every feature, and an index with a search; return the path of the index.

    Args:
        folder: where they go.
        dictionary: whose features they are.
        text: the name of the text that they were looked at on.
        portraits: what they show.
    """
    about: dict[str, Any] = {
        "sae": dictionary.name,
        "model": dictionary.model.name,
        "site": str(dictionary.site),
        "text": text,
        "index": INDEX,
        "pages": {one.feature: page_name(one.feature) for one in portraits},
    }
    page, index = (_template(f"{name}_page.html.j2") for name in ("feature", "index"))
    for one in portraits:
        write_text(folder / page_name(one.feature), page.render(one=one, **about))
    write_text(folder / INDEX, index.render(portraits=portraits, **about))
    return folder / INDEX


def bars(portrait: Portrait) -> list[dict[str, float]]:
    """Return the bars of a histogram: edges in activation, and the square root of their share.

    The square root shows rare strong activations beside frequent weak ones.
    """
    highest = max(portrait.histogram, default=0)
    return [
        {
            "low": at * portrait.width,
            "high": (at + 1) * portrait.width,
            "count": count,
            "height": (count / highest) ** 0.5,
        }
        for at, count in enumerate(portrait.histogram)
    ]


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(bars=bars)
    environment.filters.update(zip=zip)
    return environment.get_template(name)
