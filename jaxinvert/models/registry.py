"""Registry of networks by name, for command lines, sweeps and experiments.

Library code takes a `Model` or a function, never a name.
"""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from jaxinvert.models.convnet import convnet
from jaxinvert.models.external import import_model, is_external, likely_name
from jaxinvert.models.layers import ConvolutionFn, unknown_value
from jaxinvert.models.lenet import lenet
from jaxinvert.models.mlp import mlp
from jaxinvert.models.model import Model
from jaxinvert.models.resnet import resnet_cifar, resnet_imagenet
from jaxinvert.models.small_convnet import small_convnet, small_convnet_bn
from jaxinvert.models.vit import vit
from jaxinvert.models.wide_convnet import wide_convnet


class Inputs(Protocol):
    """What a network needs to know of a data set: `data.Dataset` has it."""

    @property
    def images(self) -> np.ndarray:
        """`[N, H, W, C]`."""
        ...

    @property
    def num_classes(self) -> int:
        """`K`."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """`[C]`."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """`[C]`."""
        ...


REGISTRY: dict[str, Callable[..., Model]] = {
    "lenet": lenet,
    "convnet64": functools.partial(convnet, width=64),
    "small-convnet": small_convnet,
    "small-convnet-bn": small_convnet_bn,
    "mlp": mlp,
    "mlp-unbiased": functools.partial(mlp, hidden_bias=False),
    "resnet20-4": functools.partial(resnet_cifar, depth=20, width=64),
    "resnet32-10": functools.partial(resnet_cifar, depth=32, width=160),
    "resnet18": functools.partial(resnet_imagenet, depth=18),
    "resnet34": functools.partial(resnet_imagenet, depth=34),
    "resnet50": functools.partial(resnet_imagenet, depth=50),
    "vit-plain": functools.partial(vit, kind="plain"),
    "vit-pre-norm": functools.partial(vit, kind="pre-norm"),
    "vit-pre-norm-fixed": functools.partial(vit, kind="pre-norm", positions="fixed"),
    "wide-convnet": wide_convnet,
}
"""Name -> factory with keyword arguments only; its signature lists the options."""


def _sized_vit(kind: str, positions: str, patch: int, width: int, depth: int) -> Callable[..., Model]:
    return functools.partial(vit, kind=kind, positions=positions, patch=patch, width=width, depth=depth)


def _sized_mlp(hidden_bias: bool, *features: int) -> Callable[..., Model]:
    return functools.partial(mlp, features=features, hidden_bias=hidden_bias)


_ANY_SIZE: dict[str, Callable[..., Callable[..., Model]]] = {
    r"convnet(\d+)": lambda width: functools.partial(convnet, width=width),
    r"small-convnet(\d+)": lambda width: functools.partial(small_convnet, width=width),
    r"small-convnet-bn(\d+)": lambda width: functools.partial(small_convnet_bn, width=width),
    r"mlp-(\d+(?:-\d+)*)": functools.partial(_sized_mlp, True),
    r"mlp-unbiased-(\d+(?:-\d+)*)": functools.partial(_sized_mlp, False),
    r"resnet(\d+)-(\d+)": lambda depth, factor: functools.partial(resnet_cifar, depth=depth, width=16 * factor),
    r"vit-plain-(\d+)-(\d+)-(\d+)": functools.partial(_sized_vit, "plain", "learnable"),
    r"vit-pre-norm-(\d+)-(\d+)-(\d+)": functools.partial(_sized_vit, "pre-norm", "learnable"),
    r"vit-pre-norm-fixed-(\d+)-(\d+)-(\d+)": functools.partial(_sized_vit, "pre-norm", "fixed"),
    r"wide-convnet-(\d+)": lambda units: functools.partial(wide_convnet, units=units),
}
"""Patterns of names with sizes in them -> factory for these sizes."""


def names() -> tuple[str, ...]:
    """The registered names, in registration order."""
    return tuple(REGISTRY)


def create(
    name: str,
    *,
    like: Inputs | None = None,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    conv_general_dilated: ConvolutionFn | None = None,
    **architecture: Any,
) -> Model:
    """Creates a registered network, or imports a user's network.

    Example:
      >>> from jaxinvert import models
      >>> model = models.create("convnet64", num_classes=100, width=16, batch_norm="train")
      >>> model.name, model.head
      ('convnet16', 'params/head')

    Args:
      name: one of `names()`; or with sizes: `convnetW`, `small-convnetW` and `small-convnet-bnW` with a width,
        `resnetD-F` with a depth and a multiple of the usual width, `mlp-W-W-...` and `mlp-unbiased-W-W-...` with the
        hidden widths, `vit-plain-P-W-D`, `vit-pre-norm-P-W-D` and `vit-pre-norm-fixed-P-W-D` with a patch size, a
        width and a depth,
        `wide-convnet-U` with a number of units; or `module:function`, which is imported and called, see
        `import_model`.
      like: a data set, whose shape, classes and normalization the network has where nothing else is given.
      input_shape: `(H, W, C)` of one example; without `like` by default `(32, 32, 3)`.
      num_classes: `K`; without `like` by default 10.
      mean: `C` per-channel means of pixels in [0, 1]; without `like` by default no shift.
      std: `C` per-channel standard deviations; without `like` by default no scale.
      conv_general_dilated: replaces the convolution (`jaxinvert.nn.conv_general_dilated`), for example by
        `jax.lax.conv_general_dilated`; `None` = keep it.
      **architecture: options of the network's factory, such as `width`, `depth`, `features`, `batch_norm`.

    Returns:
      The model. Its name states its actual sizes.

    Raises:
      ValueError: for an unknown name or option (the message lists the known ones and the closest match), and for
        values that the factory rejects.
    """
    if like is not None:
        input_shape = like.images.shape[1:] if input_shape is None else input_shape
        num_classes = like.num_classes if num_classes is None else num_classes
        mean, std = like.mean if mean is None else mean, like.std if std is None else std
    input_shape = (32, 32, 3) if input_shape is None else input_shape
    num_classes = 10 if num_classes is None else num_classes
    options = dict(architecture)
    if conv_general_dilated is not None:
        options["conv_general_dilated"] = conv_general_dilated
    if is_external(name):
        return import_model(name, input_shape=input_shape, num_classes=num_classes, mean=mean, std=std, **options)
    factory = _factory(name)
    known = set(inspect.signature(factory).parameters)
    for option in options:
        if option not in known:
            raise unknown_value(f"option of model {name!r}:", option, known)
    return factory(input_shape=input_shape, num_classes=num_classes, mean=mean, std=std, **options)


def _factory(name: str) -> Callable[..., Model]:
    if name in REGISTRY:
        return REGISTRY[name]
    for pattern, with_sizes in _ANY_SIZE.items():
        if sizes := re.fullmatch(pattern, name):
            return with_sizes(*(int(size) for group in sizes.groups() for size in group.split("-")))
    if likely := likely_name(name):
        raise ValueError(
            f"unknown model {name!r}; did you mean {likely!r}, a function in a module of yours that makes a network?"
        )
    raise unknown_value("model", name, REGISTRY)
