"""Finds the sparse vectors of a subspace, which separate a gradient's factors into contributions of single examples.

A dense layer's gradient is `dL/dW^T = D^T X`, where `D [B, units]` are the gradients of its outputs. A factorization
gives a left factor `L [units, B]` with the column space of `D^T`; so there is `Q` with `D^T = L Q`. A ReLU after the
layer makes `D` zero wherever it is off: for each column `q` of `Q`, `L q` vanishes on about half of all units, while
for a generic direction it vanishes on none. There are two ways to find such directions:

* sampling: if `B - 1` random rows of `L` all vanish for one example, their null vector is its `q` (SPEAR);
* from a guess, minimize `sum_i |L_i q|^p` on the sphere, p < 1, by reweighted least squares: with weights
  `w_i = (|L_i q|^2 + e^2)^(p/2 - 1)`, iterate `q <- (L^T diag(w) L)^(-1) q` while `e` shrinks. In coordinates with
  `L^T L = 1`, only its sparsity distinguishes a direction.

References:
  Dimitrov, Baader, Mueller, Vechev: SPEAR: Exact Gradient Inversion of Batches in Federated Learning. NeurIPS 2024,
  arXiv:2403.03945.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.types import Array

OVERSAMPLING = 10
"""Columns of a sketch beyond the rank."""
_EXPONENT = 0.5
_SMALLEST = 1e-30  # squares of zeros stay invertible


class Factors(NamedTuple):
    """A low-rank matrix as `left @ right`, from a singular value decomposition.

    Attributes:
      left: `[units, B]` with orthonormal columns.
      right: `[B, features]`.
      sizes: `[B + 1]` singular values, descending; the last one is the error of the rank-`B` approximation.
    """

    left: Array
    right: Array
    sizes: Array


def factorize(matrix: Array, sketch: Array, *, rank: int) -> Factors:
    """The leading singular vectors by a randomized range finder: exact if the rank is below the sketch's width.

    Args:
      matrix: `[units, features]`.
      sketch: `[features, n]` normal noise, `n = rank + OVERSAMPLING`.
      rank: `B`, at most `min(units, features)`.
    """
    basis = jnp.linalg.qr(matrix @ sketch[:, : min(matrix.shape)])[0]
    basis = jnp.linalg.qr(matrix @ (matrix.T @ basis))[0]
    left, sizes, right = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
    sizes = jnp.concatenate([sizes, jnp.zeros(1, sizes.dtype)])
    return Factors((basis @ left)[:, :rank], sizes[:rank, None] * right[:rank], sizes[: rank + 1])


class Mixture(NamedTuple):
    """A factorized gradient with the thresholds for zeros.

    Attributes:
      left: `[units, B]`, orthonormal columns.
      right: `[B, features]`.
      alive: `[units]` bool, whether a unit has a non-zero gradient.
      tolerance: `[]`, entries of `left @ q`, `|q| = 1`, below it count as zero: ten times the noise of an entry.
      least_zeros: `[]`, a direction with fewer zeros among living units belongs to no example.
    """

    left: Array
    right: Array
    alive: Array
    tolerance: Array
    least_zeros: Array


def mixture(factors: Factors, *, inactive: Array) -> Mixture:
    """Estimates the noise from the first singular value that should be zero.

    Args:
      factors: factors of the gradient.
      inactive: `[]` in [0, 1], a lower bound on the fraction of units that are off for an example.
    """
    num_units, batch_size = factors.left.shape
    noise = factors.sizes[-1] / jnp.maximum(factors.sizes[batch_size - 1], _SMALLEST)
    tolerance = jnp.clip(10 * noise, 1e-9, 1e-2) / jnp.sqrt(1.0 * num_units)
    alive = jnp.linalg.norm(factors.left, axis=1) >= tolerance
    # A dead unit is off for every example. Any direction can vanish on B - 1 living ones.
    least_zeros = jnp.maximum(inactive * num_units - jnp.sum(~alive), batch_size + 2)
    return Mixture(factors.left, factors.right, alive, tolerance, least_zeros)


def sparsest_near(
    mixed: Mixture, guesses: Array, *, wanted: Array, num_steps: int, start: Array | float | None = None
) -> Array:
    """Moves each guess to a nearby direction with many zeros, by reweighted least squares.

    Args:
      mixed: from `mixture`.
      guesses: `[n, B]`.
      wanted: `[n]` bool, which guesses to process.
      num_steps: reweighting steps, during which the smoothing shrinks to the tolerance.
      start: initial smoothing; by default half of the mean entry, which suits rough guesses.

    Returns:
      `[n, B]` of length one; zeros where not wanted.
    """
    left, tolerance = mixed.left, mixed.tolerance

    def one(guess: Array) -> Array:
        direction = _unit(guess)
        mean_entry = jnp.sum(jnp.abs(left @ direction)) / jnp.maximum(jnp.sum(mixed.alive), 1)
        largest = jnp.maximum(0.5 * mean_entry if start is None else start, tolerance)
        smoothing = largest * (tolerance / largest) ** jnp.linspace(0.0, 1.0, num_steps)

        def step(direction: Array, smoothing: Array) -> tuple[Array, None]:
            weight = ((left @ direction) ** 2 + smoothing**2) ** (_EXPONENT / 2 - 1)
            gram = (left * (weight / jnp.max(weight))[:, None]).T @ left
            ridge = 1e-15 * jnp.trace(gram) * jnp.eye(len(gram), dtype=gram.dtype)
            return _unit(jnp.linalg.solve(gram + ridge, direction)), None

        return lax.scan(step, direction, smoothing)[0]

    def if_wanted(pair: tuple[Array, Array]) -> Array:
        guess, is_wanted = pair
        return lax.cond(is_wanted, one, jnp.zeros_like, guess)

    return lax.map(if_wanted, (guesses, wanted))  # sequentially, the weighted matrix stays in a CPU's cache


def vanishing_where(mixed: Mixture, off: Array) -> Array:
    """The directions `[n, B]` with the smallest norm of `left @ q` on the units `off [n, units]` bool."""

    def one(off: Array) -> Array:
        gram = (mixed.left * off[:, None]).T @ mixed.left
        return jnp.linalg.eigh(gram)[1][:, 0]

    return lax.map(one, off)


def pattern_agreement(mixed: Mixture, directions: Array, preactivations: Array) -> Array:
    """Fraction of living units for which `left @ q` is zero if and only if the ReLU of the preactivations is off.

    Args:
      mixed: from `mixture`.
      directions: `[B, B]`.
      preactivations: `[B, units]`.

    Returns:
      `[B]` in [0, 1].
    """
    is_on = jnp.abs(directions @ mixed.left.T) >= mixed.tolerance * jnp.linalg.norm(directions, axis=1, keepdims=True)
    agree = (is_on == (preactivations > 0)) & mixed.alive[None, :]
    return jnp.sum(agree, axis=1) / jnp.maximum(jnp.sum(mixed.alive), 1)


def null_vectors(left: Array, rows: Array, last: Array) -> Array:
    """The directions for which the chosen rows vanish.

    Args:
      left: `[units, B]`.
      rows: `[n, B - 1]` indices of units; a repeated index invalidates only its own sample.
      last: `[n, B]` noise, the equation that fixes the length.

    Returns:
      `[n, B]` of length one; zeros if the rows are dependent.
    """
    systems = jnp.concatenate([left[rows], last[:, None, :]], axis=1)
    right_side = jnp.zeros((*last.shape, 1), left.dtype).at[:, -1].set(1.0)
    return jax.vmap(_unit)(jnp.linalg.solve(systems, right_side)[..., 0])


def num_zeros(mixed: Mixture, directions: Array, tolerance: Array) -> Array:
    """Number of zeros of each direction `[n, B]` among living units: `[n]`; 0 unless the direction has length one."""
    is_unit = jnp.abs(jnp.linalg.norm(directions, axis=1) - 1) < 1e-6
    zeros = (jnp.abs(directions @ mixed.left.T) < tolerance) & mixed.alive[None, :]
    return jnp.where(is_unit, jnp.sum(zeros, axis=1), 0)


class Basis(NamedTuple):
    """Independent directions.

    Attributes:
      directions: `[B, B]` rows; zeros where not found.
      found: `[B]` bool.
      span: `[B, B]` orthonormal rows that span the directions; zeros where not found.
    """

    directions: Array
    found: Array
    span: Array


def empty_basis(mixed: Mixture) -> Basis:
    """A basis without any direction."""
    batch_size = mixed.left.shape[1]
    zeros = jnp.zeros((batch_size, batch_size), mixed.left.dtype)
    return Basis(zeros, jnp.zeros(batch_size, bool), zeros)


def outside(basis: Basis) -> Array:
    """The projection `[B, B]` onto the orthogonal complement of the directions found."""
    return jnp.eye(len(basis.span), dtype=basis.span.dtype) - basis.span.T @ basis.span


def completed(basis: Basis) -> Array:
    """The directions `[B, B]`, with arbitrary orthonormal directions of the complement for those not found."""
    complement = jnp.linalg.eigh(outside(basis))[1].T  # ascending: zero eigenvalues of the found span come first
    return jnp.where(basis.found[:, None], basis.directions, complement)


def sparsest_basis(mixed: Mixture, candidates: Array) -> Basis:
    """Selects the sparsest independent candidates greedily, which gives their sparsest basis (a matroid).

    A mixture of two examples has fewer zeros than either; it is selected only if one of them is not among the
    candidates.

    Args:
      mixed: from `mixture`.
      candidates: `[n, B]` of length one, or zeros.
    """
    batch_size = mixed.left.shape[1]
    zeros = num_zeros(mixed, candidates, mixed.tolerance)

    def take(state: tuple[Array, Array], slot: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        span, rest = state
        independent = jnp.linalg.norm(rest, axis=1) > 1e-4
        score = jnp.where(independent & (zeros >= mixed.least_zeros), zeros, 0).astype(jnp.float32)
        best = lax.argmax(score, 0, jnp.int32)
        taken = score[best] > 0
        new = jnp.where(taken, _unit(rest[best]), 0.0)
        rest = rest - (rest @ new)[:, None] * new[None, :]
        return (span.at[slot].set(new), rest), (jnp.where(taken, candidates[best], 0.0), taken)

    span = jnp.zeros((batch_size, batch_size), candidates.dtype)
    (span, _), (directions, found) = lax.scan(take, (span, candidates), jnp.arange(batch_size))
    return Basis(directions, found, span)


def _unit(vector: Array) -> Array:
    """The vector scaled to length one; zeros if its length is zero or not finite."""
    length = jnp.linalg.norm(vector)
    usable = jnp.isfinite(length) & (length > 0)
    return jnp.where(usable, vector / jnp.where(usable, length, 1.0), 0.0)
