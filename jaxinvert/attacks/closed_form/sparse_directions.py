"""Finds the sparse vectors of a subspace, which separate a gradient's factors into contributions of single examples.

A dense layer's gradient is `dL/dW^T = D^T X`, where `D [B, units]` are the gradients of its outputs. A factorization
gives a left factor `L [units, B]` with the column space of `D^T`; so there is `Q` with `D^T = L Q`. A ReLU after the
layer makes `D` zero wherever it is off: for each column `q` of `Q`, `L q` vanishes on about half of all units, while
for a generic direction it vanishes on none. There are two ways to find such directions:

* sampling: if `B - 1` random rows of `L` all vanish for one example, their null vector is its `q` (SPEAR);
* from a guess, minimize `sum_i |L_i q|^p` on the sphere, p < 1, by reweighted least squares: with weights
  `w_i = (|L_i q|^2 + e^2)^(p/2 - 1)`, iterate `q <- (L^T diag(w) L)^(-1) q` while `e` shrinks. In coordinates with
  `L^T L = 1`, only its sparsity distinguishes a direction;
* from a guess of the example's input, which tells for which units the ReLU is probably off: the entries `L_i q` are a
  mixture of two normal distributions, a narrow one of the units that are off and a wide one, and expectation
  maximization finds `q` and both widths (`settled`).

Noise of standard deviation `s` in the gradient is noise of `s / sigma_k` in column `k` of `L`, for the singular
values `sigma`. It adds `sum_i w_i s^2 / sigma^2` to the diagonal of `L^T diag(w) L`, which `settled` subtracts.

References:
  Dimitrov, Baader, Mueller, Vechev: SPEAR: Exact Gradient Inversion of Batches in Federated Learning. NeurIPS 2024,
  arXiv:2403.03945.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.types import Array

OVERSAMPLING = 10
"""Columns of a sketch beyond the rank."""
ROUNDING = 10.0
"""Rounding errors of a gradient's entries, in units of its resolution and its root mean square."""
_EDGE = 1.05
_FROM_INPUTS, _PRIOR = 5.0, 1.5
_EXPONENT = 0.5
_SMALLEST = 1e-30  # squares of zeros stay invertible


class Factors(NamedTuple):
    """A low-rank matrix as `left @ right`, from a singular value decomposition.

    Attributes:
      left: `[units, B]` with orthonormal columns.
      right: `[B, features]`.
      sizes: `[B + 1]` singular values, descending; the last one is the error of the rank-`B` approximation.
      noise: `[]` standard deviation of the matrix's entries around one of low rank.
      strength: `[]` root mean square of the matrix's entries.
    """

    left: Array
    right: Array
    sizes: Array
    noise: Array | float = 0.0
    strength: Array | float = 0.0


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
    outside_basis = jnp.sum(jnp.square(matrix - basis @ (basis.T @ matrix)))
    free = max(1, math.prod(size - basis.shape[1] for size in matrix.shape))
    return Factors(
        (basis @ left)[:, :rank],
        sizes[:rank, None] * right[:rank],
        sizes[: rank + 1],
        jnp.sqrt(outside_basis / free),
        jnp.sqrt(jnp.mean(jnp.square(matrix))),
    )


def rank_above_noise(factors: Factors, num_features: int, *, resolution: float) -> Array:
    """Number of singular values, up to `B + 1`, above those of noise and of rounding errors: `[]` int32.

    Args:
      factors: of a matrix `[units, features]`.
      num_features: of the matrix.
      resolution: of the client's arithmetic.
    """
    edge = _EDGE * factors.noise * (math.sqrt(len(factors.left)) + math.sqrt(num_features))
    return jnp.sum(factors.sizes > jnp.maximum(30 * resolution * factors.sizes[0], edge)).astype(jnp.int32)


class Mixture(NamedTuple):
    """A factorized gradient with the thresholds for zeros.

    Attributes:
      left: `[units, B]`, orthonormal columns.
      right: `[B, features]`.
      alive: `[units]` bool, whether a unit has a non-zero gradient.
      tolerance: `[B]`, entries of `left @ q` below `|q * tolerance|` count as zero.
      least_zeros: `[]`, a direction with fewer zeros among living units belongs to no example.
      noise: `[B]`, the standard deviation of noise in an entry of each column of `left`.
    """

    left: Array
    right: Array
    alive: Array
    tolerance: Array
    least_zeros: Array
    noise: Array


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
    of_columns = jnp.full(batch_size, tolerance)
    return Mixture(
        factors.left, factors.right, alive, of_columns, _least_zeros(alive, inactive, batch_size), of_columns / 10
    )


