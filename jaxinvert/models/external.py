"""Imports a user's network by the name of a function, `module:function`, for command lines, sweeps and experiments.

The module is imported, so its code runs, with the working directory on the path as with `python -m`. Only name
modules that you trust.
"""

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert.models.adapters.by_type import adapted, kind_of
from jaxinvert.models.batch_norm import refuse_train_mode
from jaxinvert.models.heads import inspected
from jaxinvert.models.layers import unknown_value
from jaxinvert.models.losses import cross_entropy
from jaxinvert.models.model import Model, from_functions
from jaxinvert.models.modes import Mode, check_modes, mode_arguments
from jaxinvert.models.seeding import seeded
from jaxinvert.types import ApplyFn, Array, Batch, LossFn, Params

_EXPECTED = (
    "a jaxinvert.models.Model, a network of Flax, PyTorch, Haiku, Equinox or Keras, or a pair (init, apply); a loss "
    "function may follow"
)


def is_external(name: str) -> bool:
    """Whether `name` is of the form `module:function`."""
    return ":" in name


def import_model(
    name: str,
    *,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | None = None,
    batch_norm: Mode = "eval",
    dropout: Mode = "eval",
    **options: Any,
) -> Model:
    """Imports a module, calls its function, and makes a `Model` from the result.

    Of `input_shape`, `num_classes`, `mean` and `std`, the function receives those that are given and that are among
    its arguments.

    | it returns | the network takes |
    | --- | --- |
    | a `Model` | pixels |
    | a network of a library, or `(init, apply)` | pixels, if the function takes `mean` or `std`; else normalized |
    | `(network, loss_fn)`, `(init, apply, loss_fn)` | the same, and so does `loss_fn`, which clients minimize |

    The libraries are Flax (linen and NNX), PyTorch, Haiku, Equinox and Keras. A loss is `(params, batch) -> []` of a
    `jaxinvert.Batch` of inputs, as the network takes them, and labels; for a network of another library than Flax
    linen it is `(logits, labels) -> []`. Only the latter can be drawn by dropout="train"; of Flax linen, return a
    `Model` with its `loss_of`. Without a loss, clients minimize the mean cross-entropy. Head and loss are checked
    numerically, see `inspection`. A function that takes `batch_norm` is given its mode; else the library's adapter
    sets the modes. A linen module without an argument for its mode, and a pair of functions, decide themselves.

    Args:
      name: such as "my_net:make", or "package.module:function".
      input_shape: `(H, W, C)` of one example; a returned `Model` must have the same.
      num_classes: `K`; by default as many as the network has logits.
      mean: `C` per-channel means of pixels in [0, 1]; `None` = no shift.
      std: `C` per-channel standard deviations; `None` = no scale.
      head: path of the last dense layer in the parameters, for attacks that read it. By default a `Model`'s own, else
        the dense layer whose outputs are the logits; "" if there is none.
      batch_norm: mode of the BatchNorm layers.
      dropout: "eval" without random numbers, or "train" with draws, see `Model.drawn_loss_fn`.
      **options: further arguments of the function.

    Raises:
      ValueError: if there is no such module or function, if it fails, has no argument for an option, or returns
        something else; if its logits are not `[B, K]` floats, or its loss is not a scalar, or cannot be drawn. This
        is checked with `jax.eval_shape`, without computing anything.
    """
    function = _import_function(name)
    accepted = _parameters(function, name)
    modes = {"batch_norm": batch_norm, "dropout": dropout}
    check_modes(**modes)
    if "batch_norm" in accepted:
        options["batch_norm"] = batch_norm
    for option in options:
        if option not in accepted:
            raise unknown_value(f"option of model {name!r}:", option, accepted)
    given = {"input_shape": input_shape, "num_classes": num_classes, "mean": mean, "std": std}
    arguments = {key: value for key, value in given.items() if value is not None and key in accepted} | options
    if lacking := [key for key, needed in accepted.items() if needed and key not in arguments]:
        raise ValueError(f"model {name} needs {', '.join(lacking)}, which is not given")
    with _failure_named(f"{name} failed when called with {', '.join(arguments) or 'nothing'}"), seeded():
        returned = function(**arguments)
    network, loss_fn = _network_and_loss(returned, name)
    theirs = not isinstance(network, Model)
    if not isinstance(network, Model):
        if input_shape is None:
            raise ValueError(f"model {name} needs input_shape: its result has none")
        if {"mean", "std"} & accepted.keys():
            mean = std = None
        _check_modes_are_set(network, modes, accepted, name)
        network, loss_fn = _as_model(
            network,
            loss_fn,
            name=name,
            input_shape=input_shape,
            num_classes=num_classes,
            mean=mean,
            std=std,
            modes=modes,
        )
    model = _checked(
        network._replace(loss_fn=loss_fn or network.loss_fn, head=network.head if head is None else head),
        name,
        input_shape=input_shape,
        num_classes=num_classes,
    )
    return inspected(model, head=head) if theirs or loss_fn is not None else model


