"""`Model`: a network as `init`, `apply` and static facts; adapters for Flax modules and for pairs of functions.

Attacks require only the function `apply(params, inputs) -> logits` (or a loss function built on it), so any model can
be attacked; the networks in this package are those used in published attacks. `from_linen` and `from_functions` turn
a Flax module or a pair of functions into a `Model`.

`params` is the *full* Flax variables dictionary, `{"params": ..., "batch_stats": ...}`: everything the server sends.
Running statistics, buffers and integers are sent but not trained, so `apply` stops their gradient: a client's
gradient has the same tree as `params`, and these leaves are exactly zero. `roles` has the rule.
"""

import functools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert.models.batch_norm import record_batch_norm, sow_batch_statistics
from jaxinvert.models.linen_modes import in_modes
from jaxinvert.models.losses import DrawnLossFn, DrawnLossOf, LossOf, cross_entropy, drawn_by
from jaxinvert.models.modes import Mode, check_modes, mode_arguments
from jaxinvert.models.roles import untrained_cut_off
from jaxinvert.types import ApplyFn, Array, ArrayTree, Key, LossFn, Params

MAX_NORMALIZATION = 1e4
"""Means and standard deviations of pixels in [0, 1] beyond this are a fault: logits would not be finite."""


class Calibration(NamedTuple):
    """How a client's loss relates to the mean cross-entropy of its logits, as far as label rules need it.

    Attributes:
      factor: constant factor of the loss.
      summed: whether it is a sum over examples instead of a mean.
      smoothing: label smoothing `a`: the label is `(1 - a) one_hot + a / K`.
      tempered: whether the logits are a multiple of the head's outputs, by a temperature among the parameters.
      refusal: why label rules of softmax cross-entropy cannot be used; empty if they can.
      unsent: why no label rule can be used, because updates do not hold the head's gradient; empty if they do.
    """

    factor: float = 1.0
    summed: bool = False
    smoothing: float = 0.0
    tempered: bool = False
    refusal: str = ""
    unsent: str = ""


class Model(NamedTuple):
    """A network as two pure functions and static facts.

    Attributes:
      name: name in the registry; sizes other than the published ones are appended.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`, the number of logits.
      head: path of the last dense layer in `params`, keys joined by "/": holds `kernel [features, K]` and `bias [K]`.
        Label recovery and closed-form attacks use it instead of assuming that the head is the last two leaves.
      init: `key -> params`.
      apply: `(params, inputs [B, H, W, C] in [0, 1]) -> logits [B, K]`; normalizes its inputs itself.
      mean: per-channel mean that `apply` subtracts; zeros = no normalization.
      std: per-channel standard deviation that `apply` divides by; ones = no normalization.
      batch_statistics: `(params, inputs [B, H, W, C] in [0, 1]) -> statistics`, the tree of
        `params["batch_stats"]`: mean and biased variance, over batch and pixels, of each BatchNorm layer's input in
        `apply`; `{}` without such layers. Differentiable in `inputs`. A key as third argument adds the draws of
        training, if the network has any.
      loss_of: `apply -> (params, batch) -> []`, what the clients minimize, as a function of the network.
      loss_fn: `(params, batch) -> []`, what they minimize instead if it is not a function of the network's logits.
      drawn_loss_of: turns a loss into one with the random numbers that the network draws in training, which `apply`
        leaves out, see `losses.drawn_by`; `None` if it draws none.
      task: what the network is trained for, see `tasks`.
      tensors: names and layouts of the tensors in files of the network's library, a `tensors.Tensor` for each; `None`
        if files name them by path and have the same layout, as those of Flax do.
      calibration: how the loss relates to the mean cross-entropy of the logits.
      frozen: paths of the leaves that clients do not train, beside those read off; see `roles` and `with_frozen`.
      personal: paths of the leaves that clients train but do not send; see `with_personal`.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    head: str
    init: Callable[[Key], Params]
    apply: ApplyFn
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_statistics: Callable[..., ArrayTree]
    loss_of: LossOf = cross_entropy
    loss_fn: LossFn | None = None
    drawn_loss_of: DrawnLossOf | None = None
    task: str = "classes"
    tensors: tuple[Any, ...] | None = None
    calibration: Calibration = Calibration()
    frozen: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()

    @property
    def loss(self) -> LossFn:
        """`(params, batch) -> []`, what the clients minimize: by default the mean cross-entropy."""
        return self.loss_fn or self.loss_of(self.apply)

    @property
    def drawn_loss_fn(self) -> DrawnLossFn | None:
        """`(params, batch, key) -> []`, the same loss with the network's draws; `None` if it draws none."""
        if self.drawn_loss_of is None:
            return None
        own = self.loss_fn
        return self.drawn_loss_of(self.loss_of if own is None else lambda apply: own)

    def normalized(self, inputs: Array) -> Array:
        """`(inputs - mean) / std` of pixels `[B, H, W, C]` in [0, 1], as `apply` does it."""
        return _normalized(inputs, _Facts(self.name, self.input_shape, self.mean, self.std))


