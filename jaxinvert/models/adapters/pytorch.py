"""`from_torch`: a `Model` from a PyTorch module, whose `state_dict` names and layouts stay those of its files.

The module is exported once as a graph of core operations and run by JAX, so gradients of all orders, jit and vmap
work as for a Flax network, and fast convolutions apply. In memory, kernels have Flax's layout; see `tensors`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.models.adapters.building import library, model_of_call
from jaxinvert.models.adapters.torch_graph import Graph, evaluate, export_graph, pixel_layers
from jaxinvert.models.adapters.torch_layers import PixelKernel
from jaxinvert.models.declared import with_frozen
from jaxinvert.models.model import Model
from jaxinvert.models.modes import Mode, check_modes
from jaxinvert.models.tensors import Tensor, to_leaf
from jaxinvert.types import Array, Key


def from_torch(
    module: Any,
    *,
    input_shape: Sequence[int],
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: Mode = "eval",
    dropout: Mode = "eval",
    name: str | None = None,
    head: str | None = None,
) -> Model:
    """Makes a `Model` from a PyTorch module that maps normalized images `[B, C, H, W]` to logits `[B, K]`.

    The parameters are the module's own, at every call of `init`. Parameters with `requires_grad=False` are frozen;
    buffers travel untrained.

    | layers                            | mode "eval"                 | mode "train"                         |
    |-----------------------------------|-----------------------------|--------------------------------------|
    | BatchNorm                         | its running statistics      | statistics of the batch              |
    | dropout and other random layers   | deterministic               | `drawn_loss_fn` draws, `apply` does not |

    Args:
      module: a `torch.nn.Module`; its mode is set during the call, and restored.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`; by default the number of logits.
      mean: `C` per-channel means of pixels in [0, 1] that are subtracted before the module; `None` = no shift.
      std: `C` per-channel standard deviations that pixels are divided by; `None` = no scale.
      batch_norm: mode of the BatchNorm layers.
      dropout: mode of all other layers.
      name: of the model; by default the class name.
      head: path of the last dense layer, such as "params/fc"; by default the last one with `K` outputs.

    Raises:
      ValueError: if PyTorch is not installed, cannot export the module, or the module uses an operation that cannot
        be run in JAX, or whose result in JAX is another; for an unknown mode.
    """
    library("torch", extra="torch")
    check_modes(batch_norm, dropout)
    height, width, channels = input_shape
    shape = (channels, height, width)
    graph = _exported(module, shape, batch_norm=batch_norm, others="eval")
    drawn = _exported(module, shape, batch_norm=batch_norm, others="train") if dropout == "train" else graph
    values = {key: value.detach().cpu().numpy() for key, value in module.state_dict().items()}
    tensors = _tensors(module, pixel_layers(graph), (height, width, channels))
    call = _call(graph, drawn, tensors)
    _check_logits(module, call, values, shape, batch_norm=batch_norm)
    model = model_of_call(
        call,
        tensors,
        values,
        name=name or type(module).__name__,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        head=head,
        draws=bool(drawn.draws),
    )
    paths = {tensor.name: tensor.path for tensor in tensors}
    frozen = [paths[key] for key, value in module.named_parameters() if not value.requires_grad and key in paths]
    return with_frozen(model, frozen)


def _exported(module: Any, image_shape: tuple[int, int, int], *, batch_norm: Mode, others: Mode) -> Graph:
    """The graph with the layers in these modes."""
    with _in_modes(module, batch_norm=batch_norm, others=others):
        return export_graph(module, image_shape)


@contextlib.contextmanager
def _in_modes(module: Any, *, batch_norm: Mode, others: Mode) -> Iterator[None]:
    """Puts the module's layers into these modes; its own are restored."""
    torch = library("torch", extra="torch")

    coupled = (torch.nn.modules.batchnorm._BatchNorm,)
    before = {layer: layer.training for layer in module.modules()}
    try:
        module.train(others == "train")
        for layer in module.modules():
            if isinstance(layer, coupled):
                layer.train(batch_norm == "train")
        yield
    finally:
        for layer, mode in before.items():
            layer.training = mode


_TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit: float32 convolutions differ by about 1e-5."""


def _check_logits(
    module: Any, call: Any, values: Mapping[str, Any], image_shape: tuple[int, int, int], *, batch_norm: Mode
) -> None:
    """Compares the logits of PyTorch and of the exported graph on random images.

    Raises:
      ValueError: if they differ, because an operation is not run in JAX as PyTorch runs it.
    """
    torch = library("torch", extra="torch")

    images = np.random.default_rng(0).normal(size=(_NUM_IMAGES, *image_shape)).astype(np.float32)
    device = next((value.device for value in module.parameters()), "cpu")
    copies = {name: value.clone() for name, value in module.named_buffers()}  # BatchNorm in train mode writes them
    with _in_modes(module, batch_norm=batch_norm, others="eval"), torch.no_grad():
        expected = torch.func.functional_call(module, copies, (torch.tensor(images, device=device),)).cpu().numpy()
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):  # GPUs round to TF32
        found = np.asarray(jax.jit(call)(values, jnp.asarray(images).transpose(0, 2, 3, 1)))
    scale = max(float(np.abs(expected).max(initial=0)), 1e-6)
    is_equal = found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=_TOLERANCE * scale)
    if not is_equal:
        gap = np.abs(found - expected).max() / scale if found.shape == expected.shape else np.inf
        raise ValueError(
            f"{type(module).__name__} has other logits in JAX than in PyTorch, by {gap:.2g} of the largest on "
            f"{_NUM_IMAGES} random images: one of its operations is not run as PyTorch runs it, so nothing that is "
            "computed with it would be right"
        )


_NUM_IMAGES = 3
"""Not as many as the graph was exported with."""


def _call(graph: Graph, drawn: Graph, tensors: Sequence[Tensor]) -> Any:
    pixels = {tensor.name: (tensor, tensor.pixels) for tensor in tensors if tensor.pixels is not None}
    layers = {
        tensor.name.rpartition(".")[0]: tensor.path for tensor in tensors if tensor.name.endswith("running_mean")
    }

    def call(
        values: Mapping[str, Any],
        inputs: Array,
        *,
        key: Key | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> Array:
        # XLA cancels the two transpositions of a kernel, but not those of a kernel with reordered rows.
        native = {
            name: PixelKernel(to_leaf(pixels[name][0], value), pixels[name][1]) if name in pixels else value
            for name, value in values.items()
        }
        found: dict[str, Any] | None = None if statistics is None else {}
        images = inputs.transpose(0, 3, 1, 2)
        logits = evaluate(graph if key is None else drawn, native, images, key=key, statistics=found)
        if statistics is not None and found is not None:
            for layer, both in found.items():
                statistics[layers[layer].removeprefix("batch_stats/").rpartition("/")[0]] = both
        return logits

    return call


def _tensors(module: Any, on_pixels: set[str], input_shape: tuple[int, int, int]) -> list[Tensor]:
    """The tensors of the `state_dict` and the leaves that hold them, tied tensors once."""
    torch = library("torch", extra="torch")

    layers = dict(module.named_modules())
    normalizing = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm)
    tensors: list[Tensor] = []
    leaves: dict[int, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        layer, _, kind = name.rpartition(".")
        owner, layout, pixels, root = layers.get(layer), "same", None, "params"
        if not isinstance(value, torch.nn.Parameter):
            running = kind in ("running_mean", "running_var") and isinstance(owner, normalizing[0])
            root, kind = ("batch_stats", kind.removeprefix("running_")) if running else ("buffers", kind)
        elif kind == "weight" and isinstance(owner, torch.nn.Linear):
            kind, layout = "kernel", "dense"
            if name in on_pixels:
                layout, pixels = "pixels", input_shape
        elif kind == "weight" and isinstance(owner, torch.nn.modules.conv._ConvNd):
            kind, layout = "kernel", "conv"
        elif kind == "weight" and isinstance(owner, normalizing):
            kind = "scale"
        path = leaves.setdefault(id(value), "/".join([root, *filter(None, layer.split(".")), kind]))
        tensors.append(Tensor(name, path, layout, pixels))
    return tensors
