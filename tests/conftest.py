"""What every test needs."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _closed_figures():
    """Close the figures that a test drew; pyplot keeps them, and warns of too many."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
