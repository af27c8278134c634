"""What a defense costs: the accuracy that the same clients reach together in federated training under it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinvert import data, federation, job
from jaxinvert.job import JobConfig
from jaxinvert.types import Array, Batch

_CLIENTS_PER_ROUND, _MAX_CLIENTS, _NUM_REPORTS = 16, 100, 5


class Utility(NamedTuple):
    """Accuracy along a training.

    Attributes:
      rounds: after which it was measured, ascending from 0.
      accuracy: share of the test images whose class is found, 0 ... 1.
      num_test: test images: an accuracy `a` has a standard error of `sqrt(a (1 - a) / num_test)`.
    """

    rounds: list[int]
    accuracy: list[float]
    num_test: int


def utility(config: JobConfig, setup: job.Setup, *, num_rounds: int, learning_rate: float = 0.01) -> Utility:
    """Trains clients that hold the data set's split "train" under the job's defense, from the job's parameters.

    In each round 16 clients, drawn from at most 100 of equal law, send what the job's clients send; the server
    averages and steps by Adam, which takes updates of any scale, so that no defense needs a rate of its own.

    Args:
      config: the job.
      setup: of it; accuracy is measured on its images.
      num_rounds: of training.
      learning_rate: of the server.

    Raises:
      ValueError: for a secret order, an aggregate, BatchNorm in train mode, or data without a split "train".
    """
    if config.aggregate > 1 or config.local_order == "unknown" or config.batch_norm == "train":
        raise ValueError("accuracy is measured for single clients of known order, BatchNorm in eval mode")
    try:
        training = data.load(config.data, split="train", size=config.size)
    except ValueError as error:
        raise ValueError(f"accuracy needs a split 'train' to train on: {error}") from error
    model, numbers = setup.program.model, config.defense_numbers()
    num_clients = min(_MAX_CLIENTS, len(training.images) // config.num_examples)
    split = federation.dirichlet_split(
        np.random.default_rng(config.seed), training.labels, num_clients=num_clients, concentration=np.inf
    )
    population = federation.populate(Batch(jnp.asarray(training.images), jnp.asarray(training.labels)), split)
    params = setup.trained or setup.program.init(jax.random.fold_in(jax.random.key(config.seed), 0))

    def make(rate: Array) -> federation.Federation:
        return federation.federated_averaging(
            job.sent_update(config, model, numbers),
            clients_per_round=min(_CLIENTS_PER_ROUND, num_clients),
            examples_per_client=config.num_examples,
            client_draws=True,
            server_optimizer=optax.adam(rate),
        )

    test = Batch(jnp.asarray(setup.dataset.images), jnp.asarray(setup.dataset.labels))
    rounds = sorted({round(num_rounds * part / _NUM_REPORTS) for part in range(_NUM_REPORTS + 1)})
    key = jax.random.fold_in(jax.random.key(config.seed), 6)
    snapshots = [*federation.Training(make, model.apply)(key, params, population, test, learning_rate, rounds=rounds)]
    return Utility([one.round for one in snapshots], [one.accuracy for one in snapshots], len(test.labels))
