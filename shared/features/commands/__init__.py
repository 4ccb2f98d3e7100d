"""The commands about features.

A module here is named as its command, defines a function of that name for typer, and says EXAMPLE.
It imports what is heavy (torch, transformers) inside the function, so that --help stays fast.
"""

from __future__ import annotations

from importlib import import_module

import typer

NAMES = (
    "read",
    "steer",
    "kinds",
    "ablate",
    "algebra",
    "attribute",
    "patch",
    "examples",
    "explain",
    "compare",
    "evaluate",
    "train",
    "sweep",
)


def register(app: typer.Typer) -> None:
    """Add every command about features to an application."""
    for name in NAMES:
        module = import_module(f"{__name__}.{name}")
        epilog = f"Example: {module.EXAMPLE}"
        app.command(name, epilog=epilog, rich_help_panel="Features")(getattr(module, name))
