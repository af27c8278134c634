"""Spectral matching, this library's own attack: optimizes an image's frequencies under noise of unknown scale.

    minimize over v:   D(v) exp(tv TV(x)),   D = 1 - cos(g(x), g*),   x = 1/2 + cosine transform of (s v)

`g` are the gradients of kernels: those of biases and normalization layers carry little spatial information and may
dominate an update. Behind some networks only they tell contrast (`objectives.balanced_cosine`). The attack tries on a
random picture whether that is so; if it is, biases and norms are compared too, with 0.3 of the kernels' norm.
`s` is the spectrum of photographs: one unit of a variable is the typical
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
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.initial_guess import Guess, where_readable
from jaxinvert.attacks.matching import observation_distance, search_inputs
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import Array, Attack, AttackInfo, AttackState, Batch, Key, Observation, Scalar, Update

_SHARE = 0.3
_BLIND = 1e-6
"""Cosine distance between the gradients at two contrasts below which they do not tell contrast."""


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

    Works: for photographs, single images and small batches, through a few layers, trained or not.

    Fails: through many layers, and on batches of 16 with repeated labels, where it gains little. Drawings and text
    take more steps than photographs.

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

    def built(share: Scalar) -> Attack:
        objective = problem.objective or partial(objectives.balanced_cosine, share=share)
        unexplained = observation_distance(problem, objective, batch_norm=batch_norm, name="spectral")

        def distance(observation: Observation, batch: Batch) -> Array:
            return unexplained(observation, batch) * jnp.exp(tv * regularizers.total_variation(batch.inputs))

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

    def start(key: Key, observation: Observation) -> Array:
        assert first_images is not None
        return parametrizations.near(key, first_images(observation))

    def init(key: Key, observation: Observation) -> AttackState:
        share = jnp.zeros(()) if problem.objective else share_of_biases(problem, observation)
        return built(share).init(key, observation)._replace(carried=share)

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        return built(state.carried).step(key, state, observation)

    return Attack(init, step, built(0.0).decode)


def share_of_biases(problem: Problem, observation: Observation) -> Array:
    """0.3 if the gradients of biases and norms tell contrast and those of kernels do not, else 0: `[]`.

    Compares the gradients of a random picture with those of the same picture at half its contrast, around the mean
    color that the network subtracts. Kernels are blind to contrast in a ReLU network whose biases are all zero, such
    as an untrained one, with a single error. If the gradients of its biases are all zero, too, the share is 0, as
    nothing tells contrast. Reads the parameters and, if they are there, the labels.
    """
    picture = parametrizations.spectrum(problem.batch_shape)
    inputs = picture.decode(picture.init(jax.random.key(0)))
    labels = jnp.zeros(problem.num_examples, int) if observation.labels is None else observation.labels

    def at_contrast(factor: Array) -> Update:
        changed = problem.mean_image + factor * (inputs - problem.mean_image)
        return problem.client_update(observation.params, Batch(changed, labels))

    both = lax.map(at_contrast, jnp.array([1.0, 0.5]))  # one trace, which is compiled once
    full, half = (jax.tree.map(lambda leaf, place=place: leaf[place], both) for place in (0, 1))
    by_kernels = objectives.kernel_cosine(half, full)
    by_all = objectives.balanced_cosine(half, full, share=_SHARE)
    return jnp.where((by_kernels < _BLIND) & (by_all > 10 * _BLIND), _SHARE, 0.0)
