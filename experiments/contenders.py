"""The attacks that `experiments.gias` compares: with a generator, and on pixels; all of one client's setting."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxinvert import attacks
from jaxinvert.attacks import Problem, objectives
from jaxinvert.attacks.initial_guess import gray_noise
from jaxinvert.attacks.matching import gradient_matching
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.attacks.transformations import scale_by_rates
from jaxinvert.priors import generators, regularizers
from jaxinvert.priors.generators import Prior
from jaxinvert.priors.parametrizations import stay
from jaxinvert.types import Array, Attack, Key, Parametrization, Scalar

MakeAttack = Callable[[Scalar], Attack]
"""From the number of steps that the schedule is laid out for."""


class Arena(NamedTuple):
    """What an attack is made of, whichever it is.

    Attributes:
      problem: the client and its network, with the distance of updates that all attacks compare by.
      untrained_key: of networks as they are before training.
    """

    problem: Problem
    untrained_key: Key

    def with_generator(self, prior: Prior) -> Problem:
        """The problem of an attack that searches with a generator."""
        return self.problem._replace(prior=prior)


def latents(arena: Arena, prior: Prior) -> MakeAttack:
    """GI-z only."""
    return lambda horizon: attacks.gias_latents(arena.with_generator(prior), horizon=horizon)


def latents_then_weights(arena: Arena, prior: Prior) -> MakeAttack:
    """GIAS."""
    return lambda horizon: attacks.gias(arena.with_generator(prior), horizon=horizon)


def weights(arena: Arena, prior: Prior) -> MakeAttack:
    """GI-w only, from latents that were not searched."""
    return lambda horizon: attacks.gias_weights(arena.with_generator(prior), horizon=horizon)


def untrained_latents(arena: Arena, prior: Prior) -> MakeAttack:
    """GI-z with the network before training: what a generator is worth that has learned nothing."""
    return latents(arena, untrained(prior.generator, arena.untrained_key))


def deep_image_prior(arena: Arena) -> MakeAttack:
    """GI-w with an untrained convolutional network."""
    network = generators.convolutional(output_shape=arena.problem.image_shape)
    problem = arena.with_generator(untrained(network, arena.untrained_key))
    return lambda horizon: attacks.gias_weights(problem, horizon=horizon, learning_rate=1e-2, tv=0.25)


def untrained(network: generators.Generator, key: Key) -> Prior:
    """A generator as it is before training."""
    return Prior(network, jax.jit(network.init)(key))


def published(arena: Arena) -> MakeAttack:
    """Inverting Gradients with the paper's settings."""
    return lambda horizon: attacks.inverting_gradients(arena.problem, horizon=horizon)


def coarse_to_fine(arena: Arena, *, tv: float = 2e-3) -> MakeAttack:
    """Pixels without sign and with cosine decay, as the sum of images of 8, 16 and 32 pixels that begin in turn."""
    problem = arena.problem
    batch_shape, mean, std = problem.batch_shape, problem.mean_image, problem.std_image
    shapes = [(batch_shape[0], *(max(1, side // part) for side in batch_shape[1:3]), 3) for part in (4, 2, 1)]

    def init(key: Key) -> tuple[Array, ...]:
        return (0.1 * jax.random.normal(key, shapes[0]), *(jnp.zeros(shape) for shape in shapes[1:]))

    def decode(levels: tuple[Array, ...]) -> Array:
        return mean + std * sum(jax.image.resize(level, batch_shape, "bilinear") for level in levels)

    def make(horizon: Scalar) -> Attack:
        rates = tuple(cosine_decay(0.1, horizon, begin=share * horizon) for share in (0.0, 0.2, 0.45))
        return gradient_matching(
            problem.client_update,
            objective=problem.objective or objectives.cosine,
            regularizer=regularizers.weighted((tv, lambda x: regularizers.total_variation(x / std))),
            optimizer=optax.chain(optax.scale_by_adam(), scale_by_rates(rates)),
            parametrization=Parametrization(init, decode, stay, free=True),
        )

    return make


def spectral(arena: Arena) -> MakeAttack:
    """The descent of this library's own attack (`docs/spectral.md`), from gray noise, with the others' objective."""
    return lambda horizon: attacks.spectral(arena.problem, horizon=horizon, guess=gray_noise)


WITH_GENERATOR: dict[str, Callable[[Arena, Prior], MakeAttack]] = {
    "GI-z": latents,
    "GIAS": latents_then_weights,
    "GI-w": weights,
    "GI-z, untrained": untrained_latents,
}
ALONE: dict[str, Callable[[Arena], MakeAttack]] = {
    "deep image prior": deep_image_prior,
    "pixels, published": published,
    "pixels, coarse to fine": coarse_to_fine,
    "pixels, spectral": spectral,
}
NAMES = (*WITH_GENERATOR, *ALONE)
"""In the order of the tables; the first sets the time that all have."""
FIRST = NAMES[0]
PUBLISHED = "pixels, published"
PIXELS = tuple(name for name in ALONE if name.startswith("pixels"))
NO_GENERATOR = "-"


def entered(
    arena: Arena, priors: Mapping[str, Prior], names: Sequence[str]
) -> dict[tuple[str, str], Callable[[], MakeAttack]]:
    """Attacks of some names, each with every generator that is given if it takes one: by its name and that of it.

    Args:
      arena: the setting.
      priors: generators by name.
      names: of attacks, from `NAMES`.
    """
    found: dict[tuple[str, str], Callable[[], MakeAttack]] = {}
    for generator, prior in priors.items():
        for name in WITH_GENERATOR:
            if name in names:
                found[name, generator] = partial(WITH_GENERATOR[name], arena, prior)
    return found | {(name, NO_GENERATOR): partial(ALONE[name], arena) for name in ALONE if name in names}
