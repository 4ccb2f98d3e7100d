"""Made-up scores of every method and site."""

import made_up_scores
import pytest


@pytest.fixture(scope="session")
def scores():
    """Scores as an embedded run has them: three seeds, five penalties, a little noise."""
    return made_up_scores.table(made_up_scores.rows())


@pytest.fixture(scope="session")
def exact_scores():
    """The same without noise: every front is the gated one, shifted in L0."""
    return made_up_scores.table(made_up_scores.rows(jitter=0))


@pytest.fixture(scope="session")
def smoke_scores():
    """Scores as a smoke run may have them: one seed, three penalties, two sites, few methods."""
    return made_up_scores.table(
        made_up_scores.rows(
            seeds=1,
            penalties=(0.1, 0.4, 1.6),
            methods=("baseline", "gated"),
            sites=("resid_post.1", "mlp_out.3"),
        )
    )