def _as_model(
    network: Any,
    loss_fn: Any,
    *,
    name: str,
    input_shape: Sequence[int],
    num_classes: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    modes: Mapping[str, Any],
) -> tuple[Model, Any]:
    """The model of a network of any library or of a pair of functions, and its loss of parameters and batch."""
    kind = kind_of(network)
    facts = {"input_shape": input_shape, "mean": mean, "std": std, "name": name, "head": ""}
    with _failure_named(f"model {name} cannot be imported for {_of(input_shape)}"):
        if kind is None:
            model = from_functions(*network, num_classes=num_classes or 1, **facts)
        elif kind == "Flax module":
            model = adapted(network, num_classes=num_classes or 1, **facts, **modes)
        else:
            model = adapted(network, **facts, **modes)
    if kind in (None, "Flax module"):
        return _with_classes(model, num_classes), loss_fn and _of_normalized(loss_fn, model)
    if loss_fn is None:
        return model, None

    def of_logits(apply: ApplyFn) -> LossFn:
        return lambda params, batch: loss_fn(apply(params, batch.inputs), batch.labels)

    return model._replace(loss_of=of_logits), None


def _of_normalized(loss_fn: LossFn, model: Model) -> LossFn:
    """A user's loss on pixels: it calls the network itself, so it is given the inputs that the network takes."""
    return lambda params, batch: loss_fn(params, batch._replace(inputs=model.normalized(batch.inputs)))


def _check_modes_are_set(network: Any, modes: Mapping[str, str], accepted: Mapping[str, bool], name: str) -> None:
    """Raises ValueError for a mode "train" that nothing would set."""
    kind = kind_of(network)
    if kind is not None and (kind != "Flax module" or mode_arguments(network.__call__, training=True)):
        return
    for what, mode in modes.items():
        if mode == "train" and not (what == "batch_norm" and what in accepted):
            raise unknown_value(f"option of model {name!r}:", what, accepted)


def check_eval_mode(model: Model) -> None:
    """Raises ValueError for a network of Flax modules with a BatchNorm layer in train mode.

    Raises:
      ValueError: naming the layer.
    """

    def apply(params: Params, inputs: Array) -> Array:
        return model.apply(params, inputs)  # a new function is traced again; model.apply may be in JAX's cache

    with linen.intercept_methods(refuse_train_mode):
        jax.eval_shape(apply, jax.eval_shape(model.init, jax.random.key(0)), _inputs(model))


_MAX_PATH = 200
"""Characters of a name that is looked up as a file: longer ones are refused by file systems."""


def likely_name(name: str) -> str:
    """What a name without a function is likely meant to be, such as "my_net:FUNCTION"; "" if nothing is there.

    Nothing is imported: it is looked up as a module, or as a file, in the working directory.

    Args:
      name: such as "my_net", "my_net.py", "nets/my_net.py" or "my_package.net".
    """
    path = name.removeprefix("./").removesuffix(".py").strip("/").replace(os.sep, ".").replace("/", ".")
    parts = path.split(".")
    if len(path) > _MAX_PATH or not all(part.isidentifier() for part in parts):
        return ""
    place = Path.cwd().joinpath(*parts)
    if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
        return f"{path}:FUNCTION"
    *module, function = parts
    place = Path.cwd().joinpath(*module)
    return f"{'.'.join(module)}:{function}" if module and place.with_suffix(".py").is_file() else ""


