"""PyTorch's layer operations in JAX: convolutions, normalization, attention, pooling, resizing, random draws."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

from jaxinvert import nn
from jaxinvert.types import Array, Key


class PixelKernel(NamedTuple):
    """A dense layer on flattened pixels, with rows in the order (h, w, c); PyTorch flattens (c, h, w).

    Attributes:
      kernel: `[H * W * C, K]`.
      pixels: `(H, W, C)`.
    """

    kernel: Array
    pixels: tuple[int, int, int]

    def applied(self, x: Array) -> Array:
        """The product with `x [B, C * H * W]`: permutes the pixels instead of the larger kernel."""
        height, width, channels = self.pixels
        return x.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(x.shape) @ self.kernel


def convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Array:
    """Convolution of `x [B, C, *spatial]`, or its transpose in the inputs."""
    spatial = "HWD"[: x.ndim - 2]
    numbers = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    if transposed:
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        flipped = jnp.flip(grouped, tuple(range(3, grouped.ndim)))
        weight = jnp.swapaxes(flipped, 1, 2).reshape(-1, weight.shape[0] // groups, *weight.shape[2:])
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        pads = [(r - p, r - p + extra) for r, p, extra in zip(reach, padding, output_padding)]
        options = {"window_strides": (1,) * len(spatial), "padding": pads, "lhs_dilation": tuple(stride)}
    else:
        options = {"window_strides": tuple(stride), "padding": [(p, p) for p in padding]}
    out = nn.conv_general_dilated(
        x,
        weight,
        **options,
        rhs_dilation=tuple(dilation),
        dimension_numbers=numbers,
        feature_group_count=groups,
    )
    return out if bias is None else out + _per_channel(bias, out)


def layer_norm(
    x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
    """Normalizes over the last axes; returns also mean and inverse standard deviation."""
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    normalized, mean, inverse = _normalized(x, axes, eps)
    lead = (1,) * (x.ndim - len(shape))
    if weight is not None:
        normalized = normalized * weight.reshape(lead + weight.shape)
    if bias is not None:
        normalized = normalized + bias.reshape(lead + bias.shape)
    return normalized, mean, inverse


def group_norm(
    x: Array, weight: Array | None, bias: Array | None, n: int, c: int, size: int, groups: int, eps: float
) -> tuple[Array, Array, Array]:
    """Normalizes over groups of channels; returns also mean and inverse standard deviation."""
    grouped, mean, inverse = _normalized(x.reshape(n, groups, -1), (2,), eps)
    return _scaled(grouped.reshape(x.shape), weight, bias), mean[..., 0], inverse[..., 0]


def batch_norm_eval(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, momentum: float, eps: float
) -> tuple[Array, Array, Array]:
    """Normalizes by the running statistics."""
    scale = lax.rsqrt(var + eps) * (1.0 if weight is None else weight)
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * _per_channel(scale, x) + _per_channel(shift, x), mean, var


def batch_norm_train(x: Array, weight: Array | None, bias: Array | None, *others: Any) -> tuple[Array, ...]:
    """Normalizes by the statistics of the batch; the new running statistics are not computed."""
    axes = (0, *range(2, x.ndim))
    normalized, mean, inverse = _normalized(x, axes, others[-1])
    return _scaled(normalized, weight, bias), mean.reshape(-1), inverse.reshape(-1)


def channel_statistics(x: Array) -> dict[str, Array]:
    """Mean and biased variance `[C]` over batch and positions of `x [B, C, ...]`."""
    axes = (0, *range(2, x.ndim))
    return {"mean": jnp.mean(x, axes), "var": jnp.var(x, axes)}


def attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """`softmax(q k^T / sqrt(d) + mask) v` over the last two axes."""
    if dropout_p or enable_gqa:
        raise ValueError("scaled_dot_product_attention with dropout or grouped queries is not supported")
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ jnp.swapaxes(key, -1, -2)
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is not None:
        mask = attn_mask.reshape((1,) * (scores.ndim - attn_mask.ndim) + attn_mask.shape)
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask
    return jax.nn.softmax(scores, axis=-1) @ value


def max_pool(
    x: Array,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Array, None]:
    """Largest values of windows of `x [..., H, W]`; the indices are not computed."""
    if any(step != 1 for step in _pair(dilation)):
        raise ValueError("max_pool2d with dilation is not supported")
    window, stride, pads = _window(x, window, stride, padding, ceil_mode)
    channels_last = jnp.moveaxis(x, -3, -1)
    # Faster where windows do not overlap, see `nn.max_pool`.
    pool: Callable[..., Array] = linen.max_pool if window == stride else nn.max_pool
    return jnp.moveaxis(pool(channels_last, window, stride, pads), -1, -3), None


def avg_pool(
    x: Array,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Means of windows of `x [..., H, W]`."""
    original = _pair(padding)
    window, stride, pads = _window(x, window, stride, padding, ceil_mode)
    lead = (1,) * (x.ndim - 2)

    def windows(values: Array, pads: Sequence[tuple[int, int]]) -> Array:
        return lax.reduce_window(
            values, 0.0, lax.add, lead + window, lead + stride, ((0, 0),) * len(lead) + tuple(pads)
        )

    if divisor_override:
        return windows(x, pads) / divisor_override
    counted = jnp.ones(lead + x.shape[-2:], x.dtype)
    if count_include_pad:  # padding counts, what ceil_mode adds beyond it does not
        counted = jnp.pad(counted, [(0, 0)] * len(lead) + [(p, p) for p in original], constant_values=1.0)
        beyond = [(0, high - p) for (_, high), p in zip(pads, original)]
        return windows(x, pads) / windows(counted, beyond)
    return windows(x, pads) / windows(counted, pads)


