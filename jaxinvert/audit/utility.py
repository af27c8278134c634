"""The cost of a defense: the accuracy of federated training under it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinvert import data, federation, jobs, models
from jaxinvert.jobs import JobConfig
from jaxinvert.types import ApplyFn, Array, Batch, Params

_CLIENTS_PER_ROUND, _MAX_CLIENTS, _NUM_REPORTS = 16, 100, 5
_MIN_TEST, _SHARE_HELD_OUT = 50, 0.3


class Utility(NamedTuple):
    """Accuracy during training.

    Attributes:
      rounds: rounds after which it was measured, ascending from 0.
      accuracy: share of test images classified correctly, 0 ... 1.
      num_test: number of test images, none of them trained on: an accuracy `a` has a standard error of
        `sqrt(a (1 - a) / num_test)`.
    """

    rounds: list[int]
    accuracy: list[float]
    num_test: int


def reported_rounds(num_rounds: int) -> list[int]:
    """Rounds after which accuracy is reported: 0, the last, and at most four evenly spaced in between.

    >>> reported_rounds(2), reported_rounds(100)
    ([0, 1, 2], [0, 20, 40, 60, 80, 100])
    """
    return sorted({round(num_rounds * part / _NUM_REPORTS) for part in range(_NUM_REPORTS + 1)})


def rounds_to_attack(num_rounds: int, leakage_rounds: int) -> list[int]:
    """Reported rounds after which updates are attacked: evenly spaced, without round 0 and with the last.

    Args:
      num_rounds: rounds of training; 0 = no training.
      leakage_rounds: number of rounds to attack.

    Raises:
      ValueError: for a negative number, for more rounds than are reported, and for any without training.

    >>> rounds_to_attack(100, 2)
    [40, 100]
    """
    if num_rounds < 0:
        raise ValueError(f"accuracy_rounds is {num_rounds}, expected at least 0")
    rounds = reported_rounds(num_rounds)[1:]
    if leakage_rounds and not rounds:
        raise ValueError(
            f"leakage_rounds is {leakage_rounds}, but there is no training to attack: it needs accuracy_rounds"
        )
    if not 0 <= leakage_rounds <= len(rounds):
        raise ValueError(
            f"leakage_rounds is {leakage_rounds}, expected 0 ... {len(rounds)}, the number of rounds "
            f"reported for accuracy_rounds {num_rounds}"
        )
    return [rounds[round(len(rounds) * part / leakage_rounds) - 1] for part in range(1, leakage_rounds + 1)]


def training_and_test(config: JobConfig, setup: jobs.Setup) -> tuple[data.Dataset, data.Dataset]:
    """Training images, and at least 50 test images, as fewer cannot distinguish defenses.

    Training uses the split "train". Test images are those of the victims' split, or of "test" if the victims may be
    among the training images. If that split is too small, the last 30 % of "train" are held out instead.

    Raises:
      ValueError: for data without a split "train", or with too few images.
    """
    try:
        training = data.load(config.data.name, split="train", size=config.data.size)
    except ValueError as error:
        raise ValueError(f"accuracy needs a split 'train' to train on: {error}") from error
    if not config.data.holds_training:
        test = setup.dataset
    else:
        try:
            test = data.load(config.data.name, split="test", size=config.data.size)
        except ValueError:  # without a split "test"
            test = training._replace(images=training.images[:0], labels=training.labels[:0])
    if len(test.images) >= _MIN_TEST:
        return training, test
    cut = len(training.images) - round(_SHARE_HELD_OUT * len(training.images))
    held_out = training._replace(images=training.images[cut:], labels=training.labels[cut:])
    if len(held_out.images) < _MIN_TEST:
        raise ValueError(
            f"accuracy needs {_MIN_TEST} images that are not trained on, but {config.data.name!r} has "
            f"{len(test.images)} in its split 'test', and 30 % of 'train' are {len(held_out.images)}"
        )
    return training._replace(images=training.images[:cut], labels=training.labels[:cut]), held_out


def classifier(model: models.Model) -> ApplyFn:
    """The network as `(params, inputs [B, H, W, C]) -> logits [B, K]`, one logit per class: the largest is predicted.

    A network with one logit predicts class 1 where it is above 0.

    Raises:
      ValueError: for a network that predicts several labels or numbers, which has no accuracy.
    """
    if model.task not in ("classes", "binary"):
        raise ValueError(
            f"accuracy counts images of the right class, but the network's task is {model.task!r}: a network that "
            "predicts several labels per image, or numbers, has none"
        )
    if model.task == "classes":
        return model.apply

    def two_logits(params: Params, inputs: Array) -> Array:
        logit = model.apply(params, inputs)  # sigmoid(z) is the softmax of (0, z)
        return jnp.concatenate([jnp.zeros_like(logit), logit], axis=-1)

    return two_logits


def train_under(
    config: JobConfig,
    setup: jobs.Setup,
    *,
    num_rounds: int,
    learning_rate: float = 0.01,
    resume: Callable[[federation.FederationState], federation.FederationState | None] = lambda start: None,
    on_state: Callable[[federation.FederationState], None] = lambda state: None,
) -> Iterator[federation.Snapshot]:
    """Federated training under the job's defense, on images of `training_and_test`, from the job's parameters.

    In each round, 16 clients are drawn from at most 100 with the same class distribution, and send the job's kind of
    update. The server averages the updates and takes a step of Adam, which is invariant to their scale, so that all
    defenses can share a learning rate.

    Args:
      config: the job.
      setup: the setup of this job.
      num_rounds: rounds of training.
      learning_rate: learning rate of the server.
      resume: takes the state before the first round, and returns one of the same training to continue from, or
        `None`; rounds already done are not reported again.
      on_state: called about once a second between two reports, with the state after some more rounds.

    Returns:
      Snapshots after `reported_rounds`, each computed on demand.

    Raises:
      ValueError: for an unknown order of examples, an aggregate, BatchNorm in train mode, data without a split
        "train", or a network that predicts no classes.
    """
    if (
        config.observation.aggregate > 1
        or config.client.local_order == "unknown"
        or config.model.batch_norm == "train"
    ):
        raise ValueError("accuracy needs single clients of known order, and BatchNorm in eval mode")
    model, parameters = setup.program.model, config.defense.parameters
    apply = classifier(model)
    training, test_images = training_and_test(config, setup)
    num_clients = min(_MAX_CLIENTS, len(training.images) // config.data.num_examples)
    split = federation.dirichlet_split(
        np.random.default_rng(config.seed), training.labels, num_clients=num_clients, concentration=np.inf
    )
    population = federation.populate(Batch(jnp.asarray(training.images), jnp.asarray(training.labels)), split)
    params = setup.trained or setup.clients.init(jobs.stream(config.seed, jobs.Stream.PARAMETERS))

    def make(rate: Array) -> federation.Federation:
        return federation.federated_averaging(
            setup.clients.deployment.sent_update(parameters),
            clients_per_round=min(_CLIENTS_PER_ROUND, num_clients),
            examples_per_client=config.data.num_examples,
            client_draws=True,
            server_optimizer=optax.adam(rate),
        )

    classes = test_images.labels if test_images.labels.ndim == 1 else test_images.labels.argmax(axis=1)  # soft labels
    test = Batch(jnp.asarray(test_images.images), jnp.asarray(classes, jnp.int32))
    key, rounds = jobs.stream(config.seed, jobs.Stream.FEDERATED_TRAINING), reported_rounds(num_rounds)
    return federation.Training(make, apply)(
        *(key, params, population, test, learning_rate),
        rounds=rounds,
        resume=resume(jax.eval_shape(make(jnp.float32(learning_rate)).init, params)),
        on_state=on_state,
    )
