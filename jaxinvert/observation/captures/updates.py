"""Converts a captured tree (gradient, weight delta or weights) to an update, the pseudo-gradient."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxinvert.clients.gradients import no_update
from jaxinvert.models.roles import trained_leaves
from jaxinvert.observation.observe import check_update
from jaxinvert.types import Array, ArrayTree, Params, Update

Kind = Literal["pseudo-gradient", "delta", "weights"]
KINDS: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {
        "pseudo-gradient": lambda before, captured: captured,
        "delta": lambda before, captured: -captured,
        "weights": jnp.subtract,
    }
)
"""Kind of captured tensor -> `(parameter before local training, captured) -> pseudo-gradient`."""


def as_update(tree: ArrayTree, params: Params, *, kind: Kind) -> Update:
    """Converts a captured tree to an update, the pseudo-gradient `params - local_params`.

    | kind | captured | update |
    | --- | --- | --- |
    | "pseudo-gradient" | `before - after`, or the gradient itself of a FedSGD client | unchanged |
    | "delta" | `after - before`, what a FedAvg server adds | its negative |
    | "weights" | `after` | `before - after` |

    With "weights" in half precision, or after a short training, the difference has few significant digits. Each
    weight was rounded to one part in 2^24 (float32), 2^11 (float16) or 2^8 (bfloat16) before the subtraction, which
    is noise of that size times the weight. The subtraction itself adds next to none. Capture deltas where you can.

    Args:
      tree: the captured tensors, a tree like `params`.
      params: the parameters that the server sent to the client.
      kind: see the table.

    Returns:
      The pseudo-gradient. What is not trained is zero in it: running statistics (see `sent_statistics`), buffers,
      integers (see `models.roles`). A tensor of zeros was not sent, also among weights: its update is zero.

    Raises:
      ValueError: for an unknown kind, a tree unlike `params`, values that are not finite, or an update of zeros
        (values are checked only outside of jit).
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    check_update(params, tree)

    def difference(before: Array, captured: Array, is_trained: bool) -> Array:
        if not is_trained:
            return no_update(before)
        sent = jnp.any(captured != 0)
        return jnp.where(sent, KINDS[kind](before, captured), jnp.zeros_like(before))

    update: Any = jax.tree.map(difference, params, tree, trained_leaves(params))
    check_update(params, update)
    return update


def sent_statistics(tree: ArrayTree, params: Params, *, kind: Kind) -> ArrayTree | None:
    """The running statistics that a client sent with its update: BatchNorm's, after its local training.

    Args:
      tree: the captured tensors, a tree like `params`; statistics that the file lacks are zero.
      params: the parameters that the server sent to the client.
      kind: see `as_update`.

    Returns:
      A tree like `params["batch_stats"]`, or `None` if the model has none, or the client did not send all of them.
    """
    if not isinstance(params, Mapping) or not params.get("batch_stats"):
        return None
    captured, before = tree["batch_stats"], params["batch_stats"]
    if not all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(captured)):
        return None
    change = jax.tree.map(KINDS[kind], before, captured)
    return jax.tree.map(jnp.subtract, before, change)
