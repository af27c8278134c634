"""Which leaves of a network a client trains, which it sends, and which only travel: one notion for all packages.

| leaf                                                  | trained | sent | how it is known |
|-------------------------------------------------------|---------|------|-----------------|
| a float under "params", or in a tree without that key | yes     | yes  | read off        |
| another collection: running statistics, buffers       | no      | -    | read off        |
| integers and booleans: counters, index tables         | no      | -    | read off        |
| `Model.frozen`: layers that are not trained           | no      | -    | declared        |
| `Model.personal`: layers that stay with the client    | yes     | no   | declared        |

An update has the structure of the parameters; a leaf that is not trained or not sent is zero in it. A tensor that is
zero everywhere is therefore read as "not sent", never as "its gradient was zero": attacks do not match it.
"""

from collections.abc import Iterable, Mapping, Sequence

import jax

from jaxinvert.trees import is_float, path_name
from jaxinvert.types import ArrayTree, Params


def trained_leaves(params: Params, frozen: Sequence[str] = ()) -> ArrayTree:
    """A tree of booleans: the leaves that a client trains.

    Args:
      params: the parameters, or their shapes.
      frozen: paths of leaves or layers that are not trained.
    """
    collections = isinstance(params, Mapping) and "params" in params

    def is_trained(path: tuple, leaf: object) -> bool:
        name = path_name(path)
        top = name.split("/")[0]
        variable = top == "params" if collections else top != "batch_stats"
        return variable and is_float(leaf) and not matches(name, frozen)

    return jax.tree_util.tree_map_with_path(is_trained, params)


def sent_leaves(params: Params, frozen: Sequence[str] = (), personal: Sequence[str] = ()) -> ArrayTree:
    """A tree of booleans: the leaves whose update a client sends; see `trained_leaves`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, is_trained: is_trained and not matches(path_name(path), personal), trained_leaves(params, frozen)
    )


def untrained_cut_off(params: Params, frozen: Sequence[str] = ()) -> Params:
    """The parameters with the gradient of all leaves that are not trained stopped."""
    return jax.tree.map(
        lambda leaf, is_trained: leaf if is_trained else jax.lax.stop_gradient(leaf),
        params,
        trained_leaves(params, frozen),
    )


def matches(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a path is one of `prefixes` or below one.

    >>> matches("params/head/bias", ["params/head"]), matches("params/head2/bias", ["params/head"])
    (True, False)
    """
    return any(f"{path}/".startswith(f"{prefix}/") for prefix in prefixes)
