"""Eval and train mode of BatchNorm and of random layers, as each library's networks take it."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from jaxinvert.models.layers import unknown_value

Mode = Literal["eval", "train"]
_TRAINING = ("train", "training", "is_training")
_EVALUATING = ("deterministic", "inference")


def check_modes(batch_norm: str, dropout: str) -> None:
    """Raises ValueError for modes other than "eval" and "train"."""
    for what, mode in (("batch_norm", batch_norm), ("dropout", dropout)):
        if mode not in ("eval", "train"):
            raise unknown_value(what, mode, ("eval", "train"))


def mode_arguments(function: Callable[..., Any], *, training: bool) -> dict[str, bool]:
    """The arguments that tell a network its mode: those of `function` named like one.

    >>> mode_arguments(lambda x, is_training: x, training=True)
    {'is_training': True}
    """
    names = inspect.signature(function).parameters
    given = {name: training for name in _TRAINING if name in names}
    return given | {name: not training for name in _EVALUATING if name in names}