def adaptive_avg_pool(x: Array, sizes: Sequence[int]) -> Array:
    """Means of `sizes` nearly equal windows of `x [..., H, W]`."""
    for axis, size in zip((-2, -1), sizes):
        length = x.shape[axis]
        weights = np.zeros((length, size), np.float32)
        for i in range(size):
            start, stop = i * length // size, -((i + 1) * -length // size)
            weights[start:stop, i] = 1 / (stop - start)
        x = _along(x, weights, axis)
    return x


def upsample_bilinear(x: Array, size: Any, align_corners: bool, *scales: Any) -> Array:
    """Bilinear resizing of `x [..., H, W]`."""
    for axis, new, step in _resized(x, size, scales):
        length = x.shape[axis]
        if align_corners:
            places = np.arange(new) * ((length - 1) / (new - 1) if new > 1 else 0.0)
        else:
            places = np.maximum((np.arange(new) + 0.5) * step - 0.5, 0.0)
        low = np.minimum(places.astype(int), length - 1)
        high, share = np.minimum(low + 1, length - 1), places - low
        weights = np.zeros((length, new), np.float32)
        np.add.at(weights, (low, np.arange(new)), 1 - share)
        np.add.at(weights, (high, np.arange(new)), share)
        x = _along(x, weights, axis)
    return x


def upsample_nearest(x: Array, size: Any, *scales: Any) -> Array:
    """Nearest-neighbor resizing of `x [..., H, W]`."""
    for axis, new, step in _resized(x, size, scales):
        places = np.floor(np.arange(new, dtype=np.float32) * np.float32(step)).astype(int)
        x = jnp.take(x, np.minimum(places, x.shape[axis] - 1), axis=axis)
    return x


