"""Exports a PyTorch module as a graph of its core operations, and evaluates such a graph in JAX.

`torch.export` records the operations of `module.forward` once, for any batch size. The graph is kept as plain data
(`Graph`), so that no PyTorch code runs afterwards: gradients, jit and vmap are JAX's alone.
"""

import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.models.adapters.building import library
from jaxinvert.models.adapters.torch_layers import RANDOM, channel_statistics
from jaxinvert.models.adapters.torch_ops import OPERATIONS
from jaxinvert.types import Array, Key


class Ref(NamedTuple):
    """An argument that is the value of another node."""

    name: str


class Node(NamedTuple):
    """One operation: `name = operation(*args, **options)`; arguments may contain `Ref`."""

    name: str
    operation: str
    args: tuple[Any, ...]
    options: dict[str, Any]


class Graph(NamedTuple):
    """The operations of a network.

    Attributes:
      tensors: names of nodes -> names of the parameters and buffers that they stand for.
      constants: names of nodes -> constant arrays.
      images: name of the node of the input `[B, C, H, W]`.
      nodes: in the order of evaluation; none of them is unused.
      logits: name of the node of the output.
    """

    tensors: dict[str, str]
    constants: dict[str, np.ndarray]
    images: str
    nodes: tuple[Node, ...]
    logits: str

    @property
    def draws(self) -> list[str]:
        """The operations that draw random numbers."""
        return [node.operation for node in self.nodes if node.operation in RANDOM]


_PYTHON = {"getitem": operator.getitem, "mul": operator.mul, "add": operator.add, "sub": operator.sub}
_PYTHON |= {"floordiv": operator.floordiv, "mod": operator.mod, "neg": operator.neg}
_BATCH_NORM = ("_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional")
_RUNNING_MEAN = 3
"""Position of the running mean among the arguments of BatchNorm."""
_KEPT = ("linear", "scaled_dot_product_attention", "upsample_nearest2d", "pixel_shuffle", "log_sigmoid")


def export_graph(module: Any, image_shape: Sequence[int]) -> Graph:
    """The graph of a module in its present mode.

    Args:
      module: `torch.nn.Module` that maps `[B, C, H, W]` to logits `[B, K]`.
      image_shape: `(C, H, W)`.

    Raises:
      ValueError: if PyTorch cannot export the module for any batch size, or for an operation that JAX does not have
        here; the message names it.
    """
    torch = library("torch", extra="torch")

    images = torch.full((2, *image_shape), 0.5)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (images,), dynamic_shapes=({0: batch},), strict=False)
            table = torch.export.default_decompositions()
            for kept in [key for key in table if _short(key) in _KEPT]:
                table.pop(kept)
            program = program.run_decompositions(table)
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ValueError(
                f"PyTorch cannot export {type(module).__name__} as a graph: {type(error).__name__}: {first}; "
                "torch.export.export(module, (images,)) must work, for any batch size"
            ) from error
    return _plain(program, type(module).__name__)


def _plain(program: Any, name: str) -> Graph:
    """The program as plain data, without the operations that its output does not depend on."""
    torch = library("torch", extra="torch")

    signature, constants, tensors, images = program.graph_signature, {}, {}, ""
    kinds = torch.export.graph_signature.InputKind
    for given in signature.input_specs:
        if given.kind == kinds.PARAMETER or (given.kind == kinds.BUFFER and given.persistent):
            tensors[given.arg.name] = given.target
        elif given.kind == kinds.USER_INPUT:
            images = given.arg.name
        else:
            value = program.constants[given.target]
            constants[given.arg.name] = value.detach().numpy()
    (logits,) = [
        out.arg.name
        for out in signature.output_specs
        if out.kind == torch.export.graph_signature.OutputKind.USER_OUTPUT
    ][:1]
    nodes, wanted = [], {logits}
    for node in reversed(program.graph.nodes):
        if node.op == "get_attr":
            constants[node.name] = getattr(program.graph_module, node.target).detach().numpy()
        if node.op != "call_function" or node.name not in wanted:
            continue
        one = Node(node.name, _short(node.target), _converted(node.args), _converted(node.kwargs))
        if one.operation not in OPERATIONS and one.operation not in RANDOM and one.operation not in _PYTHON:
            raise ValueError(f"{name} uses PyTorch's {node.target}, which cannot be run in JAX yet")
        wanted |= {ref.name for ref in _refs((one.args, one.options))}
        nodes.append(one)
    return Graph(tensors, constants, images, tuple(reversed(nodes)), logits)