def first_batch_norm(model: Model) -> str | None:
    """Path of the BatchNorm layer that a network of Flax modules calls first, such as "norm_0" or "Block_0/norm".

    The path is that of its statistics in `params["batch_stats"]`. Traces the network, computes nothing.

    Returns:
      The path, or `None` for a network without such layers, or of another library.
    """
    called: list[str] = []

    def apply(params: Params, inputs: Array) -> Array:
        return model.apply(params, inputs)  # traced anew: JAX has model.apply itself in its cache

    inputs = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    with linen.intercept_methods(functools.partial(record_batch_norm, called)):
        jax.eval_shape(apply, jax.eval_shape(model.init, jax.random.key(0)), inputs)
    return called[0] if called else None


def from_linen(
    module: linen.Module,
    *,
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str = "params/head",
    batch_norm: Mode = "eval",
    dropout: Mode = "eval",
) -> Model:
    """Makes a `Model` from a Flax linen module whose `__call__` maps normalized inputs to logits.

    Updates of running statistics by the module are discarded: in BatchNorm train mode the logits use the batch's own
    statistics, and a client's update never contains new running statistics. `Model.batch_statistics` returns the
    batch's statistics, in train mode and in eval mode (where earlier layers normalize by their running statistics).

    A module whose `__call__` has an argument `train`, `training`, `is_training`, `deterministic` or `inference` is
    told its mode by it, and its BatchNorm layers theirs, see `linen_modes`. Other modules decide themselves. The
    functions of the result are not jitted.

    Args:
      module: maps `[B, H, W, C]` to logits `[B, K]`; needs no random numbers in eval mode.
      name: name of the model in reports.
      input_shape: `(H, W, C)`, all positive.
      num_classes: `K`, at least 1.
      mean: `C` per-channel means of pixels in [0, 1]; `None` = zeros.
      std: `C` positive per-channel standard deviations; `None` = ones.
      head: path of the module's last dense layer, from the root of the variables.
      batch_norm: mode of the BatchNorm layers, for a module that takes one.
      dropout: mode of all other layers; "train" draws random numbers in `drawn_loss_fn`; `apply` has none.

    Returns:
      The model.

    Raises:
      ValueError: for an invalid shape, class count, mean or std; later, from `apply`, for inputs that are not
        `[B, *input_shape]`.
    """
    facts = _facts(name, input_shape, num_classes, mean, std)
    check_modes(batch_norm, dropout)
    quiet: dict[str, Any] = mode_arguments(module.__call__, training=batch_norm == "train")
    run = in_modes(module, name=name, batch_norm=batch_norm)

    def init(key: Key) -> Params:
        # lazy_init only traces the forward pass for its shapes; only the initializers run.
        keys = {"params": key, "dropout": key} if quiet and batch_norm == "train" else key
        return module.lazy_init(keys, jax.ShapeDtypeStruct((1, *facts.input_shape), jnp.float32), **quiet)

    def logits_of(params: Params, inputs: Array, key: Key | None) -> Array:
        # "mutable" lets BatchNorm in train mode write its running statistics, which are then dropped.
        return run(untrained_cut_off(params), _normalized(inputs, facts), key, mutable=["batch_stats"])[0]

    def apply(params: Params, inputs: Array) -> Array:
        return logits_of(params, inputs, None)

    def batch_statistics(params: Params, inputs: Array, key: Key | None = None) -> ArrayTree:
        kinds = ["batch_stats", "batch_statistics"]
        with linen.intercept_methods(sow_batch_statistics):
            _, written = run(untrained_cut_off(params), _normalized(inputs, facts), key, mutable=kinds)
        return written.get("batch_statistics", {})

    return Model(
        head=head,
        init=init,
        apply=apply,
        batch_statistics=batch_statistics,
        num_classes=num_classes,
        drawn_loss_of=drawn_by(logits_of, name=name) if dropout == "train" else None,
        **facts._asdict(),
    )


