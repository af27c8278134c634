"""`from_keras`: a `Model` from a Keras 3 model on the JAX backend; files name tensors "conv2d/kernel".

Keras counts the names of layers over the whole process: the second network's first convolution is "conv2d_1". Names
here count within the model, so that they do not depend on what was built before.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxinvert.models.adapters.building import library, model_of_call
from jaxinvert.models.declared import with_frozen
from jaxinvert.models.model import Model
from jaxinvert.models.modes import Mode, check_modes
from jaxinvert.models.tensors import Tensor
from jaxinvert.types import Array, Key

_LINEN = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
    "embeddings": "embedding",
}


def from_keras(
    network: Any,
    *,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: Mode = "eval",
    dropout: Mode = "eval",
    name: str | None = None,
    head: str | None = None,
) -> Model:
    """Makes a `Model` from a built Keras model that maps normalized images `[B, H, W, C]` to logits `[B, K]`.

    The parameters are the model's own, at every call of `init`. Weights of layers with `trainable=False` are frozen;
    running statistics travel. Random layers are deterministic: Keras's generators cannot be given the attacker's key.

    Args:
      network: a built `keras.Model`, with `image_data_format` "channels_last".
      input_shape: `(H, W, C)` of one example; by default the model's own.
      num_classes: `K`; by default the number of logits.
      mean: `C` per-channel means of pixels in [0, 1] that are subtracted before the network; `None` = no shift.
      std: `C` per-channel standard deviations that pixels are divided by; `None` = no scale.
      batch_norm: mode of the BatchNorm layers.
      dropout: must be "eval".
      name: of the model; by default the class name.
      head: path of the last dense layer, such as "params/dense"; by default the last one with `K` outputs.

    Raises:
      ValueError: if Keras is not installed or has another backend, for an unknown mode or dropout="train", or an
        output that is not `[B, K]`.
    """
    keras = library("keras", extra="keras")
    check_modes(batch_norm, dropout)
    if keras.config.backend() != "jax":
        raise ValueError(
            f"Keras runs on {keras.config.backend()}, expected jax: set KERAS_BACKEND=jax before Keras is imported"
        )
    if dropout == "train":
        raise ValueError("dropout='train' is not possible for Keras, whose random layers keep their own generators")
    input_shape = tuple(input_shape or network.input_shape[1:])
    state = {v.path: v for v in network.non_trainable_variables}
    weights = {v.path: v for v in network.trainable_variables}
    names = _names(network, [*weights, *state])
    frozen_weights = [path for path in state if path.split("/")[-1] not in ("moving_mean", "moving_variance")]
    frozen_weights = [path for path in frozen_weights if jnp.issubdtype(state[path].dtype, jnp.floating)]
    tensors = [Tensor(names[path], f"params/{_spelled(names[path])}") for path in [*weights, *frozen_weights]]
    tensors += [
        Tensor(names[path], f"{_collection(path)}/{_spelled(names[path])}")
        for path in state
        if path not in frozen_weights
    ]
    norms = [layer for layer in network._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]

    def call(
        given: Mapping[str, Any],
        inputs: Array,
        *,
        key: Key | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> Array:
        del key
        own = {layer: layer.call for layer in norms}
        try:
            for layer in norms:
                layer.call = _bound(layer, own[layer], batch_norm, names, statistics)
            logits, _ = network.stateless_call(
                [given[names[path]] for path in weights],
                [given[names[path]] for path in state],
                inputs,
                training=False,
            )
        finally:
            for layer in norms:
                del layer.call
        return logits

    values = {names[path]: jnp.asarray(v.value) for path, v in {**weights, **state}.items()}
    model = model_of_call(
        call,
        tensors,
        values,
        name=name or type(network).__name__,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        head=head,
    )
    return with_frozen(model, [names[path] for path in frozen_weights])


def _bound(
    layer: Any, own: Any, batch_norm: Mode, names: Mapping[str, str], statistics: dict[str, Any] | None
) -> Any:
    """The layer's computation in its own mode, which also records the statistics of its input."""

    def in_mode(inputs: Array, *args: Any, **options: Any) -> Array:
        if statistics is not None:
            reduced = tuple(axis for axis in range(inputs.ndim) if axis != layer.axis % inputs.ndim)
            path = names[layer.moving_mean.path].rpartition("/")[0]
            statistics[path] = {"mean": jnp.mean(inputs, reduced), "var": jnp.var(inputs, reduced)}
        return own(inputs, **{**options, "training": batch_norm == "train"})

    return in_mode


def _names(network: Any, paths: Sequence[str]) -> dict[str, str]:
    """Keras's paths -> names without the model's own, where generic layer names are counted within the model."""
    count: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for layer in network._flatten_layers():
        kind = re.sub(r"_\d+$", "", layer.name)
        generic = kind.replace("_", "") == type(layer).__name__.lower()
        if generic and layer is not network and layer.name not in renamed:
            renamed[layer.name] = kind + (f"_{count[kind]}" if count[kind] else "")
            count[kind] += 1
    found = {}
    for path in paths:
        parts = path.split("/")
        parts = parts[1:] if parts[0] == network.name and len(parts) > 2 else parts
        found[path] = "/".join(renamed.get(part, part) for part in parts)
    return found


def _spelled(name: str) -> str:
    layer, _, kind = name.rpartition("/")
    return f"{layer}/{_LINEN.get(kind, kind)}"


def _collection(path: str) -> str:
    return "batch_stats" if path.split("/")[-1] in ("moving_mean", "moving_variance") else "buffers"
