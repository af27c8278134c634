"""The Cocktail Party Attack: separates images mixed in a dense layer's gradient by independent component analysis.

The rows of the gradient span the same space as the inputs, `dL/dW^T = D^T X`. Whitened and rotated to the most
independent components, they are the inputs up to scale and order. The bias gradient mixes a constant 1 in the same
way and gives the scale. The activation and later layers are arbitrary, and batches may have hundreds of images; the
result is approximate.

The paper maximizes negentropy by gradient descent, with total variation and decorrelation penalties. This is the
fixed point of FastICA on *spatial differences*, which are sparser and less dependent than pixels
(`independent_components`); it serves the penalties' purpose and has no weights to tune.

References:
  Kariyappa, Guo, Maeng, Xiong, Suh, Qureshi, Lee: Cocktail Party Attack: Breaking Aggregation-Based Privacy in
  Federated Learning Using Independent Component Analysis. ICML 2023, arXiv:2209.05578.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinvert.attacks.closed_form.dense import unexplained_share
from jaxinvert.attacks.closed_form.first_layer import read_first_layer
from jaxinvert.attacks.closed_form.independent_components import independent_components, spatial_differences
from jaxinvert.attacks.closed_form.sparse_directions import OVERSAMPLING, factorize
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.observation.observe import check_update, require
from jaxinvert.types import Array, Key, Observation, Reconstruction, SolveFn


@declare(simulates=False, any_loss=True, reports=("valid",))
def cocktail_party(problem: Problem, *, layer: str | None = None, num_steps: int = 200) -> SolveFn:
    """Cocktail party: large batches from the independent components of a dense layer (Kariyappa et al. 2023).

    The layer has a bias and reads the (normalized, flattened) inputs.

    Works: approximately, on hundreds of images, where the network begins with a dense layer that has as many units.

    Fails: where the batch has more images than the layer has units. Results are never exact.

    Args:
      problem: at most as many images as the layer has units.
      layer: path of the layer; by default the only one that reads images of this shape.
      num_steps: steps of the fixed-point iteration.

    The reconstruction's `attack_loss` is `dense.unexplained_share`: it measures whether the right space was found,
    not whether it was unmixed. Reads `observation.params` (for checks) and `.update`.

    Raises:
      ValueError: at trace time, if the update has no such layer, or it has fewer units than the batch has examples.
    """
    batch_shape, batch_size, image_shape = problem.batch_shape, problem.num_examples, problem.image_shape

    def solve(key: Key, observation: Observation) -> Reconstruction:
        check_update(require(observation, "params", attack="cocktail_party"), observation.update)
        first = read_first_layer(observation, image_shape, attack="cocktail_party", layer=layer)
        if (num_units := len(first.bias)) < batch_size:
            raise ValueError(
                f"cocktail_party needs a layer of at least {batch_size} units, as many as images; "
                f"this one has {num_units}"
            )
        flat, usable = unmixed_inputs(
            key,
            first.kernel_gradient,
            first.bias_gradient,
            separable=lambda rows: spatial_differences(rows, image_shape),
            batch_size=batch_size,
            num_steps=num_steps,
        )
        return Reconstruction(
            inputs=jnp.clip(flat.reshape(batch_shape) * problem.std_image + problem.mean_image, 0.0, 1.0),
            labels=None,  # components come in an order of their own
            attack_loss=unexplained_share(first.kernel_gradient, first.bias_gradient, flat, usable),
            info={"valid": usable},
        )

    return solve


def unmixed_inputs(
    key: Key,
    kernel_gradient: Array,
    bias_gradient: Array,
    *,
    separable: Callable[[Array], Array],
    batch_size: int,
    num_steps: int,
) -> tuple[Array, Array]:
    """Recovers the inputs of a biased dense layer by independent component analysis.

    Args:
      key: for the range finder and the start.
      kernel_gradient: `[features, units]`, with at least `B` units.
      bias_gradient: `[units]`.
      separable: linear map of rows `[B, features]` to centered samples `[B, N]` in which they are independent.
      batch_size: `B`.
      num_steps: fixed-point iterations.

    Returns:
      The inputs `[B, features]` in any order, zeros for those not found, and whether each was found, `[B]`.
    """
    sketch_key, start_key = jax.random.split(key)
    dtype = jnp.promote_types(kernel_gradient.dtype, jnp.float32)
    gradient = jnp.concatenate([kernel_gradient, bias_gradient[None]]).T.astype(dtype)
    sketch = jax.random.normal(sketch_key, (gradient.shape[1], batch_size + OVERSAMPLING), dtype)
    mixtures = factorize(gradient, sketch, rank=batch_size).right
    mixtures = mixtures / jnp.maximum(jnp.linalg.norm(mixtures, axis=1, keepdims=True), jnp.finfo(dtype).tiny)
    unmixing = independent_components(
        jax.random.normal(start_key, (batch_size, batch_size), dtype),
        separable(mixtures[:, :-1]),
        num_components=batch_size,
        num_steps=num_steps,
    )
    sources = unmixing @ mixtures
    usable = jnp.all(jnp.isfinite(sources), axis=1) & (sources[:, -1] != 0)
    inputs = sources[:, :-1] / jnp.where(usable, sources[:, -1], 1.0)[:, None]
    return jnp.where(usable[:, None], inputs, 0.0), usable
