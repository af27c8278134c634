"""SPEAR and `exact_batch`: exact, certified recovery of batches from a first dense layer with ReLU.

The gradient of the layer and its bias is `[dL/dW; dL/db]^T = D^T [X, 1]` of rank `B`, with `D [B, units]` the
gradients of its outputs and `X [B, features]` its inputs. A factorization `L R` of it has `D^T = L Q` and
`[X, 1] = Q^(-1) R`. ReLU makes every column of `D^T` sparse, which determines `Q` up to order and scale of its
columns (`sparse_directions`); the scale follows from the last column of `[X, 1]`. Re-simulating the client certifies
the result.

`spear` samples its candidates, as published; its cost grows like `2^B`. `exact_batch` starts from the independent
components of the images' spatial differences (`separation`). Its cost is a low power of `B`; it is this package's
own method, and like SPEAR++ it searches for a complete sparse dictionary instead of sampling. Noise that hides no
singular value of the gradient is measured from what exceeds rank `B`: the result is then as exact as it allows.

References:
  Dimitrov, Baader, Mueller, Vechev: SPEAR: Exact Gradient Inversion of Batches in Federated Learning. NeurIPS 2024,
  arXiv:2403.03945.
  Bakarsky, Dimitrov, Baader, Vechev: SPEAR++: Scaling Gradient Inversion via Sparsely-Used Dictionary Learning. 2025,
  arXiv:2510.24200: gradient inversion as dictionary learning; its algorithms are others.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.attacks.closed_form import sparse_directions as sparse
from jaxinvert.attacks.closed_form.certificate import Status, certify_within, first_doubt, labels_by_layer
from jaxinvert.attacks.closed_form.first_layer import find_first_layer, read_first_layer
from jaxinvert.attacks.closed_form.independent_components import spatial_differences
from jaxinvert.attacks.closed_form.precision import in_float64
from jaxinvert.attacks.closed_form.separation import separated
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.observation.observe import require
from jaxinvert.types import (
    Array,
    Batch,
    Key,
    Observation,
    Params,
    Reconstruction,
    Scalar,
    SolveFn,
    Update,
)

_WALK_STEPS = 40
_POLISH_STEPS = 5
_ANY_UNIT = 2**30
_CONSISTENT = 0.99
_FEW = 6
_ROUNDED, _NUDGES = 1e-6, 8


class Separator(NamedTuple):
    """A method that finds the directions of examples.

    Attributes:
      draw: `key -> noise`, all random numbers.
      mixture: `(factors, inactive, resolution) -> Mixture`.
      separate: `(mixture, outputs_of, noise, num_rounds) -> (basis, directions)`, where `outputs_of` maps inputs with
        their constant `[n, features + 1]`, in any scale, to the layer's outputs `[n, units]`.
    """

    draw: Callable[[Key], Any]
    mixture: Callable[[sparse.Factors, Array, float], sparse.Mixture]
    separate: Callable[[sparse.Mixture, Callable[[Array], Array], Any, Array], tuple[sparse.Basis, Array]]


@declare(reports=("certified", "status", "num_found", "rank", "pattern_agreement", "noise"))
def spear(
    problem: Problem,
    *,
    inactive: Scalar = 0.25,
    num_samples: int = 4096,
    max_rounds: int = 64,
    layer: str | None = None,
) -> SolveFn:
    """SPEAR: exact, certified small batches of a ReLU perceptron, by sampling (Dimitrov et al. 2024).

    Directions are sampled from at most `num_samples x max_rounds` random submatrices.

    Works: on small batches through a first dense layer with ReLU, exactly: the result is certified by simulating the
    client again.

    Fails: on larger batches, since its cost grows like `2^B`, under noise, and without ReLU.

    Args:
      problem: its `client_update` is simulated for the certificate, its model's loss for the labels.
      inactive: the minimum share of units in [0, 1] that are inactive for an example.
      num_samples: submatrices of `B - 1` rows per round.
      max_rounds: maximum number of rounds; the search ends once all examples are found.
      layer: path of the layer; by default the only one that reads images of this shape.

    The reconstruction has the recovered labels, and `attack_loss` is the relative error of the re-simulated update
    (`inf` if there is none). Its `info` has `certified`, `status` (`certificate.Status`), the number of directions
    `num_found`, the `rank` of the layer's update above noise, counted up to `B + 1`, `pattern_agreement`: the share
    of pairs of units and examples for which `D` is zero exactly where the ReLU is inactive, and `noise`: the standard
    deviation of noise in the layer's update, in units of its root mean square.

    Raises:
      ValueError: at trace time, if the update has no such layer, or it has fewer units than the batch has examples.
    """
    separator = _by_sampling(problem.num_examples, num_samples=num_samples, max_rounds=max_rounds)
    return _certified(problem, separator, inactive=inactive, max_rounds=max_rounds, layer=layer, name="spear")


@declare(reports=("certified", "status", "num_found", "rank", "pattern_agreement", "noise"))
def exact_batch(
    problem: Problem, *, inactive: Scalar = 0.25, max_rounds: int = 12, layer: str | None = None
) -> SolveFn:
    """Exact, certified batches of a ReLU perceptron, by independent components and sparsity; this library's own.

    Up to `B = 6`, where a few random samples suffice, it starts from those instead of independent components.

    Works: on batches through a first dense layer with ReLU and about eight units per example, exactly and certified,
    at a cost of a low power of `B`; under noise as exactly as it allows, and after local steps of a small rate.

    Fails: where the layer has few units per example, where noise hides singular values, and without ReLU. Under noise
    nothing is certified.

    Args:
      problem: see `spear`, also for results and errors. Neighboring pixels of the images are assumed to be mostly
        similar, as in photographs.
      inactive: the minimum share of units in [0, 1] that are inactive for an example.
      max_rounds: how often the separation of missing examples is repeated.
      layer: path of the layer; by default the only one that reads images of this shape.

    Examples that were not found are returned as their independent components: not exact, and not certified.
    """
    if problem.num_examples <= _FEW:
        separator = _by_sampling(problem.num_examples, num_samples=512, max_rounds=max_rounds)
    else:
        separator = _by_independence(problem, max_rounds=max_rounds)
    return _certified(problem, separator, inactive=inactive, max_rounds=max_rounds, layer=layer, name="exact_batch")


def _by_independence(problem: Problem, *, max_rounds: int) -> Separator:
    """From independent components of the images, in the complement of those found before."""
    size = problem.num_examples

    def separate(
        mixed: sparse.Mixture, outputs_of: Callable[[Array], Array], noise: Any, num_rounds: Array
    ) -> tuple[sparse.Basis, Array]:
        return separated(
            mixed,
            outputs_of,
            separable=lambda rows: spatial_differences(rows[:, :-1], problem.image_shape),
            noise=noise,
            num_rounds=num_rounds,
        )

    return Separator(
        draw=lambda key: jax.random.normal(key, (max_rounds + 1, size, size)),
        mixture=lambda factors, inactive, resolution: sparse.noisy_mixture(
            factors, inactive=inactive, resolution=resolution
        ),
        separate=separate,
    )


def _by_sampling(batch_size: int, *, num_samples: int, max_rounds: int) -> Separator:
    """From null vectors of random rows."""

    def draw(key: Key) -> dict[str, Array]:
        rows, shifts, last = jax.random.split(key, 3)
        return {
            "rows": jax.random.randint(rows, (num_samples, batch_size - 1), 0, _ANY_UNIT),
            "shifts": jax.random.randint(shifts, (max_rounds, batch_size - 1), 0, _ANY_UNIT),
            "last": jax.random.normal(last, (num_samples, batch_size)),
        }

    def propose(mixed: sparse.Mixture, basis: sparse.Basis, noise: dict[str, Array], i: Array) -> Array:
        # One random table of units; every round shifts its columns by different random amounts.
        living_first, num_alive = jnp.argsort(~mixed.alive), jnp.maximum(jnp.sum(mixed.alive), 1)
        rows = living_first[(noise["rows"] + noise["shifts"][i][None, :]) % num_alive]
        drawn = sparse.null_vectors(mixed.left, rows, noise["last"])
        loose = 100 * mixed.tolerance  # rounding grows in the small systems
        chosen = sparse.sparsest_basis(mixed._replace(tolerance=loose), jnp.concatenate([basis.directions, drawn]))
        return sparse.sparsest_near(
            mixed, chosen.directions, wanted=chosen.found, num_steps=_POLISH_STEPS, start=jnp.max(loose)
        )

    def separate(
        mixed: sparse.Mixture, outputs_of: Callable[[Array], Array], noise: dict[str, Array], num_rounds: Array
    ) -> tuple[sparse.Basis, Array]:
        """Collects directions until each vanishes where the ReLU of its example is off.

        A direction that is inexact, or mixes two examples, may still give nearly correct inputs. The correct
        direction vanishes where the ReLU is off for these inputs, so each round also starts from the direction that
        does.
        """

        def outputs_along(directions: Array) -> Array:
            return outputs_of(jnp.linalg.solve(directions.T, mixed.right))

        def is_open(state: tuple[sparse.Basis, Array, Array]) -> Array:
            basis, directions, i = state
            agreement = sparse.pattern_agreement(mixed, directions, outputs_along(directions))
            return ~(jnp.all(basis.found) & jnp.all(agreement > _CONSISTENT)) & (i < num_rounds)

        def step(state: tuple[sparse.Basis, Array, Array]) -> tuple[sparse.Basis, Array, Array]:
            basis, directions, i = state
            outputs = outputs_along(directions)
            wrong = sparse.pattern_agreement(mixed, directions, outputs) <= _CONSISTENT
            guesses = sparse.vanishing_where(mixed, outputs < 0)
            candidates = [
                basis.directions,
                propose(mixed, basis, noise, i),
                sparse.sparsest_near(mixed, guesses, wanted=wrong, num_steps=_WALK_STEPS),
            ]
            basis = sparse.sparsest_basis(mixed, jnp.concatenate(candidates))
            return basis, sparse.completed(basis), i + 1

        basis = sparse.empty_basis(mixed)
        if batch_size == 1:  # nothing to separate
            return basis, sparse.completed(basis)
        basis, directions, _ = lax.while_loop(is_open, step, (basis, sparse.completed(basis), jnp.int32(0)))
        return basis, directions

    return Separator(draw, lambda factors, inactive, resolution: sparse.mixture(factors, inactive=inactive), separate)


def _certified(
    problem: Problem, separator: Separator, *, inactive: Scalar, max_rounds: int, layer: str | None, name: str
) -> SolveFn:
    """What both attacks share: from an update to factors, and from directions to images, labels, a certificate."""
    batch_size, image_shape = problem.num_examples, problem.image_shape
    num_features = math.prod(image_shape)

    def solve(key: Key, observation: Observation) -> Reconstruction:
        params = require(observation, "params", attack=name)
        path, num_units = find_first_layer(observation.update, image_shape, attack=name, layer=layer)
        if num_units < batch_size:
            raise ValueError(
                f"{name} separates at most as many examples as the layer has units: {path!r} has {num_units}, the "
                f"batch {batch_size}"
            )
        sketch_key, separator_key, nudge_key = jax.random.split(key, 3)
        sketch = jax.random.normal(sketch_key, (num_features + 1, batch_size + sparse.OVERSAMPLING))
        nudges = _ROUNDED * jax.random.normal(nudge_key, (_NUDGES, *problem.batch_shape))
        resolution = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(observation.update))

        def exact(
            params: Params, update: Update, sketch: Array, noise: Any, inactive: Array, nudges: Array
        ) -> Reconstruction:
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(update)]))
            first = read_first_layer(Observation(params, update), image_shape, attack=name, layer=layer)
            gradient = jnp.concatenate([first.kernel_gradient, first.bias_gradient[None]]).T
            factors = sparse.factorize(jnp.where(finite, gradient, 0.0), sketch, rank=batch_size)
            rank = sparse.rank_above_noise(factors, num_features + 1, resolution=resolution)
            mixed = separator.mixture(factors, inactive, resolution)

            def outputs_of(augmented: Array) -> Array:
                return _flat_inputs(augmented) @ first.kernel + first.bias[None]

            rounds = jnp.where(rank < batch_size, 0, max_rounds)  # `B` independent directions need rank `B`
            basis, directions = separator.separate(mixed, outputs_of, noise, rounds)
            augmented = jnp.linalg.solve(directions.T, mixed.right)
            flat, scales = _flat_inputs(augmented), augmented[:, -1]
            inputs = jnp.clip(flat.reshape(problem.batch_shape) * problem.std_image + problem.mean_image, 0.0, 1.0)
            output_gradients = (directions @ mixed.left.T) * scales[:, None]

            labels = labels_by_layer(
                problem.model.loss,
                params,
                inputs,
                output_gradients,
                layer=path,
                num_classes=problem.model.num_classes,
            )
            doubt = first_doubt(
                {
                    Status.NOT_FINITE: ~finite,
                    Status.ZERO: rank == 0,
                    Status.LOW_RANK: rank < batch_size,
                    Status.HIGH_RANK: rank > batch_size,
                    Status.NOISY: jnp.greater(factors.noise, 30 * resolution * factors.strength),
                    Status.INCOMPLETE: ~jnp.all(basis.found),
                }
            )
            tolerance = max(1e3 * resolution, 1e-8)
            certificate = certify_within(
                problem.client_update, params, update, Batch(inputs, labels), nudges, tolerance=tolerance, doubt=doubt
            )
            agreement = sparse.pattern_agreement(mixed, directions, outputs_of(augmented))
            return Reconstruction(
                inputs,
                labels,
                certificate.relative_error,
                info={
                    "certified": certificate.certified,
                    "status": certificate.status,
                    "num_found": jnp.sum(basis.found).astype(jnp.int32),
                    "rank": rank,
                    "pattern_agreement": jnp.mean(agreement),
                    "noise": factors.noise / jnp.where(factors.strength > 0, factors.strength, 1.0),
                },
            )

        noise, least = separator.draw(separator_key), jnp.asarray(inactive, jnp.float32)
        return in_float64(exact)(params, observation.update, sketch, noise, least, nudges)

    return solve


def _flat_inputs(augmented: Array) -> Array:
    """Inputs `[n, features]` from inputs with their constant, in any scale, which is scaled to 1."""
    scales = augmented[:, -1:]
    flat = augmented[:, :-1] / jnp.where(scales == 0, 1.0, scales)
    return jnp.where(jnp.isfinite(flat), flat, 0.0)
