"""Runs a Flax linen module with its BatchNorm layers in one mode and all other layers in another.

A module has one argument for both, such as `train`. So the mode that it gives each BatchNorm layer in either case is
read off by tracing it, and the layers are then put into it by an interceptor:

| batch_norm | without a key, as in `Model.apply`  | with a key, for the draws of training                     |
|------------|-------------------------------------|-----------------------------------------------------------|
| "eval"     | told to evaluate                    | told to train; BatchNorm layers in the mode of evaluation |
| "train"    | told to train, if it draws nothing; | told to train                                             |
|            | else as above, and BatchNorm layers |                                                           |
|            | in the mode of training             |                                                           |

Layers of the user's own that write running statistics cannot be put into another mode than the rest: a module with
them refuses two modes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen
from flax.errors import InvalidRngError, ModifyScopeVariableError

from jaxinvert.models.batch_norm import norms_in_modes, record_modes
from jaxinvert.models.modes import Mode, mode_arguments
from jaxinvert.types import Array, ArrayTree, Key, Params

Run = Callable[..., tuple[Array, ArrayTree]]
"""`(variables, inputs, key, *, mutable) -> (logits, written collections)`; `key` may be `None`."""


def in_modes(module: linen.Module, *, name: str, batch_norm: Mode) -> Run:
    """The module's forward pass in these modes: random layers draw with a key, and only then.

    Args:
      module: maps inputs to logits.
      name: of the model, for messages.
      batch_norm: mode of the BatchNorm layers, for a module that takes one.

    Returns:
      The forward pass. Raises ValueError when traced, if the module draws random numbers without a key, or cannot be
      run in these modes.
    """
    takes_mode = bool(mode_arguments(module.__call__, training=True))
    modes: list[
        Mapping[str, bool] | None
    ] = []  # of the norms, or `None` to leave them alone; found by the first call

    def applied(variables: Params, inputs: Array, key: Key | None, training: bool, mutable: Any) -> Any:
        rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
        told: dict[str, Any] = mode_arguments(module.__call__, training=training)
        return module.apply(variables, inputs, mutable=mutable, rngs=rngs, **told)

    def traced(variables: Params, inputs: Array, key: Key | None, training: bool, *mutable: str) -> None:
        kinds = [*mutable, "batch_statistics"]  # which an interceptor around this call may write
        jax.eval_shape(lambda v, x: applied(v, x, key, training, kinds), variables, inputs)

    def draws_when_told_to_train(variables: Params, inputs: Array) -> bool:
        try:
            traced(variables, inputs, None, True, "batch_stats")
        except InvalidRngError:
            return True
        return False

    def modes_of_norms(variables: Params, inputs: Array) -> Mapping[str, bool]:
        """Whether each BatchNorm layer uses its running statistics in the mode `batch_norm`."""
        key, found = jax.random.key(0), {}
        with linen.intercept_methods(functools.partial(record_modes, found)):
            traced(variables, inputs, key, batch_norm == "train", "batch_stats")
        try:
            with norms_in_modes(dict.fromkeys(found, True)):
                traced(variables, inputs, key, True)
        except ModifyScopeVariableError as error:
            raise ValueError(
                f"{name} draws random numbers, and has layers beside flax.linen.BatchNorm that write running "
                "statistics, when it is told to train: these cannot be told apart, so dropout and batch_norm need "
                "the same mode"
            ) from error
        return found

    def run(variables: Params, inputs: Array, key: Key | None, *, mutable: Any) -> tuple[Array, ArrayTree]:
        training = key is not None
        if not takes_mode or training == (batch_norm == "train"):
            return applied(variables, inputs, key, training, mutable)
        if not modes:
            leave_alone = not training and not draws_when_told_to_train(variables, inputs)
            modes.append(None if leave_alone else modes_of_norms(variables, inputs))
        if modes[0] is None:
            return applied(variables, inputs, key, True, mutable)
        with norms_in_modes(modes[0]):
            return applied(variables, inputs, key, training, mutable)

    def explained(variables: Params, inputs: Array, key: Key | None, *, mutable: Any) -> tuple[Array, ArrayTree]:
        try:
            return run(variables, inputs, key, mutable=mutable)
        except InvalidRngError as error:
            raise ValueError(
                f"{name} draws random numbers where it should not: give its __call__ an argument 'train' or "
                f"'deterministic' that turns them off ({str(error).splitlines()[0]})"
            ) from error

    return explained
