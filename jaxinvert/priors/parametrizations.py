"""Parametrizations: the variables that an attack optimizes, and how they decode to images and labels.

A `Parametrization` has `init`, `decode`, `project` and `penalty`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxinvert.nn import draws
from jaxinvert.priors.bases import cosine_basis, opponent_colors
from jaxinvert.priors.generators import Latents, Prior, draw_latents
from jaxinvert.schema import Schema, blocks, encoded_width
from jaxinvert.trees import tree_squared_norm
from jaxinvert.types import Array, ArrayTree, Batch, Key, Parametrization, PerChannel, Scalar, Shape

_FALL = 1.5
"""Exponent of the amplitude spectrum; steeper than photographs' 1, see `spectrum`."""


def pixels(
    batch_shape: Shape, *, mean: PerChannel = 0.0, std: PerChannel = 1.0, dtype: jnp.dtype = jnp.float32
) -> Parametrization:
    """The images themselves, normalized as for the model: `z = (x - mean) / std`.

    The start is `z ~ N(0, 1)`; `project` clips `x` to [0, 1], as in Geiping et al. (2020). With `mean=0, std=1` the
    variables are the pixels.

    Args:
      batch_shape: `(B, H, W, C)`.
      mean: scalar or `[C]`, the model's normalization.
      std: scalar or `[C]`, positive.
      dtype: dtype of the variables. The start is drawn in float32, so that it is the same for float64.

    Raises:
      ValueError: if `mean` or `std` fits neither a scalar nor the channels.
    """
    batch_shape = tuple(batch_shape)
    mean_image, std_image = (per_channel(name, value, batch_shape) for name, value in [("mean", mean), ("std", std)])
    mean_image, std_image = mean_image.astype(dtype), std_image.astype(dtype)
    lowest, highest = -mean_image / std_image, (1 - mean_image) / std_image

    def init(key: Key) -> Array:
        return draws.normal(key, batch_shape, jnp.float32).astype(dtype)

    def decode(variables: Array) -> Array:
        chex.assert_shape(variables, batch_shape)
        return variables * std_image + mean_image

    def project(variables: Array) -> Array:
        return jnp.clip(variables, lowest, highest)

    return Parametrization(init, decode, project)


def stay(variables: ArrayTree) -> ArrayTree:
    """The identity projection."""
    return variables


def unconstrained(images: Parametrization) -> Parametrization:
    """The same without a box: only the final result is clipped to [0, 1], by `gradient_matching`."""
    return images._replace(project=stay, free=True)


def free_pixels(batch_shape: Shape) -> Parametrization:
    """Unprojected pixels in units of 1/4 that start from `N(1/2, 1/4)`: most of `N(0, 1)` is outside [0, 1]."""
    return unconstrained(pixels(batch_shape, mean=0.5, std=0.25))


def start_at(
    images: Parametrization, picture: Array, *, batch_shape: Shape, mean: PerChannel = 0.0, std: PerChannel = 1.0
) -> Parametrization:
    """`pixels` that start at a given picture plus weak noise, so that restarts and examples differ.

    Args:
      images: from `pixels` with the same `batch_shape`, `mean` and `std`.
      picture: `[H, W, C]` in [0, 1], for all examples of the batch; or `[B, H, W, C]`, one per example.
      batch_shape: `(B, H, W, C)`.
      mean: scalar or `[C]`.
      std: scalar or `[C]`.

    Raises:
      ValueError: for a picture of another shape.
    """
    batch_shape = tuple(batch_shape)
    if jnp.shape(picture) not in (batch_shape, batch_shape[1:]):
        raise ValueError(
            f"the picture to start at has shape {jnp.shape(picture)}, expected {batch_shape[1:]} or {batch_shape}"
        )
    pictures = jnp.broadcast_to(picture, batch_shape)
    normalized = (pictures - per_channel("mean", mean, batch_shape)) / per_channel("std", std, batch_shape)
    return images._replace(init=lambda key: normalized + START_NOISE * images.init(key))


START_NOISE = 0.1
"""Standard deviation of the noise added to a given start, in units of `std` or of `spectrum`'s variables."""


