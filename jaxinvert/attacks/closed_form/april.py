"""APRIL: recovers one image from a Vision Transformer's update in closed form, using its position embeddings.

Tokens are `z = x W + b + e` with a learnable position embedding `e` for each patch. For one image, the gradient of
the position embeddings equals that of the tokens, `G = dL/dz [n, d]`. If the tokens enter self-attention and nothing
else, `G = dQ W_q^T + dK W_k^T + dV W_v^T`, and with `dL/dW_q = z^T dQ`, and so on,

    z^T G = dL/dW_q W_q^T + dL/dW_k W_k^T + dL/dW_v W_v^T,

which is linear in `z` (APRIL, Theorem 1); then `x W = z - e - b` is linear in the patches. The patch embedding layer
gives an equation that does not involve attention and holds for any norms and skips after it:

    x^T G = dL/dW.

Both are solvable if `G` has rank `n`, the number of patches, which requires a width of at least `n`.

References:
  Lu, Zhang, Zhao, He, Cheng: APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers. CVPR 2022,
  arXiv:2112.14087. The second equation is not in the paper.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.attacks.closed_form.certificate import Status, certify, first_doubt
from jaxinvert.attacks.closed_form.precision import in_float64
from jaxinvert.attacks.problem import Problem, declare, require_single_example
from jaxinvert.models.vit import from_patches
from jaxinvert.observation.observe import require
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import (
    Array,
    Batch,
    Key,
    Observation,
    Params,
    Reconstruction,
    SolveFn,
    Update,
)

PROJECTIONS = ("query", "key", "value")


class Layout(NamedTuple):
    """Paths of the layers that the attacks read in a transformer's parameters.

    Attributes:
      patches: path of the dense patch embedding, `kernel [patch * patch * C, d]` and `bias [d]`.
      positions: path of the position embeddings `[n, d]`.
      attention: path of the first attention, with the dense layers `query`, `key` and `value`.
      first_norm: path of an optional norm before that attention.
      head: path of the last dense layer, with a bias.
    """

    patches: str = "params/patches"
    positions: str = "params/positions"
    attention: str = "params/attention_0"
    first_norm: str = "params/attention_norm_0"
    head: str = "params/head"


VIT = Layout()
"""The layout of `models.vit`."""


_Leaves = Mapping[str, Array]
_Equation = Callable[[_Leaves, _Leaves, Layout, Array], Array]
"""`(parameters, gradients, layout, pseudo-inverse of G [d, n]) -> patches [n, patch * patch * C]`."""


@declare(reports=("certified", "status", "rank"))
def april(problem: Problem, *, layout: Layout = VIT) -> SolveFn:
    """APRIL: closed form from the first attention of a Vision Transformer, exact for one example (Lu et al. 2022).

    The tokens must enter self-attention without a norm before it or a skip connection around it (vit-plain).

    Works: for one example, without a norm or a skip connection before the first attention. A certificate says whether
    the result is right.

    Fails: on batches, under noise, and with a norm or a skip connection before the first attention.

    Args:
      problem: one example; its `client_update` is simulated for the certificate.
      layout: paths of the layers.

    A skip around the first attention is not visible in the parameters; the result is then wrong and not certified.
    The label is the class whose entry in the gradient of the head's bias is negative.

    The reconstruction's `attack_loss` is the relative error of the re-simulated update (`inf` if there is none). Its
    `info` has `certified`, `status` (`certificate.Status`), the `rank` of `G`, and its `conditioning`: the smallest
    of its `n` singular values over the largest; rounding of the update is amplified by the inverse.

    Raises:
      ValueError: for more than one example; at trace time, if the update lacks a layer of the layout or has the norm,
        if the patches do not tile the images, or if the width is less than the number of patches or of values per
        patch.
    """
    return _from_positions(problem, _patches_by_attention, check_attention, layout=layout, name="april")


@declare(reports=("certified", "status", "rank"))
def patch_embedding(problem: Problem, *, layout: Layout = VIT) -> SolveFn:
    """Closed form from a Vision Transformer's patch and position embeddings, exact for one example.

    It reads the patch embedding instead of the attention: norms and skip connections do not matter.

    Works: for one example, with norms and skip connections, too. A certificate says whether the result is right.

    Fails: on batches and under noise.

    Args:
      problem: see `april`, also for results and errors.
      layout: paths of the layers; `attention` is not read.
    """
    return _from_positions(problem, _patches_by_embedding, check_positions, layout=layout, name="patch_embedding")


def _patches_by_attention(weights: _Leaves, gradients: _Leaves, layout: Layout, inverse: Array) -> Array:
    kernels = [f"{layout.attention}/{name}/kernel" for name in PROJECTIONS]
    right_side = jnp.sum(jnp.stack([gradients[kernel] @ weights[kernel].T for kernel in kernels]), axis=0)
    tokens = (right_side @ inverse).T
    embedded = tokens - weights[layout.positions] - weights[f"{layout.patches}/bias"][None]
    return embedded @ jnp.linalg.pinv(weights[f"{layout.patches}/kernel"])


def _patches_by_embedding(weights: _Leaves, gradients: _Leaves, layout: Layout, inverse: Array) -> Array:
    del weights
    return (gradients[f"{layout.patches}/kernel"] @ inverse).T


def _from_positions(
    problem: Problem, equation: _Equation, check: Callable[..., None], *, layout: Layout, name: str
) -> SolveFn:
    """What both attacks share: the inverse of the positions' gradient, the image, its label and a certificate."""
    require_single_example(problem, attack=name)
    image_shape, mean_image, std_image = problem.image_shape, problem.mean_image, problem.std_image

    def solve(key: Key, observation: Observation) -> Reconstruction:
        del key
        params = require(observation, "params", attack=name)
        check(observation.update, image_shape, attack=name, layout=layout)
        resolution = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(observation.update))

        def exact(params: Params, update: Update) -> Reconstruction:
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(update)]))
            readable = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0.0), update)
            weights, gradients = leaves_by_path(params), leaves_by_path(readable)
            left, sizes, right = jnp.linalg.svd(gradients[layout.positions], full_matrices=False)
            rank = jnp.sum(sizes > 30 * resolution * sizes[0]).astype(jnp.int32)
            # Directions with singular values near rounding still hold part of the image; null directions hold none.
            used = sizes > resolution * sizes[0]
            inverse = (right.T * jnp.where(used, 1 / jnp.where(used, sizes, 1.0), 0.0)[None]) @ left.T
            patches = equation(weights, gradients, layout, inverse)
            image = from_patches(patches[None], image_shape) * std_image + mean_image
            inputs = jnp.clip(jnp.where(jnp.isfinite(image), image, 0.0), 0.0, 1.0)
            labels = lax.argmin(gradients[f"{layout.head}/bias"].astype(jnp.float32), 0, jnp.int32)[None]
            doubt = first_doubt(
                {
                    Status.NOT_FINITE: ~finite,
                    Status.ZERO: rank == 0,
                    Status.UNDETERMINED: rank < len(sizes),
                }
            )
            tolerance = max(1e3 * resolution, 1e-8)
            certificate = certify(
                problem.client_update, params, update, Batch(inputs, labels), tolerance=tolerance, doubt=doubt
            )
            return Reconstruction(
                inputs,
                labels,
                certificate.relative_error,
                info={
                    "certified": certificate.certified,
                    "status": certificate.status,
                    "rank": rank,
                    "conditioning": sizes[-1] / jnp.where(sizes[0] > 0, sizes[0], 1.0),
                },
            )

        return in_float64(exact)(params, observation.update)

    return solve


