"""What a user declares of a network's leaves: layers that are frozen, and layers that stay with the client."""

from collections.abc import Iterable

import jax

from jaxinvert.models.losses import drawn_with_tree
from jaxinvert.models.model import Model
from jaxinvert.models.roles import matches, trained_leaves, untrained_cut_off
from jaxinvert.trees import first_few, leaves_by_path
from jaxinvert.types import Array, Batch, Params


def with_frozen(model: Model, names: Iterable[str]) -> Model:
    """The model with layers that clients do not train: their gradient is zero, and an update may lack them.

    Args:
      model: the network.
      names: of leaves or layers, as in the tree ("params/features") or in the library's files ("features.0.weight").

    Raises:
      ValueError: for a name that the model does not have, or if nothing is left to train.
    """
    frozen = tuple(dict.fromkeys((*model.frozen, *leaf_paths(model, names))))
    if not frozen:
        return model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if not any(jax.tree.leaves(trained_leaves(shapes, frozen))):
        raise ValueError(f"every layer of model {model.name} is frozen: nothing is trained")
    apply, loss_fn = model.apply, model.loss_fn

    def frozen_apply(params: Params, inputs: Array) -> Array:
        return apply(untrained_cut_off(params, frozen), inputs)

    def frozen_loss(params: Params, batch: Batch) -> Array:
        assert loss_fn is not None
        return loss_fn(untrained_cut_off(params, frozen), batch)

    return with_head_checked(
        model._replace(
            frozen=frozen,
            apply=frozen_apply,
            loss_fn=loss_fn and frozen_loss,
            drawn_loss_of=drawn_with_tree(model.drawn_loss_of, lambda params: untrained_cut_off(params, frozen)),
        )
    )


def with_personal(model: Model, names: Iterable[str]) -> Model:
    """The model with layers that clients train but do not send, such as personal heads; see `with_frozen`.

    Raises:
      ValueError: for a name that the model does not have.
    """
    personal = tuple(dict.fromkeys((*model.personal, *leaf_paths(model, names))))
    return with_head_checked(model._replace(personal=personal))


def with_head_checked(model: Model) -> Model:
    """The model with the reason, in its calibration, if updates do not hold the gradient of its head."""
    for path in (f"{model.head}/kernel", f"{model.head}/bias"):
        kinds = {
            "frozen, which clients do not train": model.frozen,
            "personal, which clients do not send": model.personal,
        }
        for kind, paths in kinds.items():
            if model.head and matches(path, paths):
                unsent = f"updates do not hold the gradient of {path}: it is {kind}"
                return model._replace(calibration=model.calibration._replace(unsent=unsent))
    return model


def leaf_paths(model: Model, names: Iterable[str]) -> list[str]:
    """The paths of all leaves that `names` stand for: leaves or layers, by our paths or the library's names.

    Raises:
      ValueError: for a name that the model does not have; the message lists some that it has.
    """
    paths = list(leaves_by_path(jax.eval_shape(model.init, jax.random.key(0))))
    spelled = [(path, path) for path in paths] + [(path.removeprefix("params/"), path) for path in paths]
    spelled += [(tensor.name, tensor.path) for tensor in model.tensors or ()]
    found: list[str] = []
    for name in names:
        prefix = name.rstrip("/.").replace(".", "/")
        of_name = [path for spelling, path in spelled if matches(spelling.replace(".", "/"), [prefix])]
        if not of_name:
            known = sorted({spelling for spelling, _ in spelled[len(paths) :]})
            raise ValueError(f"model {model.name} has no layer {name!r}; it has {first_few(known, many=6)}")
        found += of_name
    return list(dict.fromkeys(found))
