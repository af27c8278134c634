"""What is left of a gradient's column span under noise: directions, and how far each of them can be trusted.

A gradient `G = X + N` of a dense layer, `[D, m]`, has signal `X` of low rank (`closed_form.span`) and noise `N` with
independent entries of variance `s^2`. With `b = D / m`, a singular value `x s sqrt(m)` of the signal appears as
`y s sqrt(m)`, and its left singular vector as one with the squared cosine `c`:

    y^2 = (x + 1/x) (x + b/x),   c = 1 - b (1 + x^2) / (x^2 (x^2 + b))   if x^4 > b,   else y <= 1 + sqrt(b), c = 0

(Benaych-Georges, Nadakuditi 2012, for large matrices). `s` is read off the median of the singular values beyond the
signal's largest rank, the number of inputs. Without noise, they are rounding errors, and all directions of the signal
have `c = 1`. With as many inputs as the smaller side, there are none: no noise is assumed.

References:
  Benaych-Georges, Nadakuditi: The singular values and vectors of low rank perturbations of large rectangular random
  matrices. Journal of Multivariate Analysis 2012, arXiv:1103.2221.
  Gavish, Donoho: The Optimal Hard Threshold for Singular Values is 4/sqrt(3). IEEE Transactions on Information Theory
  2014, arXiv:1305.5870: the size of the noise by the median.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxinvert.types import Array


class NoisySpan(NamedTuple):
    """An estimated column span.

    Attributes:
      basis: `[D, min(D, m)]` orthonormal columns.
      trust: `[min(D, m)]` in [0, 1], the expected squared cosine of each column with the signal's own direction; zero
        for directions that noise explains.
    """

    basis: Array
    trust: Array


def noisy_span(gradient: Array, num_inputs: int) -> NoisySpan:
    """The span of a gradient with noise; of one that is zero or not finite, nothing is trusted.

    Args:
      gradient: `[D, m]`.
      num_inputs: the largest rank of the signal, at least 1.
    """
    gradient = jnp.where(jnp.all(jnp.isfinite(gradient)), gradient, 0.0)
    basis, sizes, _ = jnp.linalg.svd(gradient, full_matrices=False)
    rows, columns = gradient.shape
    noise = jnp.finfo(gradient.dtype).eps * sizes[0]
    if num_inputs < len(sizes):
        short, long = len(sizes) - num_inputs, max(rows, columns) - num_inputs
        beyond = jnp.median(sizes[num_inputs:]) / (math.sqrt(long) * _noise_median(short / long))
        noise = jnp.maximum(noise, beyond)
    observed = jnp.square(sizes / jnp.where(noise > 0, noise, 1.0)) / columns
    return NoisySpan(basis, _trust(observed, rows / columns))


def outside(span: NoisySpan, rows: Array) -> Array:
    """`1 - sum_k c_k <u_k, z>^2 / |z|^2`, the squared sine of `z [..., D]` to the trusted directions: `[...]`."""
    inside = jnp.square(rows @ span.basis) @ span.trust
    return 1 - inside / jnp.maximum(jnp.sum(jnp.square(rows), axis=-1), 1e-12)


def _trust(observed: Array, ratio: float) -> Array:
    """`c` from `y^2`."""
    middle = observed - 1 - ratio
    is_signal = observed > (1 + math.sqrt(ratio)) ** 2
    signal = 0.5 * (middle + jnp.sqrt(jnp.where(is_signal, jnp.square(middle) - 4 * ratio, 0.0)))
    signal = jnp.where(is_signal, signal, 1.0)
    trust = 1 - ratio * (1 + signal) / (signal * (signal + ratio))
    return jnp.where(is_signal, jnp.clip(trust, 0.0, 1.0), 0.0)


@functools.cache
def _noise_median(ratio: float) -> float:
    """The median of noise's singular values, of variance `1 / long side` (Marchenko-Pastur); `ratio <= 1`."""
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # In the angle, the density of the eigenvalues has no pole at the ends, nor at zero for square matrices.
    angle = (np.arange(4096) + 0.5) * np.pi / 4096
    values = (high + low) / 2 - (high - low) / 2 * np.cos(angle)
    mass = np.square(np.sin(angle)) / np.maximum(values, 1e-12)
    share = np.cumsum(mass) / np.sum(mass)
    return float(np.sqrt(np.interp(0.5, share, values)))
