"""The closed form for dense layers: the gradient of a dense layer with a bias contains the layer's input.

For `y = W h + b` and one example, `dL/dW_i = (dL/dy_i) h` and `dL/db_i = dL/dy_i` for every unit `i`, hence

    h = (dL/dW_i) / (dL/db_i)     wherever dL/db_i != 0,

for any network after the layer (Geiping et al. 2020, Proposition 3.1; Phong et al. 2017). In a batch, the quotient is
the mean of the inputs weighted by `dL/dy_i`. A unit that only one example activates yields exactly that example. Two
such units of one example agree, while mixtures almost never do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.attacks.closed_form.first_layer import read_first_layer
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.observation.observe import check_update, require
from jaxinvert.types import Array, Key, Observation, Reconstruction, SolveFn

_SKETCH_DIMENSIONS = 16


class UnitInputs(NamedTuple):
    """The estimates of a dense layer's input, one per unit.

    Attributes:
      inputs: `[units, features]`, the quotient of each unit; 0 for invalid units.
      valid: `[units]` bool, whether the unit's bias gradient is large enough to divide by.
      weight: `[units]` `|dL/db_i|`, a measure of the quotient's accuracy under rounding.
    """

    inputs: Array
    valid: Array
    weight: Array


class Candidates(NamedTuple):
    """Distinct inputs among the units' quotients, most trustworthy first.

    Attributes:
      inputs: `[num_candidates, features]`.
      valid: `[num_candidates]` bool; false where the units hold fewer distinct inputs.
      num_units: `[num_candidates]` number of units that agree on the input. A single unit may hold a mixture; several
        agree on a mixture only if their gradients are proportional over the batch (as in softmax regression from a
        zero start), which is rare in networks with trained or random hidden layers.
    """

    inputs: Array
    valid: Array
    num_units: Array


def unit_inputs(kernel_gradient: Array, bias_gradient: Array, *, tolerance: float | None = None) -> UnitInputs:
    """Computes the quotient `dL/dW_i / dL/db_i` of every unit of a dense layer.

    Args:
      kernel_gradient: `[features, units]`, Flax's layout.
      bias_gradient: `[units]`.
      tolerance: a unit is valid if its `|dL/db_i|` exceeds `tolerance` times the largest one; by default a
        thousand times the dtype's resolution.

    | bias gradient       | valid                      |
    |---------------------|----------------------------|
    | 0 (unit is off)     | no                         |
    | all 0               | no unit                    |
    | NaN or inf          | no, other units unaffected |
    """
    # Updates in half precision are divided in float32.
    dtype = jnp.promote_types(bias_gradient.dtype, jnp.float32)
    weight = reliability(bias_gradient, tolerance=tolerance).astype(dtype)
    kernel_gradient, bias_gradient = kernel_gradient.astype(dtype), bias_gradient.astype(dtype)
    valid = (weight > 0) & jnp.all(jnp.isfinite(kernel_gradient), axis=0)
    quotient = kernel_gradient.T / jnp.where(valid, bias_gradient, 1.0)[:, None]
    return UnitInputs(jnp.where(valid[:, None], quotient, 0.0), valid, jnp.where(valid, weight, 0.0))


def reliability(bias_gradient: Array, *, tolerance: float | None = None) -> Array:
    """`|dL/db_i|` of the valid units, 0 for the others: `[units]`.

    Args:
      bias_gradient: `[units]`.
      tolerance: see `unit_inputs`.
    """
    if tolerance is None:
        tolerance = min(1e3 * float(jnp.finfo(bias_gradient.dtype).eps), 0.1)
    weight = jnp.where(jnp.isfinite(bias_gradient), jnp.abs(bias_gradient), 0)
    return jnp.where(weight > tolerance * jnp.max(weight), weight, 0)


def single_input(kernel_gradient: Array, bias_gradient: Array) -> tuple[Array, Array]:
    """The layer's input for an update of one example, from the unit with the largest bias gradient alone.

    Args:
      kernel_gradient: `[features, units]`.
      bias_gradient: `[units]`.

    Returns:
      The input `[features]`, zeros if invalid, and whether it is valid: the unit has a non-zero bias gradient and a
      finite kernel gradient.
    """
    dtype = jnp.promote_types(bias_gradient.dtype, jnp.float32)
    unit = jnp.argmax(jnp.abs(jnp.where(jnp.isfinite(bias_gradient), bias_gradient, 0)))
    divisor = bias_gradient[unit].astype(dtype)
    gradient = kernel_gradient[:, unit].astype(dtype)
    valid = jnp.isfinite(divisor) & (divisor != 0) & jnp.all(jnp.isfinite(gradient))
    return jnp.where(valid, gradient / jnp.where(valid, divisor, 1.0), 0.0), valid


def distinct_inputs(
    key: Key,
    units: UnitInputs,
    *,
    num_candidates: int,
    plausible: Array | None = None,
    tolerance: float | None = None,
) -> Candidates:
    """Merges units that agree on their input, and ranks the distinct inputs.

    Units agree if their quotients are equal up to `tolerance`. They are compared after a random projection to 16
    dimensions (Johnson-Lindenstrauss), which avoids a `[units, units, features]` array. Candidates are ranked by
    plausibility, then by the number of units that agree, then by `|dL/db_i|`.

    Args:
      key: for the projection.
      units: from `unit_inputs`.
      num_candidates: number of candidates to return.
      plausible: `[units]` bool, such as "all pixels are in range"; by default all units are plausible.
      tolerance: relative distance up to which two inputs are equal; by default ten thousand times the dtype's
        resolution (1e-3 in float32, 2e-12 in float64).
    """
    num_units, num_features = units.inputs.shape
    dtype = units.inputs.dtype
    if tolerance is None:
        tolerance = 1e4 * float(jnp.finfo(dtype).eps)
    plausible = jnp.ones(num_units, bool) if plausible is None else plausible
    projection = jax.random.normal(key, (num_features, _SKETCH_DIMENSIONS), jnp.float32).astype(dtype)
    sketch = jnp.matmul(units.inputs, projection, precision="highest")
    distance = jnp.linalg.norm(sketch[:, None, :] - sketch[None, :, :], axis=-1)
    size = jnp.linalg.norm(sketch, axis=-1)
    close = distance <= tolerance * jnp.maximum(size[:, None], size[None, :])
    agree = close & units.valid[:, None] & units.valid[None, :]
    votes = jnp.sum(agree, axis=1)

    largest = jnp.maximum(jnp.max(units.weight), jnp.finfo(dtype).tiny)
    rank = plausible * (num_units + 1) + votes + 0.5 * units.weight / largest

    def take_best(available: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        unit = jnp.argmax(jnp.where(available, rank, -1.0))
        return available & ~agree[unit], (unit, available[unit])

    _, (chosen, valid) = lax.scan(take_best, units.valid, None, length=num_candidates)
    return Candidates(jnp.where(valid[:, None], units.inputs[chosen], 0.0), valid, jnp.where(valid, votes[chosen], 0))


def unexplained_share(kernel_gradient: Array, bias_gradient: Array | None, inputs: Array, valid: Array) -> Array:
    """Relative norm of the part of a dense layer's gradient outside the span of `inputs`: `[]` in [0, 1].

    The rows `(dL/dW_i, dL/db_i)` of a true batch lie in the span of the rows `(h_b, 1)`, so the value is 0 for a
    complete and correct reconstruction, and the attacker can compute it. Zero is necessary, not sufficient: mixtures
    of the true inputs span the same rows.

    Args:
      kernel_gradient: `[features, units]`.
      bias_gradient: `[units]`, or `None` for a layer without bias, whose rows lie in the span of the `h_b`.
      inputs: `[B, features]`.
      valid: `[B]` bool; invalid inputs are ignored. The result is 1 if none is valid or the gradient is zero.
    """
    dtype = jnp.promote_types(kernel_gradient.dtype, jnp.float32)
    parts, spanning = [kernel_gradient.astype(dtype)], inputs.astype(dtype)
    if bias_gradient is not None:
        parts.append(bias_gradient.astype(dtype)[None])
        spanning = jnp.concatenate([spanning, jnp.ones_like(spanning[:, :1])], axis=1)
    directions = _orthonormal_rows(spanning * valid[:, None])
    axes = [directions[:, : inputs.shape[1]], directions[:, inputs.shape[1] :]]
    # The kernel's gradient is by far the largest array here; it must be neither copied nor transposed.
    coordinates = sum(jnp.matmul(*pair, precision="highest") for pair in zip(axes, parts))

    def residual(part: Array, along: Array) -> Array:
        if len(along) == 1:  # an elementwise product is fused, so the outer product is never stored
            return part - along.T * coordinates
        return part - jnp.matmul(along.T, coordinates, precision="highest")

    size = sum(jnp.sum(jnp.square(part)) for part in parts)
    unexplained = sum(jnp.sum(jnp.square(residual(*pair))) for pair in zip(parts, axes))
    share = jnp.sqrt(unexplained / jnp.where(size > 0, size, 1.0))
    return jnp.where((size > 0) & jnp.any(valid), share, 1.0)


def _orthonormal_rows(rows: Array) -> Array:
    """Orthonormal rows with the span of `rows [B, N]`, padded with zero rows to `[B, N]`."""
    if len(rows) == 1:
        length = jnp.linalg.norm(rows)
        return rows / jnp.where(length > 0, length, 1.0)
    _, sizes, directions = jnp.linalg.svd(rows, full_matrices=False)
    # Repeated rows give singular values that are zero up to rounding, with arbitrary directions.
    independent = sizes > 1e3 * jnp.finfo(rows.dtype).eps * sizes[0]
    return jnp.where(independent[:, None], directions, 0.0)


@declare(simulates=False, any_loss=True, reports=("valid", "num_units"))
def dense_layer(problem: Problem, *, layer: str | None = None) -> SolveFn:
    """Closed form from a first dense layer with bias, exact for one example (Phong et al. 2017, Geiping et al. 2020).

    For larger batches it returns the `B` highest-ranked distinct inputs, which are exact for every example that is
    the only one to activate some unit. Reads `observation.params` (for checks) and `.update`; no labels.

    Works: where the network begins with a dense layer with bias.

    Fails: on batches, unless only one example activates a unit, and under noise.

    Args:
      problem: its network applies the layer to the (normalized, flattened) inputs.
      layer: path of the layer in the update, such as `"params/dense_0"`; it must hold `kernel` and `bias`. By
        default the only one with as many input features as an image has values.

    The reconstruction's `attack_loss` is `unexplained_share`; `info["valid"]` and `info["num_units"]` are `[B]`.

    Raises:
      ValueError: at trace time, if the update has no such layer, or it does not read images of this shape.
    """
    batch_shape, batch_size, image_shape = problem.batch_shape, problem.num_examples, problem.image_shape
    mean_image, std_image = problem.mean_image, problem.std_image

    def solve(key: Key, observation: Observation) -> Reconstruction:
        check_update(require(observation, "params", attack="dense_layer"), observation.update)
        first = read_first_layer(observation, image_shape, attack="dense_layer", layer=layer)
        kernel_gradient, bias_gradient = first.kernel_gradient, first.bias_gradient
        if batch_size == 1:  # every unit holds the same input, and one division gives it
            only, valid = single_input(kernel_gradient, bias_gradient)
            num_units = jnp.where(valid, jnp.sum(reliability(bias_gradient) > 0), 0)
            best = Candidates(only[None], valid[None], num_units[None])
        else:
            units = unit_inputs(kernel_gradient, bias_gradient)
            images = units.inputs.reshape(-1, *image_shape) * std_image + mean_image
            slack = 1e-3
            in_range = (images >= -slack) & (images <= 1 + slack)
            plausible = jnp.all(in_range.reshape(images.shape[0], -1), axis=1)
            best = distinct_inputs(key, units, num_candidates=batch_size, plausible=plausible)
        inputs = best.inputs.reshape(batch_shape) * std_image + mean_image
        return Reconstruction(
            inputs=jnp.clip(inputs, 0.0, 1.0),
            labels=None,  # candidates come in an order of their own
            attack_loss=unexplained_share(kernel_gradient, bias_gradient, best.inputs, best.valid),
            info={"valid": best.valid, "num_units": best.num_units},
        )

    return solve
