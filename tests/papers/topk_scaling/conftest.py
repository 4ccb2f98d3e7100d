"""Made-up tables of autoencoders of every group, and their scores."""

import made_up_autoencoders as made_up
import pytest


@pytest.fixture(scope="session")
def tables():
    """Tables as an embedded run has them: {"autoencoders": …, "scores": …}, a little noise."""
    return made_up.tables(made_up.entries(jitter=0.003))


@pytest.fixture(scope="session")
def exact_tables():
    """The same without noise: the laws of the module hold."""
    return made_up.tables(made_up.entries())


@pytest.fixture(scope="session")
def smoke_tables():
    """Tables as a smoke run may have them: two n, two k, one seed, three records."""
    return made_up.smoke()
