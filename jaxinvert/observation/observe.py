"""`observe` runs a client on its private batch and returns the server's observation; checks of batch and update."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxinvert.clients import AnyClientUpdateFn
from jaxinvert.models.tasks import check_labels
from jaxinvert.observation.threat_models import KNOWN_LABELS, ThreatModel
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import (
    SHARED_FIELDS,
    Array,
    ArrayTree,
    Batch,
    Defense,
    Key,
    LocalTraining,
    Observation,
    Params,
    Scalar,
    Update,
)

FEDSGD = LocalTraining(learning_rate=1.0, num_steps=1)
"""One step with learning rate 1: the update is the gradient itself."""


def observe(
    client_update: AnyClientUpdateFn,
    params: Params,
    batch: Batch,
    *,
    threat_model: ThreatModel = KNOWN_LABELS,
    defense: Defense | None = None,
    defense_parameters: Mapping[str, Scalar] | None = None,
    key: Key | None = None,
    local_training: LocalTraining = FEDSGD,
    batch_stats: ArrayTree | None = None,
    surrogate: Array | None = None,
    earlier_params: Params | None = None,
    earlier_updates: Update | None = None,
    num_classes: int | None = None,
    client_key: Key | None = None,
) -> Observation:
    """Runs the client on its private batch and returns what the server sees: only the fields the threat model grants.

    Args:
      client_update: the client's `(params, batch) -> update`.
      params: the model's parameters, as sent to the client.
      batch: the private examples; `inputs [B, ...]`, images in [0, 1], and `labels [B]` or `[B, K]`.
      threat_model: the fields that the attacker is granted.
      defense: applied to the update before it is sent; by default none.
      defense_parameters: the defense's parameters by name, `{}` if it has none, for adaptive attackers; by default
        the defense is unknown to the attacker.
      key: for a random defense.
      local_training: the client's learning rate and number of steps; by default one step of FedSGD.
      batch_stats: the running statistics, if the client sends them with its update.
      surrogate: `[N, H, W, C]` public images in [0, 1].
      earlier_params: parameters of earlier rounds in which the client trained on this batch, leaves `[N, ...]`.
      earlier_updates: the client's updates of these rounds, leaves `[N, ...]`.
      num_classes: `K`; if given, labels outside [0, K) are rejected (a loss would silently ignore them).
      client_key: for a client that draws random numbers, or applies a defense inside its own computation; passed to
        `client_update` as a third argument.

    Raises:
      ValueError: for images that are not floats in [0, 1], for labels that are not one per example or negative, or
        if the client's update is not a finite, non-zero tree like `params` (values are checked only outside of jit).
    """
    _check_private(batch)
    if num_classes is not None:
        check_batch(batch, input_shape=batch.inputs.shape[1:], num_classes=num_classes)
    sent = client_update(params, batch, *(() if client_key is None else (client_key,)))
    everything = Observation(
        params=params,
        update=sent if defense is None else defense(key, sent),
        labels=batch.labels,
        num_examples=batch.inputs.shape[0],
        local_training=local_training,
        batch_stats=batch_stats,
        surrogate=surrogate,
        defense=_known_of(defense, defense_parameters),
        earlier_params=earlier_params,
        earlier_updates=earlier_updates,
    )
    check_update(params, everything.update, hint=_hint(batch.labels) if num_classes is None else "")
    return everything._replace(**dict.fromkeys(threat_model.withheld))


def observe_targets(
    client_update: AnyClientUpdateFn,
    params: Params,
    batches: Batch,
    *,
    threat_model: ThreatModel = KNOWN_LABELS,
    defense: Defense | None = None,
    defense_parameters: Mapping[str, Scalar] | None = None,
    key: Key | None = None,
    local_training: LocalTraining = FEDSGD,
    running_statistics: Callable[..., ArrayTree] | None = None,
    surrogate: Array | None = None,
    earlier_params: Params | None = None,
    earlier_updates: Update | None = None,
    client_key: Key | None = None,
    statistics_key: Key | None = None,
) -> Observation:
    """Observes `T` clients of one model at once, in the form that `search.over_targets` and `search.Stepwise` take.

    Args:
      client_update: the clients' `(params, batch) -> update`.
      params: the model's parameters, the same for all.
      batches: private batches with a leading axis `T`.
      threat_model: the fields that the attacker is granted.
      defense: applied to every update before it is sent.
      defense_parameters: see `observe`.
      key: for a random defense; every target gets its own draw.
      local_training: the clients' learning rate and number of steps.
      running_statistics: `(params, batch) -> statistics`, if the clients send them with their updates; with
        `statistics_key` also of a key.
      surrogate: `[N, H, W, C]` public images in [0, 1].
      earlier_params: parameters of earlier rounds in which all clients trained on these batches, leaves `[N, ...]`.
      earlier_updates: the clients' updates of these rounds, leaves `[T, N, ...]`.
      client_key: see `observe`; split into one key per target.
      statistics_key: for random statistics, split likewise: the `client_key` if they come with the same draws.

    Returns:
      An observation whose fields have a leading axis `T`, except `SHARED_FIELDS`. Not jitted.
    """

    def one(
        batch: Batch,
        earlier: Update | None,
        defense_key: Key | None,
        own_client_key: Key | None,
        own_statistics_key: Key | None,
    ) -> Observation:
        drawn = () if own_statistics_key is None else (own_statistics_key,)
        sent = None if running_statistics is None else running_statistics(params, batch, *drawn)
        seen = observe(
            client_update,
            params,
            batch,
            threat_model=threat_model,
            defense=defense,
            key=defense_key,
            batch_stats=sent,
            earlier_updates=earlier,
            client_key=own_client_key,
        )
        return seen._replace(**dict.fromkeys(SHARED_FIELDS))

    shared = {
        "params": params,
        "num_examples": batches.inputs.shape[1],
        "local_training": local_training,
        "surrogate": surrogate,
        "defense": _known_of(defense, defense_parameters),
        "earlier_params": earlier_params,
    }
    granted = {field: value for field, value in shared.items() if field in threat_model.granted}
    num_targets, of_all = len(batches.inputs), (key, client_key, statistics_key)
    keys = (None if one_key is None else jax.random.split(one_key, num_targets) for one_key in of_all)
    return jax.vmap(one)(batches, earlier_updates, *keys)._replace(**granted)


def _known_of(defense: Defense | None, parameters: Mapping[str, Scalar] | None) -> dict[str, Scalar] | None:
    """The parameters of a defense that the attacker may know; `None` if they were not given."""
    if parameters is None:
        return {} if defense is None else None
    return dict(parameters)


def require(observation: Observation, field: str, *, attack: str) -> ArrayTree:
    """Reads a field that an attack requires.

    Raises:
      ValueError: if the threat model withholds it; the message names the attack and the field.
    """
    value = getattr(observation, field)
    if value is None:
        raise ValueError(f"{attack} needs observation.{field}, which the attacker does not see here")
    return value


def check_batch(batch: Batch, *, input_shape: tuple[int, ...], num_classes: int, task: str | None = None) -> None:
    """Raises ValueError for a batch that the model cannot have trained on.

    Args:
      batch: `inputs [B, *input_shape]` in [0, 1], integer `labels [B]` in [0, num_classes).
      input_shape: the model's `(H, W, C)`.
      num_classes: `K`, the number of label values; see `models.num_labels`.
      task: the model's, for which labels may have another form; by default classes without soft labels.

    Raises:
      ValueError: naming the wrong shape or value.
    """
    inputs, labels = batch.inputs, batch.labels
    if inputs.shape[1:] != tuple(input_shape):
        raise ValueError(f"inputs have shape {tuple(inputs.shape)}, expected (B, {', '.join(map(str, input_shape))})")
    if labels.shape[:1] != inputs.shape[:1] or (task is None and labels.ndim > 1):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, expected ({inputs.shape[0]},): one per input")
    if task is None and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels have dtype {labels.dtype}, expected integer classes")
    if _is_concrete(batch):
        _check_pixels(inputs)
        check_labels(labels, task=task or "classes", num_classes=num_classes)


def _check_private(batch: Batch) -> None:
    """Raises ValueError for examples that `observe` cannot take, whatever the model.

    Inputs of four axes are images; others, such as tokens or records, may have any values.
    """
    shape, dtype = jnp.shape(batch.inputs), jnp.result_type(batch.inputs)
    if not shape or jnp.shape(batch.labels)[:1] != shape[:1]:
        raise ValueError(
            f"labels have shape {jnp.shape(batch.labels)} for inputs of shape {shape}, expected one label per example"
        )
    if len(shape) == 4 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"inputs have dtype {dtype}, expected floats in [0, 1]: divide bytes by 255")
    if len(shape) == 4 and _is_concrete(batch.inputs):
        _check_pixels(batch.inputs)
    whole = jnp.issubdtype(jnp.result_type(batch.labels), jnp.integer) and _is_concrete(batch.labels)
    if whole and (wrong := sorted({int(label) for label in np.ravel(batch.labels) if label < 0})):
        raise ValueError(f"labels {wrong[:10]} are negative, expected classes from 0")


def _check_pixels(inputs: Array) -> None:
    if not np.all(np.isfinite(inputs)):
        raise ValueError("inputs hold non-finite values")
    low, high = (np.min(inputs), np.max(inputs)) if np.size(inputs) else (0.0, 1.0)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        remedy = ": divide bytes by 255" if low >= 0 else ": undo their normalization, which the model applies itself"
        raise ValueError(f"inputs range over [{low:g}, {high:g}], expected [0, 1]{remedy}")


_ROUNDING = 1e-5


def _hint(labels: Array) -> str:
    """What may be wrong with an update that is zero or not finite: a loss ignores labels that are no classes."""
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer) or not _is_concrete(labels):
        return ""
    low, high = int(np.min(labels)), int(np.max(labels))
    return f"; labels range over [{low}, {high}]: give num_classes to check that they are classes of the model"


def check_update(params: Params, update: Update, *, hint: str = "") -> None:
    """Raises ValueError for an update that no honest client can have sent for these parameters.

    Structure and shapes are always checked, values only if they are concrete (outside of jit). Errors about values
    end with `hint`.

    Raises:
      ValueError: if a tensor is missing, unexpected, has another shape, is not finite, or all tensors are zero.
    """
    expected, received = leaves_by_path(params), leaves_by_path(update)
    if missing := sorted(expected.keys() - received.keys()):
        raise ValueError(f"the update lacks {missing}, which the model's parameters have")
    if extra := sorted(received.keys() - expected.keys()):
        raise ValueError(f"the update has {extra}, which the model's parameters lack")
    for path, leaf in received.items():
        if jnp.shape(leaf) != jnp.shape(expected[path]):
            raise ValueError(f"update {path!r} has shape {jnp.shape(leaf)}, expected {jnp.shape(expected[path])}")
    if jax.tree.structure(params) != jax.tree.structure(update):
        raise ValueError(
            "the update's containers are not those of the parameters: got "
            f"{jax.tree.structure(update)}, expected {jax.tree.structure(params)}"
        )
    if _is_concrete(update):
        for path, leaf in received.items():
            values = np.asarray(leaf, np.float64)
            if not np.all(np.isfinite(values)):
                raise ValueError(f"update {path!r} holds {np.sum(~np.isfinite(values))} non-finite values{hint}")
        if not any(np.any(np.asarray(leaf)) for leaf in received.values()):
            raise ValueError(f"the update is zero in every tensor: it carries nothing to invert{hint}")


def _is_concrete(tree: ArrayTree) -> bool:
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
