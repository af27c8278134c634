"""What recorders share: a failed recording is a warning in the log, and never an error in the training."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from jaxinvert.manifest import check_num_examples

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def only_warning(what: str) -> Iterator[None]:
    """Turns any exception of the recorder into a warning that `what` was not recorded."""
    try:
        yield
    except Exception as error:  # of any kind: the training is worth more than its record
        _LOG.warning("%s was not recorded: %s: %s", what, type(error).__name__, error)


def num_examples(value: Any, *, client: str) -> int | None:
    """A number of examples that a client claims; `None`, with a warning, if it cannot be one."""
    if value is None:
        return None
    try:
        if int(value) == float(value):  # 32.0 is 32, 3.5 is nothing
            return check_num_examples(int(value))
    except (TypeError, ValueError, OverflowError):
        pass
    _LOG.warning("client %s says that it has %.80r examples: recorded as unknown", client, value)
    return None
