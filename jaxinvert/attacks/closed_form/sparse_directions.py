"""The sparse vectors of a subspace: which mixtures of a gradient's factors belong to one example.

A dense layer's gradient is `dL/dW^T = D^T X`, with `D [B, units]` the gradients of its outputs. The column space of
`D^T` is that of the left factor `L [units, B]`, known from a factorization; so there is `Q` with `D^T = L Q`. A ReLU
behind the layer makes `D` zero wherever it is off: each column `q` of `Q` is a direction in which `L q` vanishes on
about half of all units, while a generic one vanishes on none. Two ways to such directions:

* sampling: if `B - 1` random rows of `L` are all zero for one example, their null vector is its `q` (SPEAR);
* from a guess, minimizing `sum_i |L_i q|^p` on the sphere, p < 1, by reweighted least squares: with weights
  `w_i = (|L_i q|^2 + e^2)^(p/2 - 1)`, one step of inverse iteration `q <- (L^T diag(w) L)^(-1) q`, `e` shrinking.
  In coordinates where `L^T L = 1` no direction is preferred but for its sparsity.

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
    """A matrix of low rank as `left @ right`, by singular values.

    Attributes:
      left: `[units, B]` with orthonormal columns.
      right: `[B, features]`.
      sizes: `[B + 1]` singular values, descending; the last one is what rank `B` leaves over.
    """

    left: Array
    right: Array
    sizes: Array


def factorize(matrix: Array, sketch: Array, *, rank: int) -> Factors:
    """The leading singular vectors by a randomized range finder: exact where the rank is below the sketch's width.

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
    """A factorized gradient, and what counts as zero in it.

    Attributes:
      left: `[units, B]`, orthonormal columns.
      right: `[B, features]`.
      alive: `[units]` bool, whether a unit has a gradient at all.
      tolerance: `[]`, an entry of `left @ q`, `|q| = 1`, below it is zero: ten times what noise makes of one.
      least_zeros: `[]`, a direction with fewer zeros among living units is that of no example.
    """

    left: Array
    right: Array
    alive: Array
    tolerance: Array
    least_zeros: Array


def mixture(factors: Factors, *, inactive: Array) -> Mixture:
    """Reads the noise off the first singular value that should be zero.

    Args:
      factors: of the gradient.
      inactive: `[]`, the least share of all units in [0, 1] that are off for an example.
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
    """Walks from each guess to a direction with as many zeros as there are nearby.

    Args:
      mixed: from `mixture`.
      guesses: `[n, B]`.
      wanted: `[n]` bool, whether to walk at all.
      num_steps: of the reweighting, during which the smoothing shrinks to the tolerance.
      start: of the smoothing; by default half of the mean entry, which is far: for guesses that are only similar.

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

    return lax.map(if_wanted, (guesses, wanted))  # one by one, what is weighted stays in a CPU's cache


def vanishing_where(mixed: Mixture, off: Array) -> Array:
    """The direction that comes closest to vanishing on some units: `[n, units]` bool to `[n, B]`."""

    def one(off: Array) -> Array:
        gram = (mixed.left * off[:, None]).T @ mixed.left
        return jnp.linalg.eigh(gram)[1][:, 0]

    return lax.map(one, off)


def pattern_agreement(mixed: Mixture, directions: Array, preactivations: Array) -> Array:
    """Share of living units where `left @ q` is zero exactly where a ReLU of these preactivations is off.

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
    """The directions in which the chosen rows vanish.

    Args:
      left: `[units, B]`.
      rows: `[n, B - 1]` indices of units; a repeated one spoils its sample only.
      last: `[n, B]` noise that fixes the length.

    Returns:
      `[n, B]` of length one; zeros where the rows are dependent.
    """
    systems = jnp.concatenate([left[rows], last[:, None, :]], axis=1)
    right_side = jnp.zeros((*last.shape, 1), left.dtype).at[:, -1].set(1.0)
    return jax.vmap(_unit)(jnp.linalg.solve(systems, right_side)[..., 0])


def num_zeros(mixed: Mixture, directions: Array, tolerance: Array) -> Array:
    """How many living units each direction `[n, B]` leaves at zero, `[n]`; none for one that is no unit vector."""
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
    """No direction found yet."""
    batch_size = mixed.left.shape[1]
    zeros = jnp.zeros((batch_size, batch_size), mixed.left.dtype)
    return Basis(zeros, jnp.zeros(batch_size, bool), zeros)


def outside(basis: Basis) -> Array:
    """The projection `[B, B]` onto the complement of what was found."""
    return jnp.eye(len(basis.span), dtype=basis.span.dtype) - basis.span.T @ basis.span


def completed(basis: Basis) -> Array:
    """The directions `[B, B]`, and in place of those not found any orthonormal ones of the complement."""
    complement = jnp.linalg.eigh(outside(basis))[1].T  # ascending: first the zeros of what was found
    return jnp.where(basis.found[:, None], basis.directions, complement)


def sparsest_basis(mixed: Mixture, candidates: Array) -> Basis:
    """Greedily the sparsest independent candidates, which is the sparsest basis they have (a matroid).

    A mixture of two examples has fewer zeros than either: it is taken only while one of them is not among the
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
    """The vector at length one; zeros where it has no finite length."""
    length = jnp.linalg.norm(vector)
    usable = jnp.isfinite(length) & (length > 0)
    return jnp.where(usable, vector / jnp.where(usable, length, 1.0), 0.0)
