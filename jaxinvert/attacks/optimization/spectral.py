"""Spectral matching, this library's own attack: optimizes an image's frequencies under noise of unknown scale.

    minimize over v:   D(v) exp(tv TV(x)),   D = 1 - cos(g(x), g*),   x = 1/2 + cosine transform of (s v)

`g` is the update with the gradients of biases and normalization layers in a fixed proportion to those of kernels
(`objectives.balanced_cosine`): they carry little spatial information and may dominate an update, but behind some
networks only they determine contrast. `s` is the spectrum of photographs: one unit of a variable is the typical
amplitude of photographs at its frequency, so Adam changes large shapes more than details, and coarse structure is
found before fine structure without stages. As a factor, the prior has the same influence at every scale of `D`: its
weight is `tv D`, which vanishes if the update can be matched exactly and remains if noise prevents that. (`D` sums
squared residuals; if their unknown variance is set to its maximum-likelihood value, the negative log-posterior is
`log D` times a constant plus the prior.) Adam uses plain gradients; its second moment averages over about 20 steps,
because gradients shrink by orders of magnitude, and its learning rate follows half a cosine.

Clients with BatchNorm in train mode remove brightness and contrast by normalization, so their update hardly depends
on them. The running statistics that such clients send do: if the attacker sees them, `D` has a second term, the
relative distance of the batch statistics recovered from them. Both terms are relative to the observed values, so
noise of a single unknown size can explain both.

The search starts near a guess, the best linear estimate from the input of the last dense layer (`initial_guess`).
The guess contains large shapes that a descent through many ReLUs may not find. Attackers who adapt to a defense
compare updates by their own objective and start at gray noise.

docs/spectral.md explains the effect of each part; experiments/spectral.py measures it.
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
    """Spectral matching: matches gradients over an image's frequencies, from a guess; this library's own.

    Args:
      problem: labels are known or optimized; any batch size, FedSGD or FedAvg clients.
      batch_norm: weight of the running statistics, if the attacker sees them.
      tv: weight of the total variation, of pixels in [0, 1], in the exponent.
      learning_rate: of Adam, in units of the spectrum of photographs.
      horizon: number of steps over which the learning rate decays.
      guess: returns the initial images. By default a regression if the problem admits one, else gray noise; always
        gray noise with `initial_guess.gray_noise`.
      start_images: images to start from instead of a guess, `[H, W, C]` or `[B, H, W, C]` in [0, 1].

    Raises:
      ValueError: if labels are optimized, and `guess` makes images nevertheless, which needs known labels.
    """
    images = parametrizations.spectrum(problem.batch_shape, around=0.5 if start_images is None else start_images)
    first_images = guess(problem) if start_images is None else None
    if first_images is not None and problem.joint_labels:
        raise ValueError("spectral: a guess needs known labels, but problem.joint_labels is True")
    unexplained = observation_distance(
        problem, problem.objective or objectives.balanced_cosine, batch_norm=batch_norm, name="spectral"
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
