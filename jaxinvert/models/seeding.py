"""The same network whenever a user's function makes it: libraries with a generator of their own are seeded."""

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Seeds the generators of Python, NumPy and PyTorch by 0, and restores them.

    A network of PyTorch or Keras has the parameters that it drew when it was made. It is made for each defense, and
    anew when a run is resumed: all must attack the same network.
    """
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    random.seed(0)  # Keras draws its seeds from it
    np.random.seed(0)
    if torch is not None:
        torch.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