def _short(target: Any) -> str:
    """The name without its overload: "add" of `aten.add.Tensor` and of `operator.add`."""
    parts = str(target).split(".")
    return parts[1] if parts[0] == "aten" else getattr(target, "__name__", str(target))


def _converted(value: Any) -> Any:
    """Arguments as plain data: nodes become `Ref`, dtypes NumPy's names; memory layouts and devices are dropped."""
    torch = library("torch", extra="torch")

    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, torch.dtype):
        return jax.dtypes.canonicalize_dtype(str(value).removeprefix("torch."))
    if isinstance(value, torch.memory_format | torch.layout | torch.device):
        return None
    if isinstance(value, list | tuple):
        return tuple(_converted(item) for item in value)
    if isinstance(value, dict):
        dropped = ("memory_format", "layout", "device", "pin_memory", "implicit")
        return {key: _converted(item) for key, item in value.items() if key not in dropped}
    return value


def _refs(value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, tuple):
        return [ref for item in value for ref in _refs(item)]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in _refs(item)]
    return []


def pixel_layers(graph: Graph) -> set[str]:
    """Names of the weights of dense layers that read the flattened image itself, perhaps normalized.

    Their rows are pixels in the order (c, h, w).
    """
    pixels, found = {graph.images}, set()
    keeps_order = {"view", "reshape", "_unsafe_view", "clone", "sub", "div", "mul", "add", "_to_copy"}
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        if not isinstance(first, Ref) or first.name not in pixels:
            continue
        if node.operation in keeps_order:
            pixels.add(node.name)
        elif node.operation == "linear" and isinstance(node.args[1], Ref) and node.args[1].name in graph.tensors:
            found.add(graph.tensors[node.args[1].name])
    return found


def evaluate(
    graph: Graph,
    tensors: Mapping[str, Any],
    images: Array,
    *,
    key: Key | None = None,
    statistics: dict[str, dict[str, Array]] | None = None,
) -> Array:
    """The logits of a graph.

    Args:
      graph: from `export_graph`.
      tensors: parameters and buffers by PyTorch's names, in PyTorch's layout or as `PixelKernel`.
      images: `[B, C, H, W]`.
      key: for operations that draw random numbers.
      statistics: filled with mean and biased variance `[C]` of each BatchNorm layer's input, by name of the layer.

    Raises:
      ValueError: if the graph draws random numbers and there is no key.
    """
    values: dict[str, Any] = {name: jnp.asarray(value) for name, value in graph.constants.items()}
    values |= {node: tensors[name] for node, name in graph.tensors.items()} | {graph.images: images}
    fill = functools.partial(_filled, values)
    for number, node in enumerate(graph.nodes):
        args, options = fill(node.args), fill(node.options)
        if statistics is not None and node.operation in _BATCH_NORM:
            layer = graph.tensors[node.args[_RUNNING_MEAN].name].rpartition(".")[0]
            statistics[layer] = channel_statistics(args[0])
        if node.operation in RANDOM:
            if key is None:
                raise ValueError(f"PyTorch's {node.operation} draws random numbers, for which there is no key")
            values[node.name] = RANDOM[node.operation](jax.random.fold_in(key, number), *args, **options)
        else:
            values[node.name] = _function(node.operation, args)(*args, **options)
    return values[graph.logits]


def _function(name: str, args: tuple[Any, ...]) -> Callable[..., Any]:
    """The operation; arithmetic on sizes is Python's."""
    on_sizes = name in _PYTHON and not any(isinstance(arg, jax.Array | np.ndarray) for arg in args)
    return _PYTHON[name] if on_sizes or name == "getitem" else OPERATIONS[name]


def _filled(values: Mapping[str, Any], value: Any) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, tuple):
        return tuple(_filled(values, item) for item in value)
    if isinstance(value, dict):
        return {key: _filled(values, item) for key, item in value.items()}
    return value