def source_of(name: str) -> Path:
    """The source file of the module in `module:function`, which identifies the model; imports its parent packages.

    Raises:
      ValueError: if there is none.
    """
    module_name, _ = _parsed(name)
    with _failure_named(f"importing {module_name} failed"):
        found = importlib.util.find_spec(module_name)
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise _no_module(module_name)
    return Path(found.origin)


def _parsed(name: str) -> tuple[str, str]:
    """Splits a name into module and function; adds the working directory to the path, as `python -m` does."""
    module_name, _, function_name = name.partition(":")
    is_name = all(part.isidentifier() for part in (*module_name.split("."), function_name))
    if not is_name or module_name.endswith(".py"):
        likely = likely_name(module_name).partition(":")[0]
        meant = f"; did you mean {likely}:{function_name or 'FUNCTION'}?" if likely else ", such as my_net:make"
        raise ValueError(f"model {name!r} is not of the form module:function{meant}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return module_name, function_name


def _import_function(name: str) -> Callable[..., Any]:
    module_name, function_name = _parsed(name)
    try:
        with _failure_named(f"importing {module_name} failed"):
            module = importlib.import_module(module_name)
    except ValueError as error:
        missing = getattr(error.__cause__, "name", None)
        if isinstance(error.__cause__, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            raise _no_module(module_name) from error
        raise
    function = getattr(module, function_name, None)
    if isinstance(function, Model) or kind_of(function) is not None:
        what = kind_of(function) or "jaxinvert.models.Model"
        raise ValueError(
            f"model {name} is a network ({what}), not a function that returns one: write "
            f"`def make(): return {function_name}` in {module_name}, and name {module_name}:make"
        )
    if not callable(function):
        if function is not None:
            what = type(function).__name__
            raise ValueError(f"model {name} is of the type {what}, not a function that returns {_EXPECTED}")
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_value(f"function of {module_name}:", function_name, known)
    return function


def _no_module(module_name: str) -> ValueError:
    """The error for a missing module; lists the modules of the working directory."""
    here = Path.cwd()
    known = {file.stem for file in here.glob("*.py")} | {file.parent.name for file in here.glob("*/__init__.py")}
    return unknown_value(f"module (not installed, and not in {here}):", module_name, known)


def _parameters(function: Callable[..., Any], name: str) -> dict[str, bool]:
    """Maps the keyword arguments of a function to whether they are required."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the arguments of {name} are unknown: {error}") from error
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {item.name: item.default is item.empty for item in parameters if item.kind in by_name}


@contextlib.contextmanager
def _failure_named(what: str) -> Iterator[None]:
    """Turns any exception of the user's code into a ValueError that names the line of that code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_FOREIGN)]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise ValueError(f"{what}: {type(error).__name__}: {error}{where}") from error


_NOT_FOREIGN = ("<", *(os.path.dirname(file) for file in (jax.__file__, flax.__file__, os.path.dirname(__file__))))


def _network_and_loss(returned: Any, name: str) -> tuple[Any, Any]:
    match returned:
        case Model():
            return returned, None
        case _ if kind_of(returned) is not None:
            return returned, None
        case (network, loss_fn) if callable(loss_fn) and (isinstance(network, Model) or kind_of(network) is not None):
            return network, loss_fn
        case (init, apply) if callable(init) and callable(apply):
            return (init, apply), None
        case (init, apply, loss_fn) if callable(init) and callable(apply) and callable(loss_fn):
            return (init, apply), loss_fn
    kinds = f" of {', '.join(type(item).__name__ for item in returned)}" if isinstance(returned, tuple) else ""
    raise ValueError(f"model {name} returned a {type(returned).__name__}{kinds}, expected {_EXPECTED}")


def _with_classes(model: Model, num_classes: int | None) -> Model:
    """Fills in the number of classes, by default as many as there are logits."""
    _, logits = _shapes(model)
    of_logits = logits.shape[-1] if getattr(logits, "ndim", 0) == 2 else 1
    is_default = num_classes is None or (of_logits, num_classes) == (1, 2)
    return model._replace(num_classes=of_logits if is_default else num_classes)


def _checked(model: Model, name: str, *, input_shape: Sequence[int] | None, num_classes: int | None) -> Model:
    """Returns the model after checking the shapes of its inputs, logits and loss."""
    if input_shape is not None and tuple(input_shape) != tuple(model.input_shape):
        raise ValueError(f"model {name} takes inputs {tuple(model.input_shape)}, expected {tuple(input_shape)}")
    one_logit = (model.num_classes, num_classes) == (1, 2)  # two classes may have one logit, see `tasks`
    if num_classes is not None and num_classes != model.num_classes and not one_logit:
        raise _other_classes(name, model.num_classes, num_classes)
    params, logits = _shapes(model)
    expected = (_BATCH_SIZE, model.num_classes)
    if num_classes is not None and _is_logits(logits) and logits.shape[-1] != num_classes and not one_logit:
        raise _other_classes(name, logits.shape[-1], num_classes)
    if getattr(logits, "shape", None) != expected or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"the logits of model {name} are {_described(logits)}, expected floats {expected}: [B, K]")
    if model.loss_fn is not None or model.loss_of is not cross_entropy:
        loss = _loss_shape(model, params)
        if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(f"the loss of model {name} is {_described(loss)}, expected one float")
    return model


_BATCH_SIZE = 3
"""Batch size for checking shapes: neither 1, which would be broadcast, nor a common number of classes."""


def _other_classes(name: str, num_outputs: int, num_classes: int) -> ValueError:
    return ValueError(
        f"the data has {num_classes} classes (--data, by default photos; else num_classes), but the network of model "
        f"{name} has {num_outputs} outputs: give other data, or a function with an argument num_classes, which it is "
        "given"
    )


def _is_logits(logits: Any) -> bool:
    """Whether an output has the form `[B, K]`, whatever `K` is."""
    shape = getattr(logits, "shape", ())
    return len(shape) == 2 and shape[0] == _BATCH_SIZE and jnp.issubdtype(logits.dtype, jnp.floating)


def _loss_shape(model: Model, params: Params) -> Any:
    """The shape of the loss, with draws if the network draws, on the first form of labels that it takes."""
    one_each, per_logit = (_BATCH_SIZE,), (_BATCH_SIZE, model.num_classes)
    failures = []
    for shape, dtype in ((one_each, jnp.int32), (per_logit, jnp.float32), (one_each, jnp.float32)):
        labels: Any = jax.ShapeDtypeStruct(shape, dtype)
        try:
            with _failure_named(f"the loss of model {model.name} failed on {_BATCH_SIZE} examples"):
                if (drawn := model.drawn_loss_fn) is not None:
                    return jax.eval_shape(drawn, params, Batch(_inputs(model), labels), jax.random.key(0))
                return jax.eval_shape(model.loss, params, Batch(_inputs(model), labels))
        except ValueError as error:
            failures.append(error)
    raise failures[0]


def _shapes(model: Model) -> tuple[Params, Any]:
    """The shapes of parameters and logits."""
    with _failure_named(f"the parameters of model {model.name} cannot be initialized for {_of(model.input_shape)}"):
        params = jax.eval_shape(model.init, jax.random.key(0))
    with _failure_named(f"model {model.name} failed on {_BATCH_SIZE} {_of(model.input_shape)}"):
        return params, jax.eval_shape(model.apply, params, _inputs(model))


def _of(input_shape: Sequence[int]) -> str:
    """Inputs with what sets their shape, which is often what a network that fails does not fit."""
    return f"inputs (H, W, C) = {tuple(input_shape)}, as --data or --input-shape sets them"


def _inputs(model: Model) -> Any:
    return jax.ShapeDtypeStruct((_BATCH_SIZE, *model.input_shape), jnp.float32)


def _described(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"
