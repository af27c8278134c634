r"""How well an update determines its examples, from its derivative at the truth: no attack is run.

Near the true examples, an update with noise is `y = g(x) + J (x - x_0) + n`, `J = dg/dx`, `n` independent with
standard deviation `sigma_l` in tensor `l`. With the prior `x = 1/2 + S v`, `v` standard normal and `S` the amplitudes
of photographs (`priors.parametrizations.spectrum`), the mean squared error of the best estimate is

    MSE = 1/P trace S (A + 1)^-1 S^T,    A = S^T F S,    F = J^T diag(1 / sigma^2) J,

and `F` is the Fisher information, so that the error of an estimate without bias, with no prior, is at least
`1/P trace F^-1` (Cramer-Rao). No matrix is formed: `F` is applied by one JVP and one VJP. A trace is the mean of
`b^T f(A) b` over random signs `b` in the basis of frequencies, and `k` steps of the Golub-Kahan bidiagonalization of
`J S` from `b` give two quadrature rules for it: Gauss (never above `b^T f(A) b`), and Gauss-Radau with a node at 0
(never below). The spectrum spans many orders of magnitude, so the two are far apart after a few dozen steps; the
estimate is their geometric mean, a heuristic that `experiments.attack_free_risk` compares with the exact value.

References:
  Zhang, Hong, Deng, Mahdavi, Zhou: Understanding deep gradient leakage via inversion influence functions. NeurIPS
  2023, arXiv:2309.13016.
  Xu, Li, Han, Wang, Liu, Wang: From risk to resilience: towards assessing and mitigating the risk of data
  reconstruction attacks in federated learning. 2025, arXiv:2512.15460: the spectrum of the Jacobian bounds the risk.
  Golub, Meurant: Matrices, Moments and Quadrature with Applications. Princeton University Press 2010.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.parallel.lanes import lanes_at_once, map_lanes
from jaxinvert.priors import parametrizations
from jaxinvert.priors.bases import cosine_basis, opponent_colors
from jaxinvert.trees import tree_norm
from jaxinvert.types import Array, Batch, ClientUpdateFn, Key, Params, Scalar, Update

NoiseFn = Callable[[Update], Update]
"""`update -> scales`: the standard deviation of the noise in each tensor, `[]` each; 0 for no noise."""


class Bidiagonals(NamedTuple):
    """Bidiagonal matrices of the whitened derivative, one for each example and probe.

    Attributes:
      diagonal: `[B, M, k]` entries on the diagonal.
      beside: `[B, M, k]` entries beside the diagonal; the last one belongs to column `k + 1`.
      length: `[B, M]` norm of the start vector.
    """

    diagonal: Array
    beside: Array
    length: Array


class Resolution(NamedTuple):
    """PSNR in dB of the best estimate, `[B]` each; see the module docstring.

    Attributes:
      psnr_db: estimate, from the geometric mean of the bounds on the error.
      low_db: lower bound of the PSNR, from the error of an attacker to whom only `k` directions are visible.
      high_db: upper bound of the PSNR.
      unbiased_db: no estimate without bias has a higher PSNR (of its expected error), whatever its knowledge of
        labels; `inf` if the number of steps does not suffice to tell.
    """

    psnr_db: np.ndarray
    low_db: np.ndarray
    high_db: np.ndarray
    unbiased_db: np.ndarray


def residual_scale(update: Update, residual: Scalar) -> Array:
    """Standard deviation of noise on the entries that are not zero, with norm `residual` times that of the update."""
    entries = sum(jnp.count_nonzero(leaf) for leaf in jax.tree.leaves(update))
    return residual * tree_norm(update) / jnp.sqrt(jnp.maximum(entries, 1))


def bidiagonals(
    client_update: ClientUpdateFn,
    params: Params,
    batch: Batch,
    noise: NoiseFn,
    key: Key,
    *,
    num_steps: int,
    num_probes: int = 2,
    num_examples: int | None = None,
    amplitude: Array | None = None,
) -> Bidiagonals:
    """Bidiagonalizes the whitened derivative `diag(1 / sigma) J S` from random starts; traceable.

    Args:
      client_update: `(params, batch) -> update`, differentiable in the inputs.
      params: the model's parameters.
      batch: the true examples, `inputs [B, H, W, C]` in [0, 1].
      noise: standard deviations of the noise; a tensor with 0 is ignored.
      key: draws the signs of the starts.
      num_steps: `k`, each of one JVP and one VJP; the smaller of it and of the number of pixels is used.
      num_probes: `M`, starts per example.
      num_examples: number of examples to start from, the first ones of the batch; `None` = all.
      amplitude: `[1, H, W, C]` or `[]`, standard deviations of the prior in the orthonormal basis of cosines and
        opponent colors; by default those of photographs, with a standard deviation of 1/4 per pixel. With 1, `S` only
        rotates.
    """
    shape = batch.inputs.shape
    if amplitude is None:
        amplitude = parametrizations.amplitude_of_photographs(shape, 1.0)
    amplitude = jnp.broadcast_to(amplitude, (1, *shape[1:]))
    waves = cosine_basis(shape[1]), cosine_basis(shape[2]), opponent_colors(shape[3])

    def update_of(inputs: Array) -> Update:
        return client_update(params, batch._replace(inputs=inputs))

    sent, forward = jax.linearize(update_of, batch.inputs)
    backward = jax.linear_transpose(forward, batch.inputs)  # of the same linearization, which is compiled once
    weights = jax.tree.map(_inverse, noise(sent))

    def whitened(update: Update) -> Update:
        return jax.tree.map(lambda leaf, weight: (leaf * weight).astype(leaf.dtype), update, weights)

    def seen(variables: Array) -> Update:
        return whitened(forward(jnp.einsum("bklc,kh,lw,cd->bhwd", variables * amplitude, *waves)))

    def back(update: Update) -> Array:
        return jnp.einsum("bhwd,kh,lw,cd->bklc", backward(whitened(update))[0], *waves) * amplitude

    def from_start(lane: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        example, signs = lane
        start = jnp.zeros(shape).at[example].set(amplitude[0] * signs)
        steps = min(num_steps, batch.inputs.size)
        return _bidiagonal(seen, back, start, jax.tree.map(jnp.zeros_like, sent), steps)

    count = shape[0] if num_examples is None else min(num_examples, shape[0])
    signs = jax.random.rademacher(key, (count * num_probes, *shape[1:]), jnp.float32)
    lanes = (jnp.repeat(jnp.arange(count), num_probes), signs)
    found = map_lanes(from_start, lanes, lanes_at_once(sent, len(signs)))
    return Bidiagonals(*(leaf.reshape(count, num_probes, *leaf.shape[1:]) for leaf in found))


def _bidiagonal(
    forward: Callable[[Array], Update], backward: Callable[[Update], Array], start: Array, zero: Update, steps: int
) -> tuple[Array, Array, Array]:
    """Golub-Kahan bidiagonalization; the vectors of inputs are kept orthogonal, which keeps those of updates so.

    It ends where the next vector is rounding noise: from there on, all is zero.
    """
    length = tree_norm(start)

    def step(carry: tuple, number: Array) -> tuple[tuple, tuple[Array, Array]]:
        right, left, beside, basis, largest = carry
        basis = basis.at[number].set(right.ravel())
        left = jax.tree.map(lambda new, old: new - beside * old, forward(right), left)
        diagonal = _above_rounding(tree_norm(left), largest)
        left = jax.tree.map(lambda leaf: leaf * _inverse(diagonal), left)
        following = backward(left).ravel() - diagonal * right.ravel()
        for _ in range(2):  # the second pass removes what rounding left of the first
            following -= basis.T @ (basis @ following)
        largest = jnp.maximum(largest, diagonal)
        beside = _above_rounding(jnp.linalg.norm(following), largest)
        right = (following * _inverse(beside)).reshape(start.shape)
        return (right, left, beside, basis, jnp.maximum(largest, beside)), (diagonal, beside)

    nothing = jnp.zeros(())
    first = (start * _inverse(length), zero, nothing, jnp.zeros((steps, start.size)), nothing)
    _, (diagonal, beside) = lax.scan(step, first, jnp.arange(steps))
    return diagonal, beside, length


def _above_rounding(norm: Array, largest: Array) -> Array:
    """The norm, or 0 if it is what rounding leaves of entries as large as `largest`."""
    return jnp.where(norm <= 64 * jnp.finfo(norm.dtype).eps * largest, 0.0, norm)  # NaN stays


def _inverse(norm: Array) -> Array:
    return jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0.0)


def resolution(found: Bidiagonals, *, num_pixels: int) -> Resolution:
    """The PSNR that the bidiagonal matrices admit; not traceable.

    Args:
      found: bidiagonal matrices of one client.
      num_pixels: pixels of one example, times channels.

    Raises:
      ValueError: if a derivative is not finite.
    """
    diagonal, beside, length = (np.asarray(leaf, np.float64) for leaf in found)
    if not (np.all(np.isfinite(diagonal)) and np.all(np.isfinite(beside))):
        raise ValueError(
            "the derivative of the update in the examples is not finite: the client's loss is not smooth"
        )
    gauss = _mean_form(diagonal, beside, length, radau=False, shift=1.0) / num_pixels
    radau = _mean_form(diagonal, beside, length, radau=True, shift=1.0) / num_pixels
    free = _mean_form(diagonal, beside, length, radau=False, shift=0.0) / num_pixels
    decibels = [-10 * np.log10(error) for error in (np.sqrt(gauss * radau), radau, gauss)]
    with np.errstate(divide="ignore"):
        return Resolution(*decibels, unbiased_db=-10 * np.log10(free))


def _mean_form(
    diagonal: np.ndarray, beside: np.ndarray, length: np.ndarray, *, radau: bool, shift: float
) -> np.ndarray:
    """Mean over probes of `b^T (A + shift)^-1 b` by one of the rules, `[B]`."""
    matrix = _matrix(diagonal, beside)
    _, sizes, rights = np.linalg.svd(matrix if radau else matrix[..., :-1])
    nodes = np.zeros(rights.shape[:-1])
    nodes[..., : sizes.shape[-1]] = np.square(sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.square(rights[..., 0]) / (nodes + shift)
    terms = np.where(rights[..., 0] == 0, 0.0, terms)
    return np.mean(np.square(length) * terms.sum(axis=-1), axis=-1)


def _matrix(diagonal: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """The bidiagonal matrices, `[B, M, k, k + 1]`."""
    steps = diagonal.shape[-1]
    matrix = np.zeros((*diagonal.shape, steps + 1))
    index = np.arange(steps)
    matrix[..., index, index], matrix[..., index, index + 1] = diagonal, beside
    return matrix


def influence_db(found: Bidiagonals, *, num_pixels: int) -> float:
    """The bound of the inversion influence function, as an upper bound of a PSNR in dB (Zhang et al. 2023).

    For noise `d`, `|J d| / lambda_max(J J^T)` (their `J` is our transpose, whitened here) is at most the error of the
    linearized least-squares attack. The expected square of `|J d|` is `trace F`.

    Args:
      found: bidiagonal matrices of one client, of all its examples, with `amplitude` 1.
      num_pixels: pixels of one example, times channels.
    """
    diagonal, beside, length = (np.asarray(leaf, np.float64) for leaf in found)
    trace = np.sum(np.mean(np.square(length * diagonal[..., 0]), axis=1))
    largest = np.square(np.linalg.svd(_matrix(diagonal, beside)[..., :-1], compute_uv=False)).max()
    return float(-10 * np.log10(trace / (len(diagonal) * num_pixels * largest**2)))