def spectrum(batch_shape: Shape, *, around: Array | float = 0.5, fall: Scalar = _FALL) -> Parametrization:
    """Images as cosine transforms, each frequency scaled by its typical amplitude in photographs.

        x = around + sum_kl v_kl s_kl cos_k cos_l,   s_kl ~ 1 / (1 + |(k, l)|)^fall

    in opponent colors, with most of the contrast in brightness. Frequencies are in half periods per image. The
    amplitudes `s` are scaled so that standard normal variables give pixels with the standard deviation of
    photographs, 1/4. The start has half of that, or a tenth around a given picture. `project` clips pixels to [0, 1].

    Photographs' amplitudes decay like 1/f (Field: "Relations between the statistics of natural images and the
    response properties of cortical cells", JOSA A 1987). A steeper decay helps attacks, which must find large shapes
    first.

    Args:
      batch_shape: `(B, H, W, C)`.
      around: `[H, W, C]` or `[B, H, W, C]` in [0, 1], the picture to start at; by default gray.
      fall: exponent of the spectrum; 0 gives all frequencies the same scale.

    Raises:
      ValueError: for a picture of another shape.
    """
    batch_shape = tuple(batch_shape)
    if jnp.shape(around) not in ((), batch_shape, batch_shape[1:]):
        raise ValueError(
            f"the picture to start at has shape {jnp.shape(around)}, expected {batch_shape[1:]} or {batch_shape}"
        )
    center = jnp.broadcast_to(jnp.asarray(around, jnp.float32), batch_shape)
    waves, amplitude = _waves(batch_shape), amplitude_of_photographs(batch_shape, fall)
    noise = START_NOISE if jnp.ndim(around) else 0.5

    def init(key: Key) -> Array:
        return noise * draws.normal(key, batch_shape, jnp.float32)

    def decode(variables: Array) -> Array:
        chex.assert_shape(variables, batch_shape)
        return center + jnp.einsum("bklc,kh,lw,cd->bhwd", variables * amplitude, *waves)

    def project(variables: Array) -> Array:
        inputs = jnp.clip(decode(variables), 0.0, 1.0)
        return jnp.einsum("bhwd,kh,lw,cd->bklc", inputs - center, *waves) / amplitude

    return Parametrization(init, decode, project)


def spectrum_of(inputs: Array, *, fall: Scalar = _FALL) -> Array:
    """The variables that `spectrum` decodes to `inputs` `[B, H, W, C]`."""
    waves = jnp.einsum("bhwd,kh,lw,cd->bklc", inputs - 0.5, *_waves(inputs.shape))
    return waves / amplitude_of_photographs(inputs.shape, fall)


def near(key: Key, inputs: Array, *, fall: Scalar = _FALL) -> Array:
    """Variables of `spectrum` for `inputs` plus noise of `START_NOISE`, so that restarts differ."""
    return spectrum_of(inputs, fall=fall) + START_NOISE * draws.normal(key, inputs.shape)


def _waves(batch_shape: Shape) -> tuple[Array, Array, Array]:
    """Orthonormal bases for rows, columns and colors."""
    _, height, width, channels = batch_shape
    return cosine_basis(height), cosine_basis(width), opponent_colors(channels)


def amplitude_of_photographs(batch_shape: Shape, fall: Scalar = _FALL) -> Array:
    """Amplitude of photographs at each frequency and color, `[1, H, W, C]`; see `spectrum`."""
    _, height, width, channels = batch_shape
    longest = max(height, width)
    frequency = jnp.hypot(
        *jnp.meshgrid(jnp.arange(height) * longest / height, jnp.arange(width) * longest / width, indexing="ij")
    )
    amplitude = _color_contrast(channels)[None, None, None] / (1 + frequency[None, :, :, None]) ** fall
    return amplitude * 0.25 / jnp.sqrt(jnp.mean(jnp.square(amplitude)))


def _color_contrast(channels: int) -> Array:
    """Contrast of each color relative to brightness."""
    return jnp.array([1.0, COLOR_CONTRAST, COLOR_CONTRAST]) if channels == 3 else jnp.ones(channels)


COLOR_CONTRAST = 0.125
"""Contrast of opponent colors in photographs, relative to that of brightness."""


def with_soft_labels(
    images: Parametrization,
    *,
    batch_size: int,
    num_classes: int,
    squash: Callable[[Array], Array] = jax.nn.softmax,
) -> Parametrization:
    """Images and labels together, as in DLG (Zhu et al. 2019): `decode` gives a `Batch` with labels `[B, K]`.

    The variables are those of `images` and the labels' logits, which start from `N(0, 1)`.

    Args:
      images: decodes to `[B, H, W, C]`.
      batch_size: `B`.
      num_classes: `K`.
      squash: logits to labels: softmax, or `jax.nn.sigmoid` if an example may have several labels.
    """

    def init(key: Key) -> tuple[ArrayTree, Array]:
        logits = draws.normal(jax.random.fold_in(key, 1), (batch_size, num_classes), jnp.float32)
        return images.init(key), logits  # same start of the images as without labels

    def decode(variables: tuple[ArrayTree, Array]) -> Batch:
        image_variables, logits = variables
        return Batch(images.decode(image_variables), squash(logits))

    def project(variables: tuple[ArrayTree, Array]) -> tuple[ArrayTree, Array]:
        image_variables, logits = variables
        return images.project(image_variables), logits

    def penalty(variables: tuple[ArrayTree, Array]) -> Array:
        return images.penalty(variables[0])

    return Parametrization(init, decode, project, penalty, free=images.free)


