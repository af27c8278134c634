"""Here convolutions are lowered as users have them, not as in other tests, which compile fast."""

import pytest

from jaxinvert.nn import lowerings


@pytest.fixture(autouse=True)
def all_lowerings():
    before = lowerings._COMPILE_FAST.set(False)
    yield
    lowerings._COMPILE_FAST.reset(before)
