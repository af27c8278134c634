"""`from_haiku`: a `Model` from a transformed Haiku function; files name tensors "linear/w", as Haiku does."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxinvert.models.adapters.building import library, model_of_call
from jaxinvert.models.model import Model
from jaxinvert.models.modes import Mode, check_modes, mode_arguments
from jaxinvert.models.tensors import Tensor, leaves_from, nested
from jaxinvert.types import Array, Key, Params


def from_haiku(
    transformed: Any,
    *,
    input_shape: Sequence[int],
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: Mode = "eval",
    dropout: Mode = "eval",
    name: str = "haiku",
    head: str | None = None,
) -> Model:
    """Makes a `Model` from `hk.transform` or `hk.transform_with_state` of `images [B, H, W, C] -> logits [B, K]`.

    If the function has an argument named `is_training`, `train`, `training`, `deterministic` or `inference`, it tells
    all layers their mode together. State, such as running statistics and counters, travels untrained.

    Args:
      transformed: the result of `hk.transform` or `hk.transform_with_state`.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`; by default the number of logits.
      mean: `C` per-channel means of pixels in [0, 1] that are subtracted before the network; `None` = no shift.
      std: `C` per-channel standard deviations that pixels are divided by; `None` = no scale.
      batch_norm: mode of the BatchNorm layers, for a function that takes one.
      dropout: "train" draws random numbers in `drawn_loss_fn`; `apply` has none.
      name: of the model.
      head: path of the last dense layer, such as "params/linear"; by default the last one with `K` outputs.

    Raises:
      ValueError: if Haiku is not installed, for an unknown mode, or an output that is not `[B, K]`.
    """
    hk = library("haiku", extra="haiku")
    check_modes(batch_norm, dropout)
    with_state = isinstance(transformed, hk.TransformedWithState)
    if not with_state:
        transformed = hk.with_empty_state(transformed)
    example = jax.random.uniform(jax.random.key(0), (2, *input_shape))  # its statistics are the first state
    eval_mode = mode_arguments(transformed.apply, training=False)
    train_mode = mode_arguments(transformed.apply, training=True)
    params, state = transformed.init(jax.random.key(0), example, **train_mode)
    tensors = [*_tensors(params, "params", _LINEN), *_tensors(state, "state", {})]

    def call(
        given: Mapping[str, Any],
        inputs: Array,
        *,
        key: Key | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> Array:
        mode = train_mode if key is not None or batch_norm == "train" else eval_mode
        rebuilt = _rebuilt(given, params), _rebuilt(given, state)
        if statistics is not None and jax.tree.leaves(state):
            raise ValueError(f"{name}: the inputs of Haiku's BatchNorm layers cannot be observed")
        try:
            return transformed.apply(*rebuilt, key, inputs, **mode)[0]
        except ValueError as error:
            if "must be called with an RNG" in str(error) or "rng" in str(error).lower():
                raise ValueError(
                    f"{name} draws random numbers in this mode: choose dropout='train', or give its function an "
                    "argument is_training"
                ) from error
            raise

    values = {**_values(params), **_values(state)}
    model = model_of_call(
        call,
        tensors,
        values,
        name=name,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        head=head,
        draws=dropout == "train",
    )

    def init(key: Key) -> Params:
        drawn = transformed.init(key, example, **train_mode)
        return nested(leaves_from(tensors, {**_values(drawn[0]), **_values(drawn[1])}))

    return model._replace(init=init)


_LINEN = {"w": "kernel", "b": "bias", "offset": "bias", "embeddings": "embedding"}


def _tensors(tree: Mapping[str, Mapping[str, Any]], root: str, spelling: Mapping[str, str]) -> list[Tensor]:
    return [
        Tensor(f"{module}/{kind}", f"{root}/{module}/{spelling.get(kind, kind)}")
        for module, leaves in tree.items()
        for kind in leaves
    ]


def _values(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{module}/{kind}": leaf for module, leaves in tree.items() for kind, leaf in leaves.items()}


def _rebuilt(given: Mapping[str, Any], like: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {module: {kind: given[f"{module}/{kind}"] for kind in leaves} for module, leaves in like.items()}
