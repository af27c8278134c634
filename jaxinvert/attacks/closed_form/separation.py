"""Separates a gradient's factors into examples, from independent components of the images and the zeros of ReLU.

With `L` and `R` the factors of a dense layer's gradient, an example has a row `a` with `a R` its input, and a column
`q` with `L q` its gradients at the layer's outputs; all rows and columns are inverse matrices. Each round

1. guesses the rows `a` of missing examples as independent components, which photographs nearly are;
2. simulates the layer on these inputs: where it is clearly off, `L q` vanishes, which gives a first `q`;
3. moves each `q` to the nearest direction whose zeros explain `L q` (`sparse_directions.settled`), and behind a
   layer of few units per example also to the nearest sparse direction of the inverse of the rows `a`;
4. keeps the sparsest independent ones, and drops those whose zeros contradict their input once all are found.

A row of a missing example is orthogonal to the columns of all that were found. The next round searches the
complement, where fewer components remain to be told apart, so that components which were mixed come out better. A
mixture of two examples that was kept hides both; late rounds therefore guess all examples afresh now and then.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.attacks.closed_form import sparse_directions as sparse
from jaxinvert.attacks.closed_form.independent_components import independent_components
from jaxinvert.types import Array

_ICA_STEPS, _TURN = 600, 1e-5
_SETTLING_STEPS, _WALK_STEPS = 10, 40
_UNITS_EACH = 8
_CONSISTENT = 0.95
_TRUSTED = 0.4
_AFRESH = 6


class _Round(NamedTuple):
    """State between rounds.

    Attributes:
      basis: directions found, not yet doubted.
      done: `[]` bool.
      number: `[]` int32.
    """

    basis: sparse.Basis
    done: Array
    number: Array


def separated(
    mixed: sparse.Mixture,
    preactivations: Callable[[Array], Array],
    *,
    separable: Callable[[Array], Array],
    noise: Array,
    num_rounds: Array,
) -> tuple[sparse.Basis, Array]:
    """Finds the direction of every example, in at most `num_rounds` rounds.

    Args:
      mixed: from `sparse_directions.noisy_mixture`.
      preactivations: inputs of the layer with their constant, `[n, features]` in any scale, to its outputs
        `[n, units]`, for inputs scaled to a constant of 1.
      separable: linear map of rows `[B, features]` to centered samples `[B, N]` in which examples are independent.
      noise: `[max_rounds + 1, B, B]` normal.
      num_rounds: `[]`, at most `max_rounds`.

    Returns:
      The directions found, and all `B` directions including guesses.
    """
    num_units, batch_size = mixed.left.shape
    is_narrow = num_units < _UNITS_EACH * batch_size

    def guess(basis: sparse.Basis, number: Array) -> tuple[Array, Array]:
        """Directions and rows `a` of all examples; those of missing ones are guesses."""
        complement = sparse.outside(basis)
        samples = separable(complement @ mixed.right)
        samples = samples / jnp.maximum(jnp.max(jnp.abs(samples)), jnp.finfo(samples.dtype).tiny)
        # Float32 suffices for a guess and halves the time of the many steps.
        unmixing = independent_components(
            noise[number].astype(jnp.float32),
            samples.astype(jnp.float32),
            num_components=batch_size - jnp.sum(basis.found),
            num_steps=_ICA_STEPS,
            tolerance=_TURN,
        ).astype(samples.dtype)
        # Its first rows are zero, one per direction found; adding the span makes it invertible.
        rows = sparse.unit_rows(unmixing) @ complement + basis.span
        guesses = jnp.linalg.inv(rows).T
        guesses = sparse.unit_rows(jnp.where(jnp.isfinite(guesses), guesses, 0.0))
        return jnp.where(basis.found[:, None], basis.directions, guesses), rows

    def without_contradictions(basis: sparse.Basis) -> tuple[sparse.Basis, Array]:
        """Drops directions whose zeros contradict their input, and whether there were none; for a whole basis."""
        outputs = preactivations(jnp.linalg.inv(basis.directions.T) @ mixed.right)
        agreement = sparse.pattern_agreement(mixed, basis.directions, outputs)
        # Local steps and noise lower the agreement of all.
        consistent = agreement > jnp.minimum(_CONSISTENT, jnp.median(agreement) + _CONSISTENT - 1)
        kept = jnp.where(consistent[:, None], basis.directions, 0.0)
        return sparse.sparsest_basis(mixed, kept), jnp.all(consistent)

    def step(state: _Round) -> _Round:
        afresh = (state.number >= _AFRESH) & (state.number % 3 == 0)
        known = jax.tree.map(lambda empty, found: jnp.where(afresh, empty, found), start.basis, state.basis)
        guesses, rows = guess(known, state.number)
        settled = sparse.settled(
            mixed, guesses, preactivations(rows @ mixed.right), wanted=~known.found, num_steps=_SETTLING_STEPS
        )
        # A mixture of two examples vanishes where both are off: at first, only sparser directions are trusted.
        least = (_TRUSTED - 0.03 * state.number) * jnp.sum(mixed.alive)
        strict = mixed._replace(least_zeros=jnp.maximum(mixed.least_zeros, least))
        candidates = [state.basis.directions, settled]
        if is_narrow:
            candidates.append(sparse.sparsest_near(mixed, guesses, wanted=~known.found, num_steps=_WALK_STEPS))
        basis = sparse.sparsest_basis(strict, jnp.concatenate(candidates))
        basis, done = lax.cond(
            jnp.all(basis.found), without_contradictions, lambda basis: (basis, jnp.array(False)), basis
        )
        return _Round(basis, done, state.number + 1)

    start = _Round(sparse.empty_basis(mixed), jnp.array(False), jnp.int32(0))
    if batch_size == 1:  # nothing to separate
        return start.basis, sparse.completed(start.basis)
    end = lax.while_loop(lambda state: ~state.done & (state.number < num_rounds), step, start)
    directions = lax.cond(
        jnp.all(end.basis.found),
        lambda basis, number: basis.directions,
        lambda basis, number: guess(basis, number)[0],
        end.basis,
        end.number,
    )
    return end.basis, directions
