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

The descent starts near a guess, the best linear one from the input of the last dense layer (`initial_guess`), which
has large shapes that a descent through many ReLUs may not find. Attackers who adapt to a defense compare updates by
what it left, in their own way, and start at gray noise.

docs/spectral.md says why and where each part pays; experiments/spectral.py measures it.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.initial_guess import Guess, where_readable
from jaxinvert.attacks.matching import observation_distance, search_inputs
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import Array, Attack, Batch, Key, Observation, Scalar


@declare("labels", joint_labels=True, every_round=True, adapts=True)
def spectral(
    problem: Problem,
    *,
    batch_norm: Scalar = 1.0,
    tv: Scalar = 1.0,
    learning_rate: Scalar = 0.2,
    horizon: Scalar = 1000,
    guess: Callable[[Problem], Guess | None] = where_readable,
    start_images: Array | None = None,
) -> Attack:
    """This library's own: a picture's frequencies, a prior under noise of unknown size.

    Args:
      problem: labels are known or optimized; any batch size, FedSGD or FedAvg clients.
      batch_norm: weight of the running statistics, where the attacker sees those that came back.
      tv: weight of the total variation, of pixels in [0, 1], in the exponent.
      learning_rate: of Adam, in units of the spectrum of photographs.
      horizon: the number of steps that the learning-rate decay is laid out for.
      guess: makes the images to start near. By default a regression, where the problem admits it; gray noise
        elsewhere, and with `initial_guess.gray_noise`.
      start_images: `[H, W, C]` or `[B, H, W, C]` in [0, 1], images to start from instead of a guess.
    """
    images = parametrizations.spectrum(problem.batch_shape, around=0.5 if start_images is None else start_images)
    first_images = guess(problem) if start_images is None else None
    unexplained = observation_distance(
        problem, problem.objective or objectives.kernel_cosine, batch_norm=batch_norm, name="spectral"
    )

    def distance(observation: Observation, batch: Batch) -> Array:
        return unexplained(observation, batch) * jnp.exp(tv * regularizers.total_variation(batch.inputs))

    def start(key: Key, observation: Observation) -> Array:
        assert first_images is not None
        return parametrizations.near(key, first_images(observation))

    return search_inputs(
        distance,
        optimizer=optax.chain(
            optax.scale_by_adam(b2=0.95, eps=1e-12),  # gradients near a match fall below the usual 1e-8
            optax.scale_by_learning_rate(cosine_decay(learning_rate, horizon)),
        ),
        parametrization=problem.with_soft_labels(images) if problem.joint_labels else images,
        start=start if first_images else None,
        name="spectral",
    )
