r"""Distances between a simulated update `g` and the observed one `g*`: what gradient matching minimizes.

Every objective is `(simulated, observed) -> []`, zero where the updates agree (but for `sign_margin`, which sees
signs only). Sums run over all tensors of the update together unless the name says otherwise. At the end are those of
an attacker who knows what a defense did to the observed update.

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

from jaxinvert.types import Array, ArrayTree, Objective, Scalar, Update, path_name


def tree_sum(tree: ArrayTree) -> Array:
    """Sums all elements of all leaves: `[]`."""
    return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))


def tree_inner(left: ArrayTree, right: ArrayTree) -> Array:
    """Inner product over all leaves: `[]`."""
    return tree_sum(jax.tree.map(jnp.vdot, left, right))


def scaled(tree: ArrayTree, factor: Scalar) -> ArrayTree:
    """Every leaf times `factor`."""
    return jax.tree.map(lambda leaf: leaf * factor, tree)


def tree_squared_norm(tree: ArrayTree) -> Array:
    """Squared Euclidean norm over all leaves: `[]`.

    As inner products, which a CPU computes several times faster than sums of squares of large tensors.
    """
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))


def tree_norm(tree: ArrayTree) -> Array:
    """Euclidean norm over all leaves, with gradient 0 (not NaN) at zero: `[]`. NaN in any leaf gives NaN."""
    squared = tree_squared_norm(tree)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


def squared_l2(simulated: Update, observed: Update) -> Array:
    """`sum (g - g*)^2`: Deep Leakage from Gradients (Zhu, Liu, Han 2019)."""
    return tree_squared_norm(jax.tree.map(jnp.subtract, simulated, observed))


def l1(simulated: Update, observed: Update) -> Array:
    """`sum |g - g*|`, less swayed by a few large differences than `squared_l2`."""
    return tree_sum(jax.tree.map(lambda g, g_star: jnp.abs(g - g_star), simulated, observed))


_NEAR = 1e-2
"""Cosine distance below which `1 - <., .>` has lost six bits or more of float32's 24."""


