"""`from_nnx`: a `Model` from a Flax NNX module; files name tensors by their path in the module, "conv/kernel"."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxinvert.models.adapters.building import model_of_call
from jaxinvert.models.model import Model
from jaxinvert.models.modes import Mode, check_modes
from jaxinvert.models.tensors import Tensor
from jaxinvert.types import Array, Key

if TYPE_CHECKING:  # importing it takes a tenth of the time in which a command starts
    from flax import nnx


def from_nnx(
    module: "nnx.Module",
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
    """Makes a `Model` from a Flax NNX module that maps normalized images `[B, H, W, C]` to logits `[B, K]`.

    The parameters are the module's own, at every call of `init`. `nnx.Param` are trained, other variables travel;
    the states of random number generators are not part of the parameters.

    Args:
      module: the module, which is not changed.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`; by default the number of logits.
      mean: `C` per-channel means of pixels in [0, 1] that are subtracted before the module; `None` = no shift.
      std: `C` per-channel standard deviations that pixels are divided by; `None` = no scale.
      batch_norm: mode of the BatchNorm layers.
      dropout: mode of all other layers; "train" draws in `drawn_loss_fn`, and `apply` does not.
      name: of the model; by default the class name.
      head: path of the last dense layer, such as "params/fc"; by default the last one with `K` outputs.

    Raises:
      ValueError: for an unknown mode, or an output that is not `[B, K]`.
    """
    from flax import nnx

    check_modes(batch_norm, dropout)
    graph, state = nnx.split(nnx.clone(module))
    variables = dict(nnx.to_flat_state(state))
    random = {path: v for path, v in variables.items() if isinstance(v, nnx.RngState)}
    spelled = {"/".join(map(str, path)): path for path in variables if path not in random}
    tensors = [Tensor(key, f"{_collection(variables[path])}/{key}") for key, path in spelled.items()]
    values = {key: variables[path][...] for key, path in spelled.items()}

    def call(
        given: Mapping[str, Any],
        inputs: Array,
        *,
        key: Key | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> Array:
        filled = {path: variables[path].replace(given[name]) for name, path in spelled.items()}
        network = nnx.merge(graph, nnx.from_flat_state({**_generators(random, key), **filled}))
        network.eval()
        if key is not None:
            network.train()
        for path, layer in list(nnx.iter_modules(network)):
            if isinstance(layer, nnx.BatchNorm):
                layer.use_running_average = batch_norm == "eval"
                if statistics is not None:
                    _replace(network, path, _Observed(layer, "/".join(map(str, path)), statistics))
        return network(inputs)

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
        draws=dropout == "train" and bool(random),
    )


def _generators(random: Mapping[Any, Any], key: Key | None) -> dict[Any, Any]:
    """The states of the random number generators; with a key, new ones."""
    from flax import nnx

    drawn = {}
    for number, (path, variable) in enumerate(random.items()):
        own = (
            variable[...] if key is None or not isinstance(variable, nnx.RngKey) else jax.random.fold_in(key, number)
        )
        drawn[path] = variable.replace(own)
    return drawn


class _Observed:
    """A BatchNorm layer that also records the statistics of its input."""

    def __init__(self, layer: "nnx.BatchNorm", path: str, statistics: dict[str, Any]) -> None:
        self.layer, self.path, self.statistics = layer, path, statistics

    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        axis = self.layer.axis % x.ndim
        reduced = tuple(i for i in range(x.ndim) if i != axis)
        self.statistics[self.path] = {"mean": jnp.mean(x, reduced), "var": jnp.var(x, reduced)}
        return self.layer(x, *args, **options)


def _replace(network: Any, path: Sequence[Any], layer: Any) -> None:
    """Puts another layer in the place of the one at `path`."""
    *parents, last = path
    parent = functools.reduce(
        lambda node, part: node[part] if isinstance(part, int) else getattr(node, part), parents, network
    )
    if isinstance(last, int):
        parent[last] = layer
    else:
        object.__setattr__(parent, last, layer)


def _collection(variable: Any) -> str:
    from flax import nnx

    if isinstance(variable, nnx.Param):
        return "params"
    return "batch_stats" if isinstance(variable, nnx.BatchStat) else "buffers"