def noisy_mixture(factors: Factors, *, inactive: Array, resolution: float) -> Mixture:
    """Takes the noise of every column from that of the gradient, or from rounding where that is larger.

    Args:
      factors: factors of the gradient.
      inactive: see `mixture`.
      resolution: of the client's arithmetic.
    """
    num_units, batch_size = factors.left.shape
    noise = jnp.maximum(jnp.maximum(factors.noise, ROUNDING * resolution * factors.strength), _SMALLEST)
    of_columns = jnp.maximum(noise / jnp.maximum(factors.sizes[:batch_size], noise), 1e-10 / math.sqrt(num_units))
    # Noise alone gives a row a squared length of `B` with a standard deviation of `sqrt(2 B)`.
    alive = jnp.linalg.norm(factors.left / of_columns[None], axis=1) > math.sqrt(batch_size) + 6
    tolerance = jnp.where(factors.noise > noise / 2, 5.0, 10.0) * of_columns
    return Mixture(
        factors.left, factors.right, alive, tolerance, _least_zeros(alive, inactive, batch_size), of_columns
    )


def _least_zeros(alive: Array, inactive: Array, batch_size: int) -> Array:
    """A dead unit is off for every example, and any direction can vanish on `B - 1` living ones."""
    return jnp.maximum(inactive * len(alive) - jnp.sum(~alive), batch_size + 2)


def tolerance_of(mixed: Mixture, directions: Array) -> Array:
    """Below which entries of `left @ q` count as zero, for directions `[n, B]`: `[n]`."""
    return jnp.linalg.norm(directions * mixed.tolerance[None], axis=1)


def settled(mixed: Mixture, guesses: Array, outputs: Array, *, wanted: Array, num_steps: int) -> Array:
    """Moves each guess to the direction whose zeros are where its example's ReLU is off, by expectation maximization.

    Args:
      mixed: from `noisy_mixture`.
      guesses: `[n, B]`.
      outputs: `[n, units]` estimates of the layer's outputs for these examples, in any positive scale. Units with
        negative ones are probably off; later only a mild prior remains of them.
      wanted: `[n]` bool, which guesses to process.
      num_steps: steps after the first, which relies on `outputs` alone.

    Returns:
      `[n, B]` of length one; zeros where not wanted.
    """
    left, alive = mixed.left, mixed.alive.astype(mixed.left.dtype)
    tiny = 1e-12

    def vanishing(direction: Array, weight: Array, num_solves: int) -> Array:
        """Inverse iteration towards the smallest weighted norm of `left @ q`, apart from noise."""
        gram = (left * weight[:, None]).T @ left - jnp.diag(jnp.sum(weight) * mixed.noise**2)
        gram = gram + 1e-14 * jnp.trace(gram) * jnp.eye(len(gram), dtype=gram.dtype)
        factored = jax.scipy.linalg.lu_factor(gram)
        for _ in range(num_solves):
            direction = _unit(jax.scipy.linalg.lu_solve(factored, direction))
        return direction

    def one(guess: Array, outputs: Array) -> Array:
        likely_on = outputs / jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(outputs))), _SMALLEST)
        first = alive * jax.nn.sigmoid(-_FROM_INPUTS * likely_on)
        direction = vanishing(_unit(guess), first, 4)
        entries = left @ direction
        mean = jnp.sum(alive * jnp.abs(entries)) / jnp.maximum(jnp.sum(alive), 1)
        widths = (0.25 * mean**2, 2 * jnp.sum(entries**2) / jnp.maximum(jnp.sum(alive), 1))

        def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
            direction, narrow, wide = state
            squares = (left @ direction) ** 2
            narrow = jnp.maximum(narrow, jnp.sum((direction * mixed.noise) ** 2))
            wide = jnp.maximum(wide, 4 * narrow)
            odds = 0.5 * jnp.log(wide / narrow) - 0.5 * squares * (1 / narrow - 1 / wide) - _PRIOR * likely_on
            off = alive * jnp.clip(jax.nn.sigmoid(odds), tiny, 1 - tiny)
            direction = vanishing(direction, off + (alive - off) * narrow / wide, 2)
            squares = (left @ direction) ** 2
            narrow = jnp.sum(off * squares) / jnp.maximum(jnp.sum(off), tiny)
            wide = jnp.sum((alive - off) * squares) / jnp.maximum(jnp.sum(alive - off), tiny)
            return (direction, narrow, wide), None

        return lax.scan(step, (direction, *widths), None, length=num_steps)[0][0]

    def if_wanted(example: tuple[Array, Array, Array]) -> Array:
        guess, outputs, is_wanted = example
        return lax.cond(is_wanted, one, lambda guess, outputs: jnp.zeros_like(guess), guess, outputs)

    return lax.map(if_wanted, (guesses, outputs, wanted))  # sequentially, the weighted matrix stays in a CPU's cache


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
    left, tolerance = mixed.left, jnp.max(mixed.tolerance)

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
    is_on = jnp.abs(directions @ mixed.left.T) >= tolerance_of(mixed, directions)[:, None]
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


def num_zeros(mixed: Mixture, directions: Array) -> Array:
    """Number of zeros of each direction `[n, B]` among living units: `[n]`; 0 unless the direction has length one."""
    is_unit = jnp.abs(jnp.linalg.norm(directions, axis=1) - 1) < 1e-6
    zeros = (jnp.abs(directions @ mixed.left.T) < tolerance_of(mixed, directions)[:, None]) & mixed.alive[None, :]
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
    zeros = num_zeros(mixed, candidates)

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


def unit_rows(rows: Array) -> Array:
    """Scales rows to length one; zero rows stay zero."""
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1.0)
