"""The random streams of a job: a separate PRNG key for every named source of randomness."""

import enum

import jax

from jaxinvert.types import Key


class Stream(enum.IntEnum):
    """The sources of randomness of a job."""

    PARAMETERS = 0
    """The network's initial parameters."""
    STARTS = 1
    """The attack's random starts and steps."""
    LABEL_DUMMIES = 2
    """Dummy inputs of label rules."""
    LOCAL_ORDER = 3
    """The order in which clients visit their examples, if it is secret."""
    CLIENTS = 4
    """Randomness of clients and their defenses, one key per round."""
    FEDERATED_TRAINING = 6
    """Simulated training of all clients, which measures accuracy."""
    NULL_UPDATES = 7
    """Random updates for an audit's null control."""
    ATTACK_FREE = 8
    """Starts of the attack-free figure."""


def stream(seed: int, name: Stream) -> Key:
    """The PRNG key of a job's stream."""
    return jax.random.fold_in(jax.random.key(seed), name)
