"""What an audit measures on one kind of private data, in the words of its verdict and its page.

The tests are the same for all kinds. They need one score per client, where a higher score is more leakage, and the
candidates that the reconstructions pick; the verdict also needs the words for both.
"""

from typing import NamedTuple, Protocol

import numpy as np


class Measure(NamedTuple):
    """A kind of private data and its score.

    Attributes:
      item: one private item, such as "image".
      one: the item with its article, such as "an image".
      score: name of the score of a client, such as "PSNR"; a higher score is more leakage.
      unit: unit of the score, such as "dB".
      near: what a high score says about a reconstruction, such as "close in pixels".
    """

    item: str
    one: str
    score: str
    unit: str
    near: str


IMAGES = Measure("image", "an image", "PSNR", "dB", "close in pixels")
RECORDS = Measure("record", "a record", "the share of fields right", "points", "right in more fields")
TEXT = Measure("sequence", "a sequence", "the share of tokens right", "points", "right in more tokens")


class Scored(Protocol):
    """Scores of one attack or control on all clients."""

    @property
    def by_client(self) -> np.ndarray:
        """`[T]`: the score of the measure."""
        ...

    @property
    def second_by_client(self) -> np.ndarray:
        """`[T]`: a second score, reported without a test; higher is more leakage."""
        ...

    @property
    def picked(self) -> np.ndarray | None:
        """`[T, P]`: candidates picked among all, `retrieval.NOBODY` for none; `None` if nothing was compared."""
        ...

    @property
    def picked_in_class(self) -> np.ndarray | None:
        """`[T, P]`: candidates picked among those of the class; `None` without labels."""
        ...


class Known(Protocol):
    """Truth and candidates, which only the audit knows."""

    @property
    def private(self) -> np.ndarray:
        """`[T, B]`: index of each private item among the candidates."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """`[N]`: classes of the candidates."""
        ...

    @property
    def same(self) -> np.ndarray:
        """`[N]`: index of the first candidate that is an exact copy, usually the candidate's own."""
        ...

    @property
    def measure(self) -> Measure:
        """What is measured."""
        ...
