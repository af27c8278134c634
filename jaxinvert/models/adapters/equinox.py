"""`from_equinox`: a `Model` from an Equinox module; files name tensors by attribute, "layers.0.weight"."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxinvert.models.adapters.building import library, model_of_call
from jaxinvert.models.layers import unknown_value
from jaxinvert.models.model import Model
from jaxinvert.models.modes import Mode, check_modes
from jaxinvert.models.tensors import Tensor
from jaxinvert.types import Array, Key


def from_equinox(
    module: Any,
    *,
    input_shape: Sequence[int],
    channels: Literal["first", "last"] = "first",
    state: Any = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: Mode = "eval",
    dropout: Mode = "eval",
    name: str | None = None,
    head: str | None = None,
) -> Model:
    """Makes a `Model` from an Equinox module that maps ONE normalized image to logits `[K]`.

    The parameters are the module's own, at every call of `init`. Arrays of floats are trained; integers travel.

    Args:
      module: an `eqx.Module`, or a pair `(module, state)` of `eqx.nn.make_with_state`.
      input_shape: `(H, W, C)` of one example.
      channels: whether the module takes `[C, H, W]`, as Equinox's layers do, or `[H, W, C]`.
      state: the state of a module with BatchNorm, unless `module` is a pair; its running statistics are constants.
      num_classes: `K`; by default the number of logits.
      mean: `C` per-channel means of pixels in [0, 1] that are subtracted before the module; `None` = no shift.
      std: `C` per-channel standard deviations that pixels are divided by; `None` = no scale.
      batch_norm: mode of the BatchNorm layers.
      dropout: "train" draws random numbers in `drawn_loss_fn`; `apply` has none.
      name: of the model; by default the class name.
      head: path of the last dense layer, such as "params/fc"; by default the last one with `K` outputs.

    Raises:
      ValueError: if Equinox is not installed, for an unknown mode, or an output that is not `[B, K]`.
    """
    eqx = library("equinox", extra="equinox")
    check_modes(batch_norm, dropout)
    if channels not in ("first", "last"):
        raise unknown_value("channels", channels, ("first", "last"))
    module, state = module if isinstance(module, tuple) else (module, state)
    quiet = _in_modes(eqx, module, batch_norm=batch_norm, dropout="eval")
    random = _in_modes(eqx, module, batch_norm=batch_norm, dropout="train")
    values, structure = _arrays(eqx, module)
    tensors = _tensors(eqx, module, list(values))
    axis_names = {layer.axis_name for layer in _layers(module, eqx.nn.BatchNorm)}
    takes_key = "key" in inspect.signature(type(module).__call__).parameters

    def call(
        given: Mapping[str, Any],
        inputs: Array,
        *,
        key: Key | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> Array:
        if statistics is not None and axis_names:
            raise ValueError(f"{type(module).__name__}: the inputs of Equinox's BatchNorm layers cannot be observed")
        _, static = eqx.partition(quiet if key is None else random, eqx.is_array)
        network = eqx.combine(jax.tree.unflatten(structure, [given[name] for name in values]), static)
        images = inputs.transpose(0, 3, 1, 2) if channels == "first" else inputs
        keys = None if key is None else jax.random.split(key, len(inputs))

        own_state = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))  # a state is used once

        def one(image: Array, own: Key | None) -> Array:
            options = {"key": own} if takes_key else {}
            return network(image, **options) if state is None else network(image, own_state, **options)[0]

        axis = next(iter(axis_names), None)
        return jax.vmap(one, in_axes=(0, None if keys is None else 0), axis_name=axis)(images, keys)

    return model_of_call(
        call,
        tensors,
        values,
        name=name or type(module).__name__,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        head=head,
        draws=dropout == "train" and takes_key,
    )


def _in_modes(eqx: Any, module: Any, *, batch_norm: Mode, dropout: Mode) -> Any:
    changed = eqx.nn.inference_mode(module, value=dropout == "eval")
    norms = lambda tree: [layer.inference for layer in _layers(tree, eqx.nn.BatchNorm)]  # noqa: E731
    return eqx.tree_at(norms, changed, replace_fn=lambda _: batch_norm == "eval") if norms(changed) else changed


def _layers(module: Any, kind: type) -> list[Any]:
    is_kind = lambda node: isinstance(node, kind)  # noqa: E731
    return [node for node in jax.tree.leaves(module, is_leaf=is_kind) if is_kind(node)]


def _arrays(eqx: Any, module: Any) -> tuple[dict[str, Array], Any]:
    """The arrays by name, and the structure of the tree of arrays alone."""
    arrays, _ = eqx.partition(module, eqx.is_array)
    found = jax.tree_util.tree_leaves_with_path(arrays)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): jnp.asarray(leaf) for path, leaf in found}
    return named, jax.tree.structure(arrays)


def _tensors(eqx: Any, module: Any, names: Sequence[str]) -> list[Tensor]:
    """The tensors, with kernels in our layout and Flax's names."""
    kinds = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose)
    is_layer = lambda node: isinstance(node, kinds)  # noqa: E731
    layers = {
        jax.tree_util.keystr(path, simple=True, separator="."): node
        for path, node in jax.tree_util.tree_leaves_with_path(module, is_leaf=is_layer)
        if is_layer(node)
    }
    tensors = []
    for name in names:
        layer, _, kind = name.rpartition(".")
        owner, layout = layers.get(layer), "same"
        if kind == "weight" and owner is not None:
            kind, layout = "kernel", "dense" if isinstance(owner, eqx.nn.Linear) else "conv"
        tensors.append(Tensor(name, "/".join(["params", *filter(None, layer.split(".")), kind]), layout))
    return tensors