def from_functions(
    init: Callable[[Key], Params],
    apply: ApplyFn,
    *,
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str = "params/head",
) -> Model:
    """Makes a `Model` from two pure functions, written with any library or none.

    Args:
      init: `key -> params`, any tree.
      apply: `(params, normalized inputs [B, H, W, C]) -> logits [B, K]`.
      name: name of the model in reports.
      input_shape: `(H, W, C)`, all positive.
      num_classes: `K`, at least 1.
      mean: `C` per-channel means of pixels in [0, 1]; `None` = zeros.
      std: `C` positive per-channel standard deviations; `None` = ones.
      head: path of the last dense layer in `params`.

    Returns:
      The model. Leaves of `params` under "batch_stats" are not trained. The inputs of its BatchNorm layers cannot be
      observed: its `batch_statistics` raises ValueError if there are such layers.

    Raises:
      ValueError: see `from_linen`.
    """
    facts = _facts(name, input_shape, num_classes, mean, std)

    def apply_to_pixels(params: Params, inputs: Array) -> Array:
        return apply(untrained_cut_off(params), _normalized(inputs, facts))

    def batch_statistics(params: Params, inputs: Array, key: Key | None = None) -> ArrayTree:
        del inputs, key
        if isinstance(params, Mapping) and params.get("batch_stats"):
            raise ValueError(
                f"{name} is a pair of functions, whose BatchNorm layers cannot be seen: use a Flax module"
            )
        return {}

    return Model(
        head=head,
        init=init,
        apply=apply_to_pixels,
        batch_statistics=batch_statistics,
        num_classes=num_classes,
        **facts._asdict(),
    )


class _Facts(NamedTuple):
    """Static facts about the inputs of the network `name`."""

    name: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _facts(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> _Facts:
    height, width, channels = _three_positive(input_shape)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    mean = _per_channel("mean", mean, channels, default=0.0)
    std = _per_channel("std", std, channels, default=1.0)
    if not all(value >= 1 / MAX_NORMALIZATION for value in std):
        raise ValueError(f"std must be positive in every channel, at least {1 / MAX_NORMALIZATION:g}, got {std}")
    return _Facts(name, (height, width, channels), mean, std)


def _normalized(inputs: Array, facts: _Facts) -> Array:
    height, width, channels = facts.input_shape
    if inputs.ndim != 4 or inputs.shape[1:] != facts.input_shape:
        raise ValueError(f"{facts.name} expects inputs [B, {height}, {width}, {channels}], got {inputs.shape}")
    per_channel = (1, 1, 1, channels)
    centered = inputs - jnp.asarray(facts.mean, inputs.dtype).reshape(per_channel)
    return centered / jnp.asarray(facts.std, inputs.dtype).reshape(per_channel)


def _three_positive(input_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(input_shape) != 3 or any(size < 1 for size in input_shape):
        raise ValueError(f"input_shape must be three positive sizes (H, W, C), got {tuple(input_shape)}")
    height, width, channels = input_shape
    return int(height), int(width), int(channels)


def _per_channel(name: str, values: Sequence[float] | None, channels: int, *, default: float) -> tuple[float, ...]:
    """The normalization constants as a tuple of `channels` finite floats."""
    if values is None:
        return (default,) * channels
    if len(values) != channels or not all(abs(value) <= MAX_NORMALIZATION for value in values):
        raise ValueError(
            f"{name} must be {channels} finite numbers of at most {MAX_NORMALIZATION:g}, one per channel, "
            f"got {reprlib.repr(values)}"
        )
    return tuple(float(value) for value in values)
