"""What all adapters share: the lazy import of a library, and a `Model` from a function of its tensors by name."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxinvert.models.losses import drawn_by
from jaxinvert.models.model import Model, from_functions
from jaxinvert.models.tensors import Tensor, leaves_from, nested, tensors_from
from jaxinvert.nn import fast_convolutions
from jaxinvert.types import Array, ArrayTree, Key, Params


def library(module: str, *, extra: str) -> Any:
    """Imports an optional library.

    Raises:
      ValueError: if it is not installed; names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise ValueError(f"this network needs {module}: pip install 'jaxinvert[{extra}]'") from error


class Call(Protocol):
    """A network as a function of its tensors by the library's names."""

    def __call__(
        self,
        tensors: Mapping[str, Any],
        inputs: Array,
        /,
        *,
        key: Key | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`.

        Args:
          tensors: by name, in the library's layout.
          inputs: `[B, H, W, C]`.
          key: for random layers in train mode.
          statistics: filled with mean and biased variance of the input of each BatchNorm layer, by its path.
        """
        ...


def model_of_call(
    call: Call,
    tensors: Sequence[Tensor],
    values: Mapping[str, Any],
    *,
    name: str,
    input_shape: Sequence[int],
    num_classes: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    head: str | None,
    draws: bool = False,
) -> Model:
    """The model of another library's network, with its own parameters as the only initialization.

    Args:
      call: the network.
      tensors: its tensors and the leaves that hold them.
      values: the values of the tensors, in the library's layout.
      name: of the model.
      input_shape: `(H, W, C)`.
      num_classes: `K`; `None` = the number of logits.
      mean: `C` per-channel means of pixels in [0, 1]; `None` = no shift.
      std: `C` per-channel standard deviations; `None` = no scale.
      head: path of the last dense layer; `None` = the last one with `K` outputs, if there is one.
      draws: whether the network draws random numbers in training; then its loss takes a key.

    Raises:
      ValueError: if the network's output is not `[B, K]`.
    """
    tensors, first = tuple(tensors), {name: jnp.asarray(value) for name, value in values.items()}
    num_classes = num_classes or _number_of_logits(call, first, input_shape)
    if head is None:
        head = _last_dense(tensors, {name: value.shape for name, value in first.items()}, num_classes)

    def init(key: Key) -> Params:
        del key
        return nested(leaves_from(tensors, first))

    @fast_convolutions
    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        with jax.numpy_rank_promotion("allow"):  # other libraries broadcast silently
            return call(tensors_from(tensors, params), inputs, key=key)

    @fast_convolutions
    def statistics_of(params: Params, inputs: Array, key: Key | None = None) -> Any:
        found: dict[str, Any] = {}
        with jax.numpy_rank_promotion("allow"):
            call(tensors_from(tensors, params), inputs, key=key, statistics=found)
        return nested({f"{layer}/{kind}": value for layer, by in found.items() for kind, value in by.items()})

    def on_pixels(function: Any, key: Key | None) -> Any:
        """`(params, pixels) -> ...`, normalized and without gradients of what is not trained."""
        return from_functions(init, lambda p, x: function(p, x, key), name=name, head="", **options).apply

    options = {"input_shape": input_shape, "num_classes": num_classes, "mean": mean, "std": std}
    model = from_functions(init, apply, name=name, head=head, **options)

    def drawn_apply(params: Params, inputs: Array, key: Key) -> Array:
        return on_pixels(apply, key)(params, inputs)

    def batch_statistics(params: Params, inputs: Array, key: Key | None = None) -> ArrayTree:
        return on_pixels(statistics_of, key)(params, inputs)

    return model._replace(
        tensors=tensors,
        batch_statistics=batch_statistics,
        drawn_loss_of=drawn_by(drawn_apply, name=name) if draws else None,
    )


def _last_dense(tensors: Sequence[Tensor], shapes: Mapping[str, Sequence[int]], num_classes: int) -> str:
    """Path of the last dense layer with `K` outputs; empty if there is none."""
    found = [
        tensor.path.removesuffix("/kernel")
        for tensor in tensors
        if tensor.path.endswith("/kernel")
        and len(shapes[tensor.name]) == 2
        and num_classes == (shapes[tensor.name][1 if tensor.layout == "same" else 0])
    ]
    return found[-1] if found else ""


def _number_of_logits(call: Call, values: Mapping[str, Any], input_shape: Sequence[int]) -> int:
    """`K`, from the shape of the logits.

    Raises:
      ValueError: if the network's output is not `[B, K]`.
    """
    inputs = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    with jax.numpy_rank_promotion("allow"):
        logits = jax.eval_shape(lambda x: call(values, x), inputs)
    if getattr(logits, "ndim", 0) != 2:
        raise ValueError(f"the network's output is {getattr(logits, 'shape', type(logits))}, expected logits [B, K]")
    return logits.shape[1]
