r"""Objectives: distances between a simulated update `g` and the observed one `g*`, minimized by gradient matching.

Every objective is `(simulated, observed) -> []` and zero if the updates agree (except `sign_margin`, which compares
signs only). Sums run over all tensors of the update together unless the name says otherwise. The last functions are
for an attacker who knows the client's defense.

| update              | cosine, angular | squared_l2, l1 |
|---------------------|-----------------|----------------|
| g = c g*, c > 0     | 0               | > 0 unless c=1 |
| g = 0 or g* = 0     | 1, 1/2          | \|g - g*\|     |
| g = -g*             | 2, 1            |                |
| NaN or inf anywhere | NaN             | NaN or inf     |
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxinvert.trees import leaves_by_path, path_name, tree_inner, tree_norm, tree_squared_norm, tree_sum
from jaxinvert.types import Array, ArrayTree, Objective, Scalar, Update


def squared_l2(simulated: Update, observed: Update) -> Array:
    """`sum (g - g*)^2`: Deep Leakage from Gradients (Zhu, Liu, Han 2019)."""
    return tree_squared_norm(jax.tree.map(jnp.subtract, simulated, observed))


def l1(simulated: Update, observed: Update) -> Array:
    """`sum |g - g*|`, less sensitive to a few large differences than `squared_l2`."""
    return tree_sum(jax.tree.map(lambda g, g_star: jnp.abs(g - g_star), simulated, observed))


_NEAR = 1e-2
"""Cosine distance below which `1 - <., .>` has lost six bits or more of float32's 24."""


@jax.custom_jvp
def cosine(simulated: Update, observed: Update) -> Array:
    """`1 - <g, g*> / (|g| |g*|)`, one cosine over all tensors (Geiping et al. 2020, equation 4).

    Near zero, where `1 - <., .>` would round to multiples of 6e-8, it is computed as half the squared distance of the
    two unit vectors: equal in exact arithmetic, and accurate to float32's relative precision.
    """
    scale, scale_star = _unit_scale(simulated), _unit_scale(observed)
    distance = 1 - tree_inner(simulated, observed) * scale * scale_star

    def half_squared_chord() -> Array:
        gap = jax.tree.map(lambda g, g_star: g * scale - g_star * scale_star, simulated, observed)
        return 0.5 * tree_squared_norm(gap).astype(distance.dtype)

    defined = (scale != 0) & (scale_star != 0)
    near = defined & (distance < _NEAR)
    return jax.lax.cond(near, half_squared_chord, lambda: jnp.where(defined, distance, 1.0))


@cosine.defjvp
def _cosine_jvp(primals: tuple[Update, Update], tangents: tuple[Update, Update]) -> tuple[Array, Array]:
    """The derivative as one weighted sum of the updates; differentiating `gap` would read and write them thrice."""
    simulated, observed = primals
    distance = cosine(simulated, observed)
    scale, scale_star = _unit_scale(simulated), _unit_scale(observed)

    def along(tangent: Update, this: Update, this_scale: Array, other: Update, other_scale: Array) -> Array:
        weight, other_weight = (1 - distance) * this_scale * this_scale, this_scale * other_scale
        slope = jax.tree.map(lambda a, b: weight * a - other_weight * b, this, other)
        return tree_inner(slope, tangent)

    return distance, (
        along(tangents[0], simulated, scale, observed, scale_star)
        + along(tangents[1], observed, scale_star, simulated, scale)
    )


def kernel_cosine(simulated: Update, observed: Update) -> Array:
    """`cosine` over kernels, which are tensors with two or more axes; over all tensors if no kernel was sent.

    Gradients of biases and normalization parameters carry the size of the error but little spatial information, and
    may dominate the update, for example in an untrained ConvNet.
    """
    kernels = [leaf for leaf in jax.tree.leaves(observed) if leaf.ndim > 1]
    others = jnp.where(tree_squared_norm(kernels) == 0, 1.0, 0.0)
    chosen = partial(jax.tree.map, lambda leaf: leaf if leaf.ndim > 1 else leaf * others)
    return cosine(chosen(simulated), chosen(observed))


_LARGEST_FACTOR = 100.0


