"""Printing results to a person, or as JSON to a program."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from rich.console import Console


def console() -> Console:
    """Return where commands print; texts are taken literally, without rich's markup."""
    # Into a file or a log, 80 columns would cut names to pieces.
    width = None if sys.stdout.isatty() else 160
    return Console(markup=False, emoji=False, highlight=False, width=width)


def to_json(result: Any) -> str:
    """Return a result as JSON: numbers that are not finite become null, tuples lists.

    Args:
        result: made of dataclasses, named tuples, mappings, sequences, arrays, tensors and scalars.
    """
    return json.dumps(_plain(result), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
