from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_results import write_paper, write_results

from shared.files import ROOT, write_text


@pytest.fixture(scope="session")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a root folder with papers and, for the (paper, profile) pairs given, results."""

    def make(*runs: tuple[str, str]) -> Path:
        root = tmp_path_factory.mktemp("site")
        for paper, year in (("toy_superposition", 2022), ("gated_sae", 2024)):
            write_paper(root, paper, year)
        write_text(root / "CITATION.cff", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        for paper, profile in runs:
            write_results(root, paper, profile)
        return root

    return make


@pytest.fixture(scope="session")
def site(make_site: Callable[..., Path]) -> Path:
    """Both papers in their default profile, and one of them in another; read, do not change."""
    return make_site(
        ("toy_superposition", "embedded"), ("gated_sae", "embedded"), ("gated_sae", "smoke")
    )
