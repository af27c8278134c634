"""Splits and checks observations of many targets: `SHARED_FIELDS` are common, all others have a leading axis `T`."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxinvert.observation.observe import check_update
from jaxinvert.types import SHARED_FIELDS, Observation


def split_shared(observations: Observation) -> tuple[dict[str, Any], Observation]:
    """Separates the fields common to all targets from those with a leading axis `T`."""
    shared = {field: getattr(observations, field) for field in SHARED_FIELDS}
    return shared, observations._replace(**dict.fromkeys(SHARED_FIELDS))


def check_targets(observations: Observation) -> None:
    """Raises ValueError if any target's update is unusable; values are checked only outside of jit.

    Raises:
      ValueError: see `observe.check_update`; the message names the target.
    """
    for target in range(num_targets(observations)):
        update = jax.tree.map(lambda leaf, target=target: leaf[target], observations.update)
        try:
            check_update(observations.params, update)
        except ValueError as error:
            raise ValueError(f"target {target}: {error}") from error


def num_targets(observations: Observation) -> int:
    """Length of the leading axis `T` of the per-target fields.

    Raises:
      ValueError: if the fields disagree.
    """
    per_target = split_shared(observations)[1]
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(per_target)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"the observations' fields have leading axes {sorted(sizes)}, expected the same for all")
    return sizes.pop()[0]