def balanced_cosine(simulated: Update, observed: Update, *, share: Scalar = 0.3) -> Array:
    """`cosine` after each tensor of biases or norms is multiplied, so that all have `share` of the kernels' norm.

    Kernels carry the spatial information, but may not determine contrast: behind a ReLU network with zero biases, and
    an error that is one number (two classes, or a regression), all kernels' gradients at `c x` are those at `x` times
    the same factor. The biases' gradients have another factor. With a fixed share they count in every network and
    dominate none, and each of `n` tensors that were sent with `share / sqrt(n)` alike: behind norms of each example
    only the first one tells contrast. Both updates are multiplied by the same numbers, which depend on the observed
    one alone.

    Args:
      simulated: `g`.
      observed: `g*`.
      share: norm of all biases and normalization parameters together, relative to the kernels' norm. They are
        multiplied by 100 at most: a bias in front of BatchNorm in train mode has a gradient of rounding errors only.
    """
    return cosine(*balanced(simulated, observed, share=share))


def balanced(simulated: Update, observed: Update, *, share: Scalar = 0.3) -> tuple[Update, Update]:
    """Both updates with biases and norms multiplied as `balanced_cosine` compares them."""
    kernels = tree_norm([leaf for leaf in jax.tree.leaves(observed) if leaf.ndim > 1])
    sent = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(observed) if leaf.ndim <= 1]
    each = share * kernels / jnp.sqrt(jnp.maximum(sum(sent, jnp.zeros((), int)), 1))

    def factor(leaf: Array) -> Array:
        norm = tree_norm(leaf)
        found = jnp.minimum(each / jnp.where(norm == 0, 1.0, norm), _LARGEST_FACTOR)
        return jnp.where((kernels == 0) | (norm == 0) | (leaf.ndim > 1), 1.0, found)

    factors = jax.tree.map(factor, observed)
    weighed = partial(jax.tree.map, lambda by, leaf: leaf * by.astype(leaf.dtype), factors)
    return weighed(simulated), weighed(observed)


def _unit_scale(update: Update) -> Array:
    """`1 / |update|`; 0 for a zero update, NaN if the norm overflows, which would otherwise match everything."""
    norm = tree_norm(update)
    return jnp.where(norm == 0, 0.0, 1 / jnp.where(norm == 0, 1.0, jnp.where(jnp.isinf(norm), jnp.nan, norm)))


def angular(simulated: Update, observed: Update) -> Array:
    """Angle between `g` and `g*` as a share of pi: `[]` in [0, 1].

    With cosine distance `c`, the angle is `2 arcsin(sqrt(c / 2))`, which is accurate at small angles; at exactly zero
    or pi, where the angle has no derivative, the gradient is 0.
    """
    half_chord_squared = cosine(simulated, observed) / 2
    inside = (half_chord_squared > 0) & (half_chord_squared < 1)
    half_chord = jnp.sqrt(jnp.where(inside, half_chord_squared, 0.5))
    at_the_ends = jnp.where(half_chord_squared >= 1, jnp.pi, 0.0 * half_chord_squared)  # NaN stays NaN
    return jnp.where(inside, 2 * jnp.arcsin(half_chord), at_the_ends) / jnp.pi


def layerwise_cosine(simulated: Update, observed: Update) -> Array:
    """Mean of the tensors' cosine distances, so small tensors count as much as large ones.

    Tensors whose observed update is exactly zero (not trained, or not sent) are ignored.
    """
    observed_leaves = jax.tree.leaves(observed)
    distances = [cosine(g, g_star) for g, g_star in zip(jax.tree.leaves(simulated), observed_leaves, strict=True)]
    sent = [jnp.any(g_star != 0).astype(jnp.float32) for g_star in observed_leaves]
    return sum(s * d for s, d in zip(sent, distances)) / jnp.maximum(sum(sent), 1.0)


def mean_scaled_l2(simulated: Update, observed: Update) -> Array:
    """`sum_l |g_l / mean|g_l| - g*_l / mean|g*_l||^2`: invariant to each tensor's scale (Zhao et al. 2022, DLM+).

    A tensor that is zero stays zero; one whose norm overflows gives NaN.
    """

    def unit(leaf: Array) -> Array:
        size = jnp.where(jnp.isinf(tree_norm(leaf)), jnp.nan, jnp.mean(jnp.abs(leaf)))
        return leaf / jnp.where(size == 0, 1.0, size)

    return squared_l2(jax.tree.map(unit, simulated), jax.tree.map(unit, observed))


