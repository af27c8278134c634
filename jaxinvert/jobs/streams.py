"""The random streams of a job: every source of randomness by name, each with a key of its own."""

import enum

import jax

from jaxinvert.types import Key


class Stream(enum.IntEnum):
    """What a job draws random numbers for."""

    PARAMETERS = 0
    """The network's fresh parameters."""
    STARTS = 1
    """The attack's starts and steps."""
    LABEL_DUMMIES = 2
    """Dummy inputs of label rules."""
    LOCAL_ORDER = 3
    """The order in which clients visit their examples, where it is a secret."""
    CLIENTS = 4
    """What clients and their defenses draw, round by round."""
    FEDERATED_TRAINING = 6
    """Simulated training of all clients, for the accuracy."""
    NULL_UPDATES = 7
    """Random updates that an audit's control attacks."""


def stream(seed: int, name: Stream) -> Key:
    """The key of a job's stream."""
    return jax.random.fold_in(jax.random.key(seed), name)