@jax.custom_jvp
def cosine(simulated: Update, observed: Update) -> Array:
    """`1 - <g, g*> / (|g| |g*|)`, one cosine over all tensors (Geiping et al. 2020, equation 4).

    Near zero, where `1 - <., .>` would round to multiples of 6e-8, computed as half the squared distance of the two
    unit vectors: the same number, but accurate to float32's relative precision.
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
    """The derivative is one weighted sum of the two updates; through `gap` it would be read and written thrice."""
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
    """`cosine` over kernels, tensors of two or more axes; over all tensors if no kernel was sent.

    Gradients of biases and of norms' parameters say how wrong the network was and little of where, and may be most of
    the update, as behind an untrained ConvNet.
    """
    kernels = [leaf for leaf in jax.tree.leaves(observed) if leaf.ndim > 1]
    others = jnp.where(tree_squared_norm(kernels) == 0, 1.0, 0.0)
    chosen = partial(jax.tree.map, lambda leaf: leaf if leaf.ndim > 1 else leaf * others)
    return cosine(chosen(simulated), chosen(observed))


def _unit_scale(update: Update) -> Array:
    """`1 / |update|`; 0 for a zero update, and NaN where the norm overflows, which would else match everything."""
    norm = tree_norm(update)
    return jnp.where(norm == 0, 0.0, 1 / jnp.where(norm == 0, 1.0, jnp.where(jnp.isinf(norm), jnp.nan, norm)))


def angular(simulated: Update, observed: Update) -> Array:
    """Angle between `g` and `g*` as a share of pi: `[]` in [0, 1].

    With `c` the cosine distance the angle is `2 arcsin(sqrt(c / 2))`, which keeps its precision at small angles;
    at exactly zero or pi, where the angle has no derivative, the gradient is 0.
    """
    half_chord_squared = cosine(simulated, observed) / 2
    inside = (half_chord_squared > 0) & (half_chord_squared < 1)
    half_chord = jnp.sqrt(jnp.where(inside, half_chord_squared, 0.5))
    at_the_ends = jnp.where(half_chord_squared >= 1, jnp.pi, 0.0 * half_chord_squared)  # NaN stays NaN
    return jnp.where(inside, 2 * jnp.arcsin(half_chord), at_the_ends) / jnp.pi


def layerwise_cosine(simulated: Update, observed: Update) -> Array:
    """Mean of the cosine distances of the single tensors, so that small tensors count as much as large ones.

    Tensors whose observed update is exactly zero (not trained, or not sent) are left out.
    """
    observed_leaves = jax.tree.leaves(observed)
    distances = [cosine(g, g_star) for g, g_star in zip(jax.tree.leaves(simulated), observed_leaves, strict=True)]
    sent = [jnp.any(g_star != 0).astype(jnp.float32) for g_star in observed_leaves]
    return sum(s * d for s, d in zip(sent, distances)) / jnp.maximum(sum(sent), 1.0)


def mean_scaled_l2(simulated: Update, observed: Update) -> Array:
    """`sum_l |g_l / mean|g_l| - g*_l / mean|g*_l||^2`: blind to the scale of every tensor (Zhao et al. 2022, DLM+).

    A tensor that is zero stays zero; one whose norm overflows gives NaN.
    """

    def unit(leaf: Array) -> Array:
        size = jnp.where(jnp.isinf(tree_norm(leaf)), jnp.nan, jnp.mean(jnp.abs(leaf)))
        return leaf / jnp.where(size == 0, 1.0, size)

    return squared_l2(jax.tree.map(unit, simulated), jax.tree.map(unit, observed))


def tensor_norms(simulated: Update, observed: Update) -> Array:
    """`sum_l |g_l - g*_l|`, Euclidean norms of the single tensors, not squared (Yin et al. 2021)."""
    gaps = jax.tree.map(jnp.subtract, simulated, observed)
    return sum((tree_norm(gap) for gap in jax.tree.leaves(gaps)), start=jnp.zeros(()))


def layer_subset(objective: Objective, keep: Callable[[str], bool]) -> Objective:
    """Restricts an objective to the tensors whose path (such as `"params/head/kernel"`) `keep` accepts.

    Raises:
      ValueError: at trace time, if no tensor is kept.
    """

    def kept(update: Update) -> list[Array]:
        return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(update) if keep(path_name(path))]

    def restricted(simulated: Update, observed: Update) -> Array:
        if not (leaves := kept(simulated)):
            paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(simulated)]
            raise ValueError(f"layer_subset keeps no tensor of the update; its paths are {paths}")
        return objective(leaves, kept(observed))

    return restricted


def layer_weighted(objective: Objective, weight: Callable[[str], Scalar]) -> Objective:
    """Multiplies every tensor of both updates by `weight(path)` first; 0 leaves a tensor out.

    The authors of Inverting Gradients offer weights that grow from the first layer to the last.
    """

    def weighed(update: Update) -> Update:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: weight(path_name(path)) * leaf, update)

    def weighted(simulated: Update, observed: Update) -> Array:
        return objective(weighed(simulated), weighed(observed))

    return weighted


def largest_tensors(objective: Objective, num_tensors: int) -> Objective:
    """Restricts an objective to the `num_tensors` tensors with the largest *observed* norm.

    Which these are is decided by the observed update alone, and may differ between targets under vmap.

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


def gaussian_likelihood(spread: Callable[[Array], Scalar]) -> Objective:
    """`sum_l |g_l - g*_l|^2 / (2 sigma_l^2)`: minus the logarithm of the likelihood under known normal noise.

    At the truth twice its value is chi-squared, with as many degrees of freedom as the update has entries.

    Args:
      spread: `sigma_l` of an observed tensor, `[...] -> []` in units of the update; where it is 0, the tensor is left
        out (a tensor that is not trained has neither gradient nor noise in units of it).
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        return 0.5 * tree_squared_norm((g - g_star) * _inverse(spread(g_star), g.dtype))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))


def whitened_l2(scales: ArrayTree) -> Objective:
    """`sum_l |g_l - g*_l|^2 / (2 sigma_l^2)` as `gaussian_likelihood`, for deviations that are known beforehand.

    Args:
      scales: `sigma_l`, a scalar for every tensor of the update; where it is 0, the tensor is left out.
    """

    def unlikely(g: Array, g_star: Array, scale: Array) -> Array:
        return 0.5 * tree_squared_norm((g - g_star) * _inverse(scale, g.dtype))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed, scales))


def laplace_likelihood(spread: Callable[[Array], Scalar]) -> Objective:
    """`sum_l |g_l - g*_l|_1 / b_l`: minus the logarithm of the likelihood under known Laplace noise.

    Args:
      spread: `b_l` of an observed tensor, the noise's mean absolute value; else as in `gaussian_likelihood`.
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        return jnp.sum(jnp.abs(g - g_star)) * _inverse(spread(g_star), g.dtype)

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))


def _inverse(spread: Scalar, dtype: jnp.dtype) -> Array:
    """`1 / spread`, 0 for 0."""
    spread = jnp.asarray(spread, dtype)
    return jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1), 0)


