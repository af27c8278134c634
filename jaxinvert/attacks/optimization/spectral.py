"""Spectral matching, this library's own attack: a picture's frequencies, under noise of unknown size.

    minimize over v:   D(v) exp(tv TV(x)),   D = 1 - cos(g(x), g*),   x = 1/2 + cosine transform of (s v)

`g` are the gradients of kernels: those of biases and norms say little of where things are, and may be most of an
update. `s` is the spectrum of photographs: one unit of a variable is what a photograph has at its frequency, so Adam
moves large shapes far and details little, and coarse comes before fine without stages. As a product, the prior has
the same say at every scale of `D`: its weight is `tv D`, which vanishes where the update can be matched exactly, and
stays where noise forbids that. (`D` sums squares of residuals; if their variance is unknown and set to its most
likely value, minus the logarithm of the posterior is `log D` times a constant plus the prior's.) Adam takes plain
gradients, forgets their size within 20 steps because it falls by orders of magnitude, and its rate follows half a
cosine.

Clients with BatchNorm in train mode normalize brightness and contrast away, and their update hardly tells them. The
running statistics that such clients send do: where the attacker sees them, `D` has a second term, the distance of the
batch statistics behind them in units of these. Both terms are relative to what was observed, so that noise of one
unknown size stands behind both.

The descent starts near a guess, by name the best linear one from what the last dense layer read (`regression`), which
has large shapes that a descent through many ReLUs may not find. Attackers who adapt to a defense compare updates by
what it left, in their own way, and start at gray noise.

docs/spectral.md says why and where each part pays; experiments/spectral.py measures it.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.initial_guess import Guess
from jaxinvert.attacks.matching import observation_distance, search_inputs
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.models import BATCH_NORM_MOMENTUM
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    Batch,
    ClientUpdateFn,
    Key,
    Objective,
    Observation,
    Params,
    Scalar,
    Shape,
)


def spectral(
    client_update: ClientUpdateFn,
    *,
    batch_shape: Shape,
    sent_statistics: Callable[[Params, Batch], ArrayTree] | None = None,
    momentum: Scalar = BATCH_NORM_MOMENTUM,
    batch_norm: Scalar = 1.0,
    tv: Scalar = 1.0,
    learning_rate: Scalar = 0.2,
    horizon: Scalar = 1000,
    objective: Objective = objectives.kernel_cosine,
    joint_labels: int | None = None,
    guess: Guess | None = None,
    prior: Array | None = None,
) -> Attack:
    """Returns the attack; labels are known or variables, any batch size, FedSGD or FedAvg clients.

    Args:
      client_update: the attacker's simulation of the client.
      batch_shape: `(B, H, W, C)`.
      sent_statistics: the running statistics that the simulated client sends, `(params, batch) -> statistics`; they
        are matched where `observation.batch_stats` has those that came back.
      momentum: of the running statistics, the share of the old value (Flax's convention).
      batch_norm: weight of the statistics.
      tv: weight of the total variation, of pixels in [0, 1], in the exponent.
      learning_rate: of Adam, in units of the spectrum of photographs.
      horizon: the number of steps that the learning-rate decay is laid out for.
      objective: distance of the updates, not negative.
      joint_labels: the number of classes, to optimize soft labels along with the images instead of reading
        `observation.labels`.
      guess: images to start at, near them: `regression.regressed`. By default gray noise.
      prior: `[H, W, C]` or `[B, H, W, C]` in [0, 1], images to start from instead.

    Raises:
      ValueError: if both `guess` and `prior` are given, or `guess` and `joint_labels`, as a guess needs labels.
    """
    if guess is not None and (prior is not None or joint_labels is not None):
        raise ValueError("spectral starts at a guess or from a prior, and a guess needs known labels")
    parametrization = parametrizations.spectrum(batch_shape, around=0.5 if prior is None else prior)
    if joint_labels is not None:
        parametrization = parametrizations.with_soft_labels(
            parametrization, batch_size=batch_shape[0], num_classes=joint_labels
        )
    unexplained = observation_distance(
        client_update,
        objective,
        sent_statistics=sent_statistics,
        momentum=momentum,
        batch_norm=batch_norm,
        name="spectral",
    )

    def distance(observation: Observation, batch: Batch) -> Array:
        return unexplained(observation, batch) * jnp.exp(tv * regularizers.total_variation(batch.inputs))

    def start(key: Key, observation: Observation) -> Array:
        assert guess is not None
        return parametrizations.near(key, guess(observation))

    return search_inputs(
        distance,
        optimizer=optax.chain(
            optax.scale_by_adam(b2=0.95, eps=1e-12),  # gradients near a match fall below the usual 1e-8
            optax.scale_by_learning_rate(cosine_decay(learning_rate, horizon)),
        ),
        parametrization=parametrization,
        start=start if guess else None,
        name="spectral",
    )
