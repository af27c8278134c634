"""Here convolutions are lowered as users have them, not as in other tests, which compile fast."""

import pytest


@pytest.fixture(autouse=True)
def all_lowerings(as_users_compile):
    """For every test here."""