def latents(
    prior: Prior, *, batch_size: int, prior_weight: Scalar = 0.0, start: Latents | None = None, spread: Scalar = 1.0
) -> Parametrization:
    """Images of a generator with fixed parameters: the variables are its latents (GI-z of Jeon et al. 2021).

    Args:
      prior: the generator and its parameters.
      batch_size: `B`.
      prior_weight: weight of `mean z^2`, proportional to the latents' negative log likelihood, per latent entry.
      start: `B` images' latents to start from; by default `N(0, spread^2)` at the coarsest level and zero, the mean,
        at the finer levels.
      spread: standard deviation of the start; 1 in the paper.
    """

    def init(key: Key) -> Latents:
        if start is not None:
            return start
        coarsest, *finer = draw_latents(key, prior.generator, batch_size)
        return (spread * coarsest, *(jnp.zeros_like(level) for level in finer))

    def decode(variables: Latents) -> Array:
        return prior.generator.apply(prior.params, variables)

    def penalty(variables: Latents) -> Array:
        return prior_weight * mean_square(variables)

    return Parametrization(init, decode, stay, penalty, free=True)


class LatentsAndWeights(NamedTuple):
    """Variables of `generator_weights`, or their learning rates.

    Attributes:
      latents: latents of `B` images.
      weights: the generator's parameters, each with a leading axis `B`.
    """

    latents: ArrayTree
    weights: ArrayTree


def generator_weights(
    prior: Prior, *, batch_size: int, prior_weight: Scalar = 0.0, start: Latents | None = None, spread: Scalar = 1.0
) -> Parametrization:
    """Images of a generator whose latents and weights are both variables (Jeon et al. 2021).

    Every image gets its own copy of the weights. For GI-w give the latents a learning rate of zero. See `latents` for
    the arguments.
    """
    inner = latents(prior, batch_size=batch_size, prior_weight=prior_weight, start=start, spread=spread)

    def init(key: Key) -> LatentsAndWeights:
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape)), prior.params)
        return LatentsAndWeights(inner.init(key), copies)

    def one_image(weights: ArrayTree, image_latents: Latents) -> Array:
        (image,) = prior.generator.apply(weights, jax.tree.map(lambda level: level[None], image_latents))
        return image

    def decode(variables: LatentsAndWeights) -> Array:
        return jax.vmap(one_image)(variables.weights, variables.latents)

    return Parametrization(init, decode, stay, lambda variables: inner.penalty(variables.latents), free=True)


def mean_square(tree: ArrayTree) -> Array:
    """Mean of squares over all entries of all leaves: `[]`."""
    return tree_squared_norm(tree) / sum(leaf.size for leaf in jax.tree.leaves(tree))


def records(schema: Schema, *, batch_size: int, mean: PerChannel = 0.0, std: PerChannel = 1.0) -> Parametrization:
    """Tabular records: continuous columns like `pixels`, each categorical column as the softmax of free logits.

    This is the relaxation of Vero et al. (2023): a record holds a mixture of categories, each of which gets
    gradients.

    Args:
      schema: the columns.
      batch_size: `B`.
      mean: scalar or `[F]`, the model's normalization; ignored for categorical columns.
      std: scalar or `[F]`.
    """
    shape = (batch_size, 1, 1, encoded_width(schema))
    values = pixels(shape, mean=mean, std=std)
    columns = list(zip(schema, blocks(schema)))

    def decode(variables: Array) -> Array:
        continuous = values.decode(variables)
        return jnp.concatenate(
            [
                jax.nn.softmax(variables[..., block]) if column.categories else continuous[..., block]
                for column, block in columns
            ],
            axis=-1,
        )

    is_logit = jnp.concatenate([jnp.full(column.width, bool(column.categories)) for column in schema])

    def project(variables: Array) -> Array:
        return jnp.where(is_logit[None, None, None], variables, values.project(variables))

    return Parametrization(values.init, decode, project)


def per_channel(name: str, value: PerChannel, batch_shape: Shape) -> Array:
    """Broadcasts a scalar or `[C]` to `[1, ..., C]`, to avoid implicit rank promotion.

    Raises:
      ValueError: naming the constant, if it is neither a scalar nor has the channels of `batch_shape`.
    """
    batch_shape = tuple(batch_shape)
    array = jnp.asarray(value, jnp.float32)
    if array.shape not in ((), (1,), batch_shape[-1:]):
        raise ValueError(f"{name} has shape {array.shape}, expected a scalar or the {batch_shape[-1]} channels")
    return jnp.broadcast_to(array, (1,) * (len(batch_shape) - 1) + batch_shape[-1:])