def _resized(x: Array, size: Any, scales: tuple[Any, ...]) -> list[tuple[int, int, float]]:
    """For each of the last two axes: its number, new length, and the old pixels per new one, as PyTorch has them.

    Where a factor is given, that is its inverse, although the new length is rounded.

    Args:
      x: `[..., H, W]`.
      size: the new lengths, or `None`.
      scales: a factor for each axis or `None`, or one pair of factors or `None`.
    """
    factors: Any = scales[0] if scales and not isinstance(scales[0], float) else scales
    found = []
    for axis, number in enumerate((-2, -1)):
        length, factor = x.shape[number], factors[axis] if factors else None
        new = int(size[axis] if size else length * (factor or 1.0))
        found.append((number, new, 1 / factor if factor else length / new))
    return found


def pad(x: Array, padding: Sequence[int], *, mode: str) -> Array:
    """Pads the last two axes of `x`; `padding` is (left, right, top, bottom)."""
    left, right, top, bottom = padding
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(top, bottom), (left, right)], mode=mode)


def pixel_shuffle(x: Array, factor: int) -> Array:
    """`[B, C r^2, H, W]` to `[B, C, r H, r W]`."""
    n, c, h, w = x.shape
    x = x.reshape(n, c // factor**2, factor, factor, h, w).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // factor**2, h * factor, w * factor)


def _dropout(key: Key, x: Array, p: float, train: bool | None = True) -> tuple[Array, Array]:
    if train is False:
        return x, jnp.ones(x.shape, bool)
    kept = jax.random.bernoulli(key, 1 - p, x.shape)
    return jnp.where(kept, x * (1 / (1 - p) if p < 1 else 0.0), 0.0), kept


def _bernoulli(key: Key, x: Array, p: float | None = None) -> Array:
    return jax.random.bernoulli(key, x if p is None else p, x.shape).astype(x.dtype)


RANDOM: dict[str, Callable[..., Any]] = {
    "native_dropout": _dropout,
    "bernoulli": _bernoulli,
    "rand_like": lambda key, x, **options: jax.random.uniform(key, x.shape, x.dtype),
    "randn_like": lambda key, x, **options: jax.random.normal(key, x.shape, x.dtype),
    "rand": lambda key, shape, **options: jax.random.uniform(key, tuple(shape)),
    "randn": lambda key, shape, **options: jax.random.normal(key, tuple(shape)),
}
"""Operations that draw random numbers; the first argument is a PRNG key."""


def _normalized(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array]:
    mean = jnp.mean(x, axes, keepdims=True)
    inverse = lax.rsqrt(jnp.var(x, axes, keepdims=True) + eps)
    return (x - mean) * inverse, mean, inverse


def _scaled(x: Array, weight: Array | None, bias: Array | None) -> Array:
    x = x if weight is None else x * _per_channel(weight, x)
    return x if bias is None else x + _per_channel(bias, x)


def _per_channel(values: Array, x: Array) -> Array:
    return values.reshape((1, -1) + (1,) * (x.ndim - 2))


def _along(x: Array, weights: np.ndarray, axis: int) -> Array:
    """The product of one axis of `x` with `weights [old, new]`."""
    product = jnp.tensordot(x, jnp.asarray(weights, x.dtype), axes=([axis % x.ndim], [0]))
    return jnp.moveaxis(product, -1, axis)


def _pair(values: Any) -> tuple[int, int]:
    values = (values,) if isinstance(values, int) else tuple(values)
    return (values[0], values[-1])


def _window(
    x: Array, window: Any, stride: Any, padding: Any, ceil_mode: bool
) -> tuple[tuple[int, int], tuple[int, int], list[tuple[int, int]]]:
    """Window, stride and padding; `ceil_mode` pads so that the last, incomplete window counts."""
    window, padding = _pair(window), _pair(padding)
    stride = _pair(stride) if stride else window
    pads = []
    for length, size, step, edge in zip(x.shape[-2:], window, stride, padding):
        rest = (length + 2 * edge - size) % step
        extra = step - rest if ceil_mode and rest else 0
        if extra and (length + 2 * edge - size + extra) // step * step >= length + edge:
            extra = 0  # a window must begin inside of the image or its left padding
        pads.append((edge, edge + extra))
    return window, stride, pads
