"""`from_haiku`: a `Model` from a transformed Haiku function; files name tensors "linear/w", as Haiku does."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

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

    If the function has an argument named `is_training`, `train`, `training`, `deterministic` or `inference`, it is
    told its mode by it, and its `hk.BatchNorm` layers theirs. State, such as running statistics and counters, travels
    untrained. The running statistics are the layers' `hidden` averages, which move towards the batch's as Flax's do;
    Haiku normalizes by these, corrected for their initial zeros, `average`.

    Args:
      transformed: the result of `hk.transform` or `hk.transform_with_state`, also through `hk.without_apply_rng`.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`; by default the number of logits.
      mean: `C` per-channel means of pixels in [0, 1] that are subtracted before the network; `None` = no shift.
      std: `C` per-channel standard deviations that pixels are divided by; `None` = no scale.
      batch_norm: mode of the BatchNorm layers, for a function that takes one.
      dropout: mode of all other layers; "train" draws random numbers in `drawn_loss_fn`; `apply` has none.
      name: of the model.
      head: path of the last dense layer, such as "params/linear"; by default the last one with `K` outputs.

    Raises:
      ValueError: if Haiku is not installed, for an unknown mode, or an output that is not `[B, K]`; when traced, if
        the function draws random numbers without a key.
    """
    hk = library("haiku", extra="haiku")
    check_modes(batch_norm, dropout)
    with_state = isinstance(transformed, hk.TransformedWithState)
    takes_key = "rng" in inspect.signature(transformed.apply).parameters
    if not with_state:
        transformed = hk.with_empty_state(transformed)
    if not takes_key:
        transformed = transformed._replace(apply=_taking_a_key(transformed.apply))
    example = jax.random.uniform(jax.random.key(0), (2, *input_shape))  # its statistics are the first state
    train_mode = mode_arguments(transformed.apply, training=True)
    params, state = transformed.init(jax.random.key(0), example, **train_mode)

    def applied(params: Any, state: Any, key: Key | None, inputs: Array, *, training: bool) -> Array:
        mode = mode_arguments(transformed.apply, training=training)
        try:
            return transformed.apply(params, state, key, inputs, **mode)[0]
        except ValueError as error:
            if _NO_KEY in str(error):
                raise ValueError(
                    f"{name} draws random numbers where it should not: give its function an argument is_training "
                    "that turns them off"
                ) from error
            raise

    modes: dict[str, bool] = {}
    with _norms(hk, record=modes):
        key = jax.random.key(0)
        jax.eval_shape(lambda x: applied(params, state, key, x, training=batch_norm == "train"), example)
    quiet = {"training": False}
    if train_mode and batch_norm == "train" and not _draws(transformed, params, state, example, train_mode):
        quiet = {"training": True}
    elif train_mode and (batch_norm, dropout) != ("eval", "eval"):
        _check_apart(hk, transformed, params, state, example, train_mode, name=name)
    tensors = [*_tensors(params, "params", _LINEN), *_state_tensors(state, modes)]

    def call(
        given: Mapping[str, Any],
        inputs: Array,
        *,
        key: Key | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> Array:
        with _norms(hk, modes=modes if train_mode else {}, statistics=statistics):
            rebuilt = _rebuilt(given, params), _rebuilt(given, state)
            return applied(*rebuilt, key, inputs, **(quiet if key is None else {"training": True}))

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


def _taking_a_key(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The function of `hk.without_apply_rng` with a key again, which it does not use."""

    @functools.wraps(apply)
    def with_key(params: Any, state: Any, key: Key | None, *inputs: Array, **options: Any) -> Any:
        del key
        return apply(params, state, *inputs, **options)

    return with_key


_NO_KEY = "RNG"
"""In the errors of Haiku for random numbers that are drawn without a key."""


def _draws(transformed: Any, params: Any, state: Any, example: Array, mode: Mapping[str, bool]) -> bool:
    """Whether the function draws random numbers in this mode."""
    try:
        jax.eval_shape(lambda x: transformed.apply(params, state, None, x, **mode), example)
    except ValueError as error:
        if _NO_KEY in str(error):
            return True
        raise
    return False


def _check_apart(
    hk: Any, transformed: Any, params: Any, state: Any, example: Array, mode: Mapping[str, bool], *, name: str
) -> None:
    """Checks that in train mode no state changes but that of `hk.BatchNorm`, which can be put into eval mode alone.

    Raises:
      ValueError: naming the state that changes.
    """
    changed: list[str] = []

    def apply(inputs: Array) -> Array:
        with _norms(hk, mode=False):
            logits, new = transformed.apply(params, state, jax.random.key(0), inputs, **mode)
        before = _values(state)
        changed.extend(path for path, leaf in _values(new).items() if leaf is not before[path])
        return logits

    jax.eval_shape(apply, example)
    if changed:
        raise ValueError(
            f"{name} changes its state {changed[0]!r} when it is told to train, which is not that of a BatchNorm "
            "layer: it cannot be told apart from dropout, so dropout and batch_norm need the same mode"
        )


@contextlib.contextmanager
def _norms(
    hk: Any,
    *,
    modes: Mapping[str, bool] = MappingProxyType({}),
    mode: bool | None = None,
    record: dict[str, bool] | None = None,
    statistics: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Watches and changes the `hk.BatchNorm` layers that are called in this context.

    Args:
      hk: Haiku.
      modes: by path, whether a layer is put into train mode.
      mode: whether all others are; `None` = left in their own.
      record: filled with the modes that the layers are called in.
      statistics: filled with mean and biased variance of the input of each layer, by its path.
    """

    def interceptor(call: Any, args: tuple, options: dict[str, Any], context: Any) -> Any:
        layer = context.module
        if not isinstance(layer, hk.BatchNorm) or context.method_name != "__call__":
            return call(*args, **options)
        given = dict(zip(("inputs", "is_training", "test_local_stats", "scale", "offset"), args)) | options
        if record is not None:
            record[layer.module_name] = bool(given["is_training"])
        if statistics is not None:
            x = given["inputs"]
            axes = layer.axis
            if axes is None:
                axes = [axis for axis in range(x.ndim) if axis != layer.channel_index % x.ndim]
            statistics[layer.module_name] = {
                "mean": jnp.mean(x, tuple(axes), keepdims=True),
                "var": jnp.var(x, tuple(axes), keepdims=True),
            }
        own = given["is_training"] if mode is None else mode
        return call(**given | {"is_training": modes.get(layer.module_name, own)})

    with hk.intercept_methods(interceptor):
        yield


def _state_tensors(state: Mapping[str, Mapping[str, Any]], norms: Iterable[str]) -> list[Tensor]:
    """The tensors of the state; the running statistics of the layers `norms` have Flax's names."""
    running = {
        f"{norm}/~/{kind}_ema/hidden": f"batch_stats/{norm}/{kind}" for norm in norms for kind in ("mean", "var")
    }
    return [tensor._replace(path=running.get(tensor.name, tensor.path)) for tensor in _tensors(state, "state", {})]


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
