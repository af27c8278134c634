"""Low-rank adapters (LoRA): clients train `A` and `B` of some dense layers, everything else is frozen.

    h = x (W + s A B),    A [inputs, r] normal with variance 1 / r,    B [r, units] zero at the start.

The adapters are leaves of the parameters beside the kernel that they change, `LAYER/lora_a` and `LAYER/lora_b`. With
`D = dL/dh`, their gradients are

    dL/dA = s x^T (D B^T),    dL/dB = s (x A)^T D.

While `B` is zero, the gradient of `A` is zero. The network is computed with merged kernels, so that any network with
dense layers becomes one with adapters.

References:
  Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022,
  arXiv:2106.09685.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinvert.models.declared import with_frozen
from jaxinvert.models.losses import drawn_with_tree
from jaxinvert.models.model import Model
from jaxinvert.models.roles import matches
from jaxinvert.models.tensors import Tensor, nested
from jaxinvert.models.text_transformer import TextModel
from jaxinvert.trees import first_few, is_float, leaves_by_path
from jaxinvert.types import Array, Batch, Key, Params

A, B = "lora_a", "lora_b"
"""Names of the two leaves of an adapter."""
LORA_LAYERS = ("query", "value")
"""The layers that have adapters by default."""


def with_lora(model: Model, rank: int, *, layers: Sequence[str] = LORA_LAYERS, scale: float = 1.0) -> Model:
    """The network with adapters, which are all that its clients train.

    Args:
      model: a network with dense layers, whose parameters are nested dictionaries.
      rank: `r`, at least 1.
      layers: names of dense layers, such as "query" for that of every attention, or paths, such as
        "attention_0/query".
      scale: `s`.

    Returns:
      The network; its name has `-loraR` appended, and `Model.frozen` holds the leaves without the adapters.

    Raises:
      ValueError: for a rank below 1, or a name that no dense layer has.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    adapted = adapted_layers(shapes, layers, model=model.name)
    init, apply, loss_fn, statistics = model.init, model.apply, model.loss_fn, model.batch_statistics
    _check_rank(rank)

    def base(params: Params) -> Params:
        return merged(params, adapted, scale=scale)

    def loss(params: Params, batch: Batch) -> Array:
        assert loss_fn is not None
        return loss_fn(base(params), batch)

    adapting = model._replace(
        name=f"{model.name}-lora{rank}",
        init=lambda key: with_adapters(key, init(key), adapted, rank=rank),
        apply=lambda params, inputs: apply(base(params), inputs),
        loss_fn=loss_fn and loss,
        tensors=model.tensors and (*model.tensors, *(Tensor(path, path) for path in _adapters(adapted))),
        drawn_loss_of=drawn_with_tree(model.drawn_loss_of, base),
        batch_statistics=lambda params, *inputs_and_key: statistics(base(params), *inputs_and_key),
    )
    return with_frozen(adapting, leaves_by_path(shapes))


def text_with_lora(
    model: TextModel, rank: int, *, layers: Sequence[str] = LORA_LAYERS, scale: float = 1.0
) -> TextModel:
    """The transformer on text with adapters; see `with_lora`."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    adapted = adapted_layers(shapes, layers, model=model.name)
    init, apply, inputs_of, features, loss_fn = (
        model.init,
        model.apply,
        model.attention_inputs,
        model.features,
        model.loss_fn,
    )
    _check_rank(rank)

    def base(params: Params) -> Params:
        return merged(params, adapted, scale=scale)

    return model._replace(
        name=f"{model.name}-lora{rank}",
        init=lambda key: with_adapters(key, init(key), adapted, rank=rank),
        apply=lambda params, tokens: apply(base(params), tokens),
        attention_inputs=lambda params, tokens: inputs_of(base(params), tokens),
        features=lambda params, tokens: features(base(params), tokens),
        loss_fn=lambda params, batch: loss_fn(base(params), batch),
        frozen=tuple(leaves_by_path(shapes)),
    )


def adapted_layers(shapes: Params, names: Sequence[str], *, model: str) -> tuple[str, ...]:
    """Paths of the dense layers that names stand for.

    Raises:
      ValueError: for a name without such a layer; the message lists some.
    """
    dense = [
        path.rpartition("/")[0]
        for path, leaf in leaves_by_path(shapes).items()
        if path.endswith("/kernel") and len(leaf.shape) == 2 and is_float(leaf)
    ]
    found: list[str] = []
    for name in names:
        wanted = name.strip("/").removeprefix("params/")
        of_name = [
            layer
            for layer in dense
            if layer.rpartition("/")[2] == wanted or matches(layer.removeprefix("params/"), [wanted])
        ]
        if not of_name:
            raise ValueError(
                f"lora_layers holds {name!r}, but model {model} has no such dense layer; it has "
                f"{first_few([layer.removeprefix('params/') for layer in dense], many=8) or 'none'}"
            )
        found += of_name
    if not found:
        raise ValueError("lora_layers is empty, expected at least one dense layer")
    return tuple(dict.fromkeys(found))


def _adapters(layers: Sequence[str]) -> list[str]:
    """Paths of the leaves that adapters have."""
    return [f"{layer}/{leaf}" for layer in layers for leaf in (A, B)]


def with_adapters(key: Key, params: Params, layers: Sequence[str], *, rank: int) -> Params:
    """The parameters with new adapters: `A` normal with variance `1 / r`, `B` zero."""
    leaves = dict(leaves_by_path(params))
    for number, layer in enumerate(layers):
        kernel = leaves[f"{layer}/kernel"]
        own_key = jax.random.fold_in(key, number)
        first = jax.random.normal(own_key, (kernel.shape[0], rank), jnp.float32) / rank**0.5
        leaves[f"{layer}/{A}"] = first.astype(kernel.dtype)
        leaves[f"{layer}/{B}"] = jnp.zeros((rank, kernel.shape[1]), kernel.dtype)
    return nested(leaves)


def merged(params: Params, layers: Sequence[str], *, scale: float = 1.0) -> Params:
    """The parameters of the network without adapters, with kernels `W + s A B`."""
    leaves: dict[str, Any] = dict(leaves_by_path(params))
    for layer in layers:
        kernel = f"{layer}/kernel"
        leaves[kernel] = leaves[kernel] + scale * leaves.pop(f"{layer}/{A}") @ leaves.pop(f"{layer}/{B}")
    return nested(leaves)


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}, expected at least 1")
