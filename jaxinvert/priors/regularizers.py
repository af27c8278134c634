"""Regularizers (image priors) `inputs [B, H, W, C] -> []`: lower is more like a photograph. `weighted` adds them."""

import jax.numpy as jnp

from jaxinvert.trees import tree_norm
from jaxinvert.types import Array, Regularizer, Scalar


def zero(inputs: Array) -> Array:
    """Returns 0: no prior."""
    return jnp.zeros((), inputs.dtype)


def total_variation(inputs: Array) -> Array:
    """Anisotropic total variation `mean |dx| + mean |dy|` (Geiping et al. 2020).

    Each term is a mean over all differences, so the value does not scale with the image's size: a horizontal ramp
    from 0 to 1 over `W` pixels has `1 / (W - 1)`. An axis of length 1 contributes 0.

    Raises:
      ValueError: if `inputs` is not `[B, H, W, C]`.

    >>> ramp = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 5)[None, None, :, None], (1, 4, 5, 3))
    >>> round(float(total_variation(ramp)), 6)
    0.25
    """
    return sum((jnp.mean(jnp.abs(step)) for step in _neighbor_differences(inputs)), start=zero(inputs))


def total_variation_l2(inputs: Array) -> Array:
    """Squared total variation `mean dx^2 + mean dy^2`: smooths edges more than small noise."""
    return sum((jnp.mean(jnp.square(step)) for step in _neighbor_differences(inputs)), start=zero(inputs))


def total_variation_norm(inputs: Array) -> Array:
    """`|dx| + |dy|` with Euclidean norms over the whole batch (Hatamizadeh et al. 2022), gradient 0 at zero."""
    return sum((tree_norm(step) for step in _neighbor_differences(inputs)), start=zero(inputs))


def l2_norm(inputs: Array) -> Array:
    """Euclidean norm of the whole batch (Yin et al. 2021), with gradient 0 at zero."""
    return tree_norm(inputs)


def mean_norm(inputs: Array) -> Array:
    """Mean of the images' Euclidean norms (Hatamizadeh et al. 2022), with gradient 0 at zero."""
    squared = jnp.sum(jnp.square(inputs), axis=tuple(range(1, inputs.ndim)))
    zero_image = squared == 0
    return jnp.mean(jnp.where(zero_image, 0.0, jnp.sqrt(jnp.where(zero_image, 1.0, squared))))


def box(inputs: Array) -> Array:
    """Clip term `|x - clip(x, 0, 1)|^2`: a soft constraint of pixels to [0, 1] (Geng et al. 2021)."""
    return jnp.sum(jnp.square(inputs - jnp.clip(inputs, 0.0, 1.0)))


def weighted(*terms: tuple[Scalar, Regularizer]) -> Regularizer:
    """Sum of `weight * regularizer` over `terms`; weights may be traced.

    >>> float(weighted((0.5, lambda x: jnp.sum(x)), (2.0, box))(jnp.full((1, 1, 1, 1), 3.0)))
    9.5
    """

    def total(inputs: Array) -> Array:
        return sum((weight * term(inputs) for weight, term in terms), start=zero(inputs))

    return total


def _neighbor_differences(inputs: Array) -> list[Array]:
    """Differences along height and width; axes of length 1 are omitted."""
    if inputs.ndim != 4:
        raise ValueError(f"total variation needs images [B, H, W, C], got shape {inputs.shape}")
    return [jnp.diff(inputs, axis=axis) for axis in (1, 2) if inputs.shape[axis] > 1]


REGISTRY: dict[str, Regularizer] = {
    "box": box,
    "l2-norm": l2_norm,
    "mean-norm": mean_norm,
    "total-variation": total_variation,
    "total-variation-l2": total_variation_l2,
    "total-variation-norm": total_variation_norm,
    "zero": zero,
}