def where_exact(problem: Problem) -> SolveFn | None:
    """`patch_embedding` for one example of a network that it reads, else `None`."""
    params = jax.eval_shape(problem.model.init, jax.random.key(0))
    try:
        check_positions(params, problem.image_shape, attack="patch_embedding")
    except ValueError:
        return None
    return patch_embedding(problem) if problem.num_examples == 1 else None


def check_positions(tree: object, image_shape: tuple[int, ...], *, attack: str, layout: Layout = VIT) -> None:
    """Raises ValueError for a network without learnable position embeddings for patches, or with too narrow ones.

    Args:
      tree: parameters or update.
      image_shape: `(H, W, C)`.
      attack: name of the attack, for messages.
      layout: paths of the layers.

    Raises:
      ValueError: naming the missing or mismatched layer.
    """
    kernel = f"{layout.patches}/kernel"
    shapes = _shapes_of(tree, [kernel, f"{layout.patches}/bias", layout.positions, f"{layout.head}/bias"], attack)
    (num_patches, width), num_numbers = shapes[layout.positions], shapes[kernel][0]
    rows, columns, channels = image_shape
    side = math.isqrt(num_numbers // channels)
    if num_numbers != side**2 * channels or (rows // side) * (columns // side) != num_patches:
        raise ValueError(
            f"{attack}: {num_patches} patches of {num_numbers} values (from {layout.positions} and {kernel}) do not "
            f"form an image of shape {image_shape}"
        )
    if width < num_patches:
        raise ValueError(
            f"{attack} needs tokens at least as wide as the number of patches, {num_patches}; got {width}"
        )


def check_attention(tree: object, image_shape: tuple[int, ...], *, attack: str, layout: Layout = VIT) -> None:
    """`check_positions`, and raises ValueError for a norm before attention or tokens narrower than patches.

    Args:
      tree: parameters or update.
      image_shape: `(H, W, C)`.
      attack: name of the attack, for messages.
      layout: paths of the layers.

    Raises:
      ValueError: naming the missing or mismatched layer.
    """
    check_positions(tree, image_shape, attack=attack, layout=layout)
    kernel = f"{layout.patches}/kernel"
    shapes = _shapes_of(tree, [f"{layout.attention}/{name}/kernel" for name in PROJECTIONS], attack)
    if any(path.startswith(f"{layout.first_norm}/") for path in shapes):
        raise ValueError(
            f"{attack} needs tokens that enter self-attention unnormalized, as in vit-plain; this model has "
            f"{layout.first_norm} before it"
        )
    num_numbers, width = shapes[kernel]
    if width < num_numbers:
        raise ValueError(
            f"{attack} needs tokens at least as wide as the number of values in a patch, {num_numbers}; got {width}"
        )


def _shapes_of(tree: object, needed: list[str], attack: str) -> dict[str, tuple[int, ...]]:
    """Shapes by path; raises ValueError if a needed one is missing."""
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(tree).items()}
    if missing := [path for path in needed if path not in shapes]:
        raise ValueError(
            f"{attack} needs a Vision Transformer with learnable position embeddings; this model lacks {missing}"
        )
    return shapes
