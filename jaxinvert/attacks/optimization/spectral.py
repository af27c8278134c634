"""Spectral matching, this library's own attack: optimizes an image's frequencies under noise of unknown scale.

    minimize over v:   D(v) exp(tv TV(x)),   D = 1 - cos(g(x), g*),   x = 1/2 + cosine transform of (s v)

`g` are the gradients of kernels: those of biases and normalization layers carry little spatial information and may
dominate an update. Behind some networks only they tell contrast. The attack tries on a random picture whether that is
so; if it is, biases and norms are compared too, and set the contrast of what was found at the end
(`attacks.contrast`). `s` is the spectrum of photographs: one unit of a variable is the typical amplitude of
photographs at its frequency, so Adam changes large shapes more than details, and coarse structure is found before
fine structure without stages. As a factor, the prior has the same influence at every scale of `D`: its weight is
`tv D`, which vanishes if the update can be matched exactly and remains if noise prevents that. (`D` sums squared
residuals; if their unknown variance is set to its maximum-likelihood value, the negative log-posterior is `log D`
times a constant plus the prior.) Adam uses plain gradients; its second moment averages over about 20 steps, because
gradients shrink by orders of magnitude, and its learning rate follows half a cosine.

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
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.contrast import kernels_are_blind, with_fitted_contrast
from jaxinvert.attacks.initial_guess import Guess, where_readable
from jaxinvert.attacks.matching import observation_distance, search_inputs
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.observation.observe import require
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackInfo,
    AttackState,
    Batch,
    Key,
    Objective,
    Observation,
    Reconstruction,
    Scalar,
)

_SHARES = (0.3, 0.1)
_SECOND_FROM = 0.5
"""Shares of biases, and the fraction of the steps at which the second takes over. A large one keeps contrast near the
true one while large shapes are found; later it may hold the search where a unit of ReLU has the wrong sign."""


class Comparison(NamedTuple):
    """How updates are compared.

    Attributes:
      init: `observation -> compared`, what a comparison computes once.
      objective: `(compared, share) -> objective`; of biases that share counts.
    """

    init: Callable[[Observation], ArrayTree]
    objective: Callable[[Any, Scalar], Objective]


AS_THEY_ARE = Comparison(lambda _: (), lambda _, share: partial(objectives.balanced_cosine, share=share))


class _Carried(NamedTuple):
    """Whether biases count because kernels do not tell contrast, the number of steps taken, and the comparison's."""

    blind: Array
    steps: Array
    compared: ArrayTree


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
    return matching_of_frequencies(
        problem,
        AS_THEY_ARE,
        batch_norm=batch_norm,
        tv=tv,
        learning_rate=learning_rate,
        horizon=horizon,
        guess=guess,
        start_images=start_images,
        name="spectral",
    )


def matching_of_frequencies(
    problem: Problem,
    comparison: Comparison,
    *,
    batch_norm: Scalar,
    tv: Scalar,
    learning_rate: Scalar,
    horizon: Scalar,
    guess: Callable[[Problem], Guess | None] = where_readable,
    start_images: Array | None = None,
    name: str,
) -> Attack:
    """`spectral` with updates compared in any way; its other arguments are those of `spectral`."""
    images = parametrizations.spectrum(problem.batch_shape, around=0.5 if start_images is None else start_images)
    first_images = guess(problem) if start_images is None else None
    if first_images is not None and problem.joint_labels:
        raise ValueError(f"{name}: a guess needs known labels, but problem.joint_labels is True")

    parametrization = problem.with_soft_labels(images) if problem.joint_labels else images

    def roughness(inputs: Array) -> Array:
        return jnp.exp(tv * regularizers.total_variation(inputs))

    def start(key: Key, observation: Observation) -> Array:
        assert first_images is not None
        return parametrizations.near(key, first_images(observation))

    def built(compared: ArrayTree, share: Scalar) -> Attack:
        objective = problem.objective or comparison.objective(compared, share)
        unexplained = observation_distance(problem, objective, batch_norm=batch_norm, name=name)
        return search_inputs(
            lambda observation, batch: unexplained(observation, batch) * roughness(batch.inputs),
            optimizer=optax.chain(
                optax.scale_by_adam(b2=0.95, eps=1e-12),  # gradients near a match fall below the usual 1e-8
                optax.scale_by_learning_rate(cosine_decay(learning_rate, horizon)),
            ),
            parametrization=parametrization,
            start=start if first_images else None,
            name=name,
        )

    if problem.objective is not None:
        return built((), 0.0)

    def init(key: Key, observation: Observation) -> AttackState:
        blind, compared = kernels_are_blind(problem, observation), comparison.init(observation)
        carried = _Carried(blind, jnp.zeros((), jnp.int32), compared)
        return built(compared, 0.0).init(key, observation)._replace(carried=carried)

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        blind, steps, compared = state.carried
        second_from = jnp.ceil(_SECOND_FROM * jnp.asarray(horizon))
        share = blind * jnp.where(steps < second_from, *_SHARES)
        # Losses under two shares are not comparable: the best is sought anew.
        best_loss = jnp.where(blind & (steps == second_from), jnp.inf, state.best_loss).astype(state.best_loss.dtype)
        state, info = built(compared, share).step(key, state._replace(best_loss=best_loss), observation)
        return state._replace(carried=_Carried(blind, steps + 1, compared)), info

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = built(state.carried.compared, 0.0).decode(state, observation)
        decoded = parametrization.decode(state.best_variables)
        batch = decoded if isinstance(decoded, Batch) else Batch(decoded, require(observation, "labels", attack=name))

        def at_fitted_contrast() -> Reconstruction:
            inputs, distance = with_fitted_contrast(problem, observation, batch)
            loss = (distance * roughness(inputs)).astype(found.attack_loss.dtype)
            return found._replace(inputs=jnp.clip(inputs, 0.0, 1.0), attack_loss=loss)

        return lax.cond(state.carried.blind, at_fitted_contrast, lambda: found)

    return Attack(init, step, decode)