def tensor_norms(simulated: Update, observed: Update) -> Array:
    """`sum_l |g_l - g*_l|`, the sum of the tensors' Euclidean norms, not squared (Yin et al. 2021)."""
    gaps = jax.tree.map(jnp.subtract, simulated, observed)
    return sum((tree_norm(gap) for gap in jax.tree.leaves(gaps)), start=jnp.zeros(()))


def layer_subset(objective: Objective, keep: Callable[[str], bool]) -> Objective:
    """Restricts an objective to the tensors whose path (such as `"params/head/kernel"`) `keep` accepts.

    Raises:
      ValueError: at trace time, if no tensor is kept.
    """

    def kept(update: Update) -> list[Array]:
        return [leaf for path, leaf in leaves_by_path(update).items() if keep(path)]

    def restricted(simulated: Update, observed: Update) -> Array:
        if not (leaves := kept(simulated)):
            paths = list(leaves_by_path(simulated))
            raise ValueError(f"layer_subset keeps no tensor of the update; its paths are {paths}")
        return objective(leaves, kept(observed))

    return restricted


def layer_weighted(objective: Objective, weight: Callable[[str], Scalar]) -> Objective:
    """The objective with every tensor of both updates multiplied by `weight(path)`; 0 ignores a tensor.

    The authors of Inverting Gradients provide weights that grow from the first layer to the last.
    """

    def weighed(update: Update) -> Update:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: weight(path_name(path)) * leaf, update)

    def weighted(simulated: Update, observed: Update) -> Array:
        return objective(weighed(simulated), weighed(observed))

    return weighted


def largest_tensors(objective: Objective, num_tensors: int) -> Objective:
    """Restricts an objective to the `num_tensors` tensors with the largest *observed* norm.

    The observed update alone determines them; they may differ between targets under vmap.

    Raises:
      ValueError: for fewer than one tensor.
    """
    if num_tensors < 1:
        raise ValueError(f"largest_tensors keeps at least 1 tensor, got {num_tensors}")

    def restricted(simulated: Update, observed: Update) -> Array:
        norms = jnp.stack([tree_squared_norm(leaf) for leaf in jax.tree.leaves(observed)])
        rank = jnp.argsort(jnp.argsort(-norms))
        kept = [(place < num_tensors).astype(norms.dtype) for place in rank]
        mask = jax.tree.unflatten(jax.tree.structure(observed), kept)
        return masked(objective, mask)(simulated, observed)

    return restricted


def masked(objective: Objective, mask: ArrayTree) -> Objective:
    """Restricts an objective to the entries where `mask` (0/1, same tree as the update, broadcastable) is set."""

    def restricted(simulated: Update, observed: Update) -> Array:
        return objective(
            jax.tree.map(lambda g, m: g * m, simulated, mask),
            jax.tree.map(lambda g_star, m: g_star * m, observed, mask),
        )

    return restricted


def sign_margin(simulated: Update, observed: Update, *, margin: float = 0.3) -> Array:
    """`mean max(0, margin - u sign g*)`, `u = g / mean |g_l|`: a hinge loss on wrong or weakly correct signs.

    Signs carry no sizes, so every tensor is in units of its mean absolute value. An entry observed as zero, for
    example of a dead unit, costs `|u|`.

    Args:
      simulated: `g`.
      observed: `g*`; only its signs are read.
      margin: in units of a tensor's mean absolute value; with 0, an update near zero would be a minimum.
    """

    def wrong(g: Array, g_star: Array) -> Array:
        overflows = jnp.isinf(tree_norm(g)) | jnp.isinf(tree_norm(g_star))
        size = jnp.where(overflows, jnp.nan, jnp.mean(jnp.abs(g)))
        unit = g / jnp.where(size == 0, 1, size)
        return jnp.sum(jnp.where(g_star == 0, jnp.abs(unit), jnp.maximum(0, margin - unit * jnp.sign(g_star))))

    num_entries = sum(leaf.size for leaf in jax.tree.leaves(observed))
    return tree_sum(jax.tree.map(wrong, simulated, observed)) / num_entries


REGISTRY: dict[str, Objective] = {
    "angular": angular,
    "cosine": cosine,
    "l1": l1,
    "layerwise-cosine": layerwise_cosine,
    "mean-scaled-l2": mean_scaled_l2,
    "sign-margin": sign_margin,
    "squared-l2": squared_l2,
    "tensor-norms": tensor_norms,
}