def relative(objective: Objective) -> Objective:
    """`objective(g, g*) / objective(0, g*)`: 1 for an update of nothing, whatever the units of the objective.

    The order of reconstructions stays; the weight of a regularizer means the same for every strength of the noise.
    """

    def share(simulated: Update, observed: Update) -> Array:
        nothing = objective(jax.tree.map(jnp.zeros_like, observed), observed)
        return objective(simulated, observed) / jnp.where(nothing == 0, 1.0, nothing)

    return share


def of_unknown_scale(distance: Callable[..., Array]) -> Callable[..., Array]:
    """`log distance`, for residuals whose size is not known: a prior then has the same say at every distance.

    If an objective sums squares of `n` normal residuals whose variance is set to its most likely value, minus the
    logarithm of their likelihood is `n/2` times this, plus a constant. Its gradient does not shrink as the distance
    does; at 1e-12 and below there is none.

    Args:
      distance: an objective, or another function whose value is not negative.
    """

    def logarithm(*compared: ArrayTree) -> Array:
        return jnp.log(jnp.maximum(distance(*compared), 1e-12))

    return logarithm


def transmitted(objective: Objective) -> Objective:
    """Restricts an objective to the entries that were sent, which are those observed as other than zero."""

    def restricted(simulated: Update, observed: Update) -> Array:
        sent = jax.tree.map(lambda g_star: (g_star != 0).astype(g_star.dtype), observed)
        return masked(objective, sent)(simulated, observed)

    return restricted


def largest_sent(objective: Objective, *, of_tensors: bool = False) -> Objective:
    """Takes entries observed as zero for "no larger than the smallest that was sent".

    Says more than `transmitted` where the largest entries were sent as they are, and is as exact at the truth.

    Args:
      objective: compares the simulated update, less what entries that were not sent may be, with the observed one.
      of_tensors: whether each tensor's largest were sent, or those of the whole update.
    """

    def smallest_sent(g_star: Array) -> Array:
        return jnp.min(jnp.abs(g_star), initial=jnp.inf, where=g_star != 0)

    def restricted(simulated: Update, observed: Update) -> Array:
        smallest = jax.tree.map(smallest_sent, observed)
        if not of_tensors:
            of_all = jnp.min(jnp.stack(jax.tree.leaves(smallest)))
            smallest = jax.tree.map(lambda _: of_all, smallest)

        def beyond(g: Array, g_star: Array, limit: Array) -> Array:
            return jnp.where(g_star != 0, g, jnp.sign(g) * jnp.maximum(jnp.abs(g) - limit, 0)).astype(g.dtype)

        return objective(jax.tree.map(beyond, simulated, observed, smallest), observed)

    return restricted


def censored(objective: Objective, bound: Scalar) -> Objective:
    """Takes observed entries of size `bound` for "at least as large": a simulated one beyond them agrees.

    Other entries are compared as they are, so that a simulated one that is wrongly beyond has a gradient, which it
    would not if the simulation clipped, too.
    """

    def restricted(simulated: Update, observed: Update) -> Array:
        def within(g: Array, g_star: Array) -> Array:
            limit = jnp.asarray(bound, g_star.dtype)
            return jnp.where(
                g_star >= limit, jnp.minimum(g, limit), jnp.where(g_star <= -limit, jnp.maximum(g, -limit), g)
            )

        return objective(jax.tree.map(within, simulated, observed), observed)

    return restricted


def rounding_likelihood(step: Callable[[Array], Scalar]) -> Objective:
    """`-sum log (1 - |g - g*| / step_l)`: minus the logarithm of the likelihood under unbiased random rounding.

    What lies between two levels is rounded to each with the probability by which it is nearer to it. Where that is
    below 1/10, the logarithm goes on as its tangent: a start far from the truth has a finite loss.

    Args:
      step: the distance of two levels in an observed tensor, `[...] -> []`; where it is 0, the tensor is left out.
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        distance = jnp.abs(g - g_star) * _inverse(step(g_star), g.dtype)
        near = jnp.minimum(distance, 0.9)
        return jnp.sum(10 * (distance - near) - jnp.log1p(-near))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))


def sign_margin(simulated: Update, observed: Update, *, margin: float = 0.3) -> Array:
    """`mean max(0, margin - u sign g*)`, `u = g / mean |g_l|`: a hinge for signs that are wrong, or hardly right.

    Signs tell nothing of sizes, so every tensor is in units of its mean size. An entry observed as zero, as behind a
    dead unit, costs `|u|`.

    Args:
      simulated: `g`.
      observed: `g*`, of which only the signs are read.
      margin: in units of a tensor's mean size; 0 would be content with an update near zero.
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
