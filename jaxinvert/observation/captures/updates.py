"""From what a federated server captures of a client to an update: the pseudo-gradient `params - local_params`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp

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
"""What is captured -> `(parameter before local training, captured) -> pseudo-gradient`."""


def as_update(tree: ArrayTree, params: Params, *, kind: Kind) -> Update:
    """Makes an update of what was captured.

    | kind | captured | update |
    | --- | --- | --- |
    | "pseudo-gradient" | `before - after`, or the gradient itself of a FedSGD client | as it is |
    | "delta" | `after - before`, what a FedAvg server adds | its negative |
    | "weights" | `after` | `before - after` |

    Of weights in half precision, or of a short training, few digits of the difference are left: each weight was
    rounded to one part in 2^24 (float32), 2^11 (float16) or 2^8 (bfloat16) before the update is taken of it, which is
    noise of that size times the weight. The subtraction itself adds next to nothing. Capture deltas where you can.

    Args:
      tree: what was captured, a tree like `params`.
      params: what the server had sent to the client.
      kind: see the table.

    Returns:
      The pseudo-gradient. Running statistics are not part of an update: what is below "batch_stats" becomes zero.

    Raises:
      ValueError: for an unknown kind, a tree unlike `params`, values that are not finite, or an update of zeros
        (values are only looked at outside of jit).
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    check_update(params, tree)
    update: Any = jax.tree.map(KINDS[kind], params, tree)
    if isinstance(params, Mapping) and "batch_stats" in params:
        update = {**update, "batch_stats": jax.tree.map(jnp.zeros_like, params["batch_stats"])}
    check_update(params, update)
    return update
