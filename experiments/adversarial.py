"""Training against a discriminator, for generators whose likelihood nobody can compute.

    discriminator:   minimize   softplus(-D(x)) + softplus(D(G(z))) + gamma/2 |dD/dx|^2
    generator:       minimize   softplus(-D(G(z)))

on mirrored images `x`: the non-saturating loss (Goodfellow et al. 2014), with the penalty R1 on real images
(Mescheder et al. 2018), which is computed at every 16th step only and weighs as much more there (Karras et al. 2020).
What comes out is an exponential moving average of the generator. The discriminator sees how much images differ within
a group, so that a generator of always the same image is found out (Karras et al. 2018).

Ian Goodfellow et al.: "Generative Adversarial Nets", NeurIPS 2014, arXiv:1406.2661. Lars Mescheder, Andreas Geiger,
Sebastian Nowozin: "Which Training Methods for GANs do actually Converge?", ICML 2018, arXiv:1801.04406. Tero Karras,
Timo Aila, Samuli Laine, Jaakko Lehtinen: "Progressive Growing of GANs for Improved Quality, Stability, and
Variation", ICLR 2018, arXiv:1710.10196. Karras et al. 2020: see `jaxinvert.generators.style`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen

from jaxinvert import nn
from jaxinvert.priors.generators import Generator, draw_latents
from jaxinvert.types import Array, ArrayTree, Key, Params

PENALTY = 0.1
"""gamma, for pixels in [0, 1]."""
STEPS_PER_PENALTY = 16
GROUP = 4
"""Images that are compared with each other, at most."""


class Game(NamedTuple):
    """Both players between two steps.

    Attributes:
      generator: its parameters.
      discriminator: its parameters.
      average: of the generator's parameters.
      generator_state: of its optimizer.
      discriminator_state: of its optimizer.
      num_steps: so far.
    """

    generator: Params
    discriminator: Params
    average: Params
    generator_state: ArrayTree
    discriminator_state: ArrayTree
    num_steps: Array


class Discriminator(linen.Module):
    """Convolutions that halve images down to 4 ... 7 pixels, then tell real ones from drawn ones.

    Inputs are scaled instead of kernels, which are stored with unit variance as the generator's: all layers learn at
    the same speed.
    """

    width: int
    conv_general_dilated: Callable[..., Array] = jax.lax.conv_general_dilated

    @linen.compact
    def __call__(self, images: Array) -> Array:
        """Images `[N, H, W, C]` to logits `[N]`, high for real ones."""
        x = self._layer(4 * (images - 0.5), self.width, (3, 3), "from_pixels")
        features = self.width
        for level in range(int(math.log2(min(images.shape[1:3]) / 4))):
            features = min(2 * features, 4 * self.width)
            x = self._layer(x, features, (4, 4), f"halved_{level}", strides=2)
        x = jnp.concatenate([x, difference_in_group(x)], axis=-1)
        x = self._layer(x, features, (3, 3), "together")
        x = self._layer(x, features, x.shape[1:3], "dense", padding="VALID")
        kernel = self.param("logits", linen.initializers.normal(1.0), (features,))
        return x[:, 0, 0] @ kernel / math.sqrt(features)

    def _layer(self, x: Array, features: int, window: tuple[int, ...], name: str, **options: Any) -> Array:
        unit = linen.initializers.normal(1.0)
        options |= {"kernel_init": unit, "conv_general_dilated": self.conv_general_dilated}
        conv = linen.Conv(features, window, name=name, **options)
        return math.sqrt(2) * linen.leaky_relu(conv(x / math.sqrt(math.prod(window) * x.shape[-1])), 0.2)


def difference_in_group(x: Array) -> Array:
    """Mean standard deviation of features `[N, h, w, C]` in each one's group, as one more feature `[N, h, w, 1]`.

    Groups are of `GROUP` images, or of all where these do not fill groups.
    """
    count = x.shape[0]
    size = GROUP if count % GROUP == 0 else count
    variance = jnp.var(x.reshape(size, -1, *x.shape[1:]), axis=0)
    spread = jnp.mean(jnp.sqrt(variance + 1e-8), axis=(1, 2, 3))
    return jnp.broadcast_to(jnp.tile(spread, size)[:, None, None, None], (*x.shape[:3], 1))


def start(
    key: Key,
    generator: Generator,
    discriminator: Discriminator,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
) -> Game:
    """The game before its first step; the optimizers are the generator's and the discriminator's."""
    generator_key, discriminator_key = jax.random.split(key)
    params = jax.jit(generator.init)(generator_key)
    image = jax.ShapeDtypeStruct((1, *generator.output_shape), jnp.float32)
    adversary = discriminator.lazy_init(discriminator_key, image)["params"]
    states = (optimizers[0].init(params), optimizers[1].init(adversary))
    return Game(params, adversary, params, *states, jnp.zeros((), jnp.int32))


def make_step(
    generator: Generator,
    discriminator: Discriminator,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    *,
    averaging: float,
) -> Callable[[Key, Game, Array], tuple[Game, dict[str, Array]]]:
    """One step of the discriminator on images `[N, H, W, C]` and as many drawn ones, then one of the generator."""

    def logits(params: Params, images: Array) -> Array:
        return discriminator.apply({"params": params}, images)  # type: ignore[return-value]

    twice_differentiated = discriminator.clone(conv_general_dilated=nn.conv_general_dilated)  # six times as fast

    def roughness(params: Params, images: Array) -> Array:
        slopes = jax.grad(lambda x: jnp.sum(twice_differentiated.apply({"params": params}, x)))(images)  # type: ignore
        return jnp.mean(jnp.sum(jnp.square(slopes), axis=(1, 2, 3)))

    def discriminator_loss(params: Params, images: Array, drawn: Array, num_steps: Array) -> tuple[Array, Array]:
        told_apart = jnp.mean(linen.softplus(-logits(params, images)) + linen.softplus(logits(params, drawn)))
        penalty = jax.lax.cond(
            num_steps % STEPS_PER_PENALTY == 0, lambda: roughness(params, images), lambda: jnp.zeros(())
        )
        return told_apart + STEPS_PER_PENALTY * PENALTY / 2 * penalty, told_apart

    def generator_loss(params: Params, adversary: Params, key: Key, count: int) -> Array:
        drawn = generator.apply(params, draw_latents(key, generator, count))
        return jnp.mean(linen.softplus(-logits(adversary, drawn)))

    def step(key: Key, game: Game, images: Array) -> tuple[Game, dict[str, Array]]:
        mirror_key, drawn_key, generator_key = jax.random.split(key, 3)
        mirror = jax.random.bernoulli(mirror_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirror, images[:, :, ::-1], images)
        drawn = generator.apply(game.generator, draw_latents(drawn_key, generator, len(images)))
        (_, told_apart), grad = jax.value_and_grad(discriminator_loss, has_aux=True)(
            game.discriminator, images, drawn, game.num_steps
        )
        updates, discriminator_state = optimizers[1].update(grad, game.discriminator_state)
        adversary = optax.apply_updates(game.discriminator, updates)

        fooled, grad = jax.value_and_grad(generator_loss)(game.generator, adversary, generator_key, len(images))
        updates, generator_state = optimizers[0].update(grad, game.generator_state)
        params = optax.apply_updates(game.generator, updates)
        average = optax.incremental_update(params, game.average, 1 - averaging)
        moved = Game(params, adversary, average, generator_state, discriminator_state, game.num_steps + 1)
        return moved, {"discriminator_loss": told_apart, "generator_loss": fooled}

    return step
