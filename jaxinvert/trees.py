"""Functions on pytrees of arrays: leaf paths and their names, sums, inner products and norms."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxinvert.types import Array, ArrayTree, Scalar


def path_name(path: tuple) -> str:
    """The path of a leaf as a string, such as `"params/head/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: object) -> dict[str, Array]:
    """The leaves by path, such as `"params/head/kernel"`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def first_few(names: Sequence[str], *, many: int = 4, longest: int = 240, separator: str = ", ") -> str:
    """The first of many names, for a message, each cut to a readable length, and the number of others.

    >>> first_few(["a", "b", "c"], many=2)
    'a, b and 1 more'
    """
    shown = [name if len(name) <= longest else f"{name[:longest]}..." for name in names[:many]]
    return separator.join(shown) + (f" and {len(names) - many} more" if len(names) > many else "")


def is_float(leaf: object) -> bool:
    """Whether an array, or its shape and dtype, holds floats; others have no gradient."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def moved(params: ArrayTree, update: ArrayTree, rate: Scalar = 1.0) -> ArrayTree:
    """`params - rate * update`: the parameters after a pseudo-gradient; leaves of integers stay as they are."""

    def step(leaf: Array, change: Array) -> Array:
        return (leaf - rate * change).astype(leaf.dtype) if is_float(leaf) else leaf

    return jax.tree.map(step, params, update)


def of_what_was_sent(simulated: ArrayTree, observed: ArrayTree) -> ArrayTree:
    """The simulated update without the tensors that were not sent, zero everywhere in the observed one.

    A tensor of zeros is a frozen or personal layer, or running statistics, not a gradient that happened to be zero.
    """
    return jax.tree.map(lambda g, g_star: jnp.where(jnp.any(g_star != 0), g, jnp.zeros_like(g)), simulated, observed)


def tree_sum(tree: ArrayTree) -> Array:
    """Sum of all elements of all leaves: `[]`."""
    return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))


def tree_inner(left: ArrayTree, right: ArrayTree) -> Array:
    """Inner product over all leaves: `[]`, of half precision in float32."""

    def wide(leaf: Array) -> Array:
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    return tree_sum(jax.tree.map(lambda one, other: jnp.vdot(wide(one), wide(other)), left, right))


def scaled(tree: ArrayTree, factor: Scalar) -> ArrayTree:
    """Multiplies every leaf by `factor`."""
    return jax.tree.map(lambda leaf: leaf * factor, tree)


def tree_squared_norm(tree: ArrayTree) -> Array:
    """Squared Euclidean norm over all leaves: `[]`.

    Computed as inner products, several times faster on a CPU than sums of squares of large tensors. Half precision
    is summed in float32, where small squares do not vanish.
    """
    wide = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(tree)]
    return sum((jnp.vdot(leaf, leaf) for leaf in wide), start=jnp.zeros(()))


def explained_share(simulated: ArrayTree, observed: ArrayTree) -> Array:
    """The share of an observed update that lies along a simulated one, at any scale of both: `[]` in [0, 1].

    The squared cosine of the two; 0 if they point in opposite directions or one is zero. Tensors that were not sent
    are not compared.
    """
    left, right = (_of_unit_size(tree) for tree in (of_what_was_sent(simulated, observed), observed))
    lengths = tree_squared_norm(left) * tree_squared_norm(right)
    share = jnp.square(jnp.maximum(tree_inner(left, right), 0.0)) / jnp.where(lengths > 0, lengths, 1.0)
    return jnp.minimum(share, 1.0)


def _of_unit_size(tree: ArrayTree) -> ArrayTree:
    """The tree divided by its largest absolute value: its squares neither overflow nor vanish in float32."""
    largest = largest_entry(tree)
    return jax.tree.map(lambda leaf: leaf / jnp.where(largest > 0, largest, 1.0), tree)


def largest_entry(tree: ArrayTree) -> Array:
    """Largest absolute value in all leaves of floats: `[]`."""
    largest = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    return jnp.max(jnp.stack(largest)) if largest else jnp.zeros(())


def tree_norm(tree: ArrayTree) -> Array:
    """Euclidean norm over all leaves, with gradient 0 (not NaN) at zero: `[]`. NaN in any leaf gives NaN."""
    squared = tree_squared_norm(tree)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))
