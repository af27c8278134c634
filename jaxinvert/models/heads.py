"""Gives a user's network the head that `inspection` finds, in the spelling that attacks and label rules read."""

import jax

from jaxinvert.models.declared import with_head_checked
from jaxinvert.models.inspection import Head, calibrated, find_heads
from jaxinvert.models.losses import drawn_with_tree
from jaxinvert.models.model import Calibration, Model
from jaxinvert.models.tensors import Layout, Tensor, leaves_from, nested, tensors_from
from jaxinvert.trees import first_few, leaves_by_path
from jaxinvert.types import Array, ArrayTree, Batch, Params


def inspected(model: Model, *, head: str | None = None) -> Model:
    """The model with its head found and its loss calibrated; computes with the network's first parameters.

    Args:
      model: the network.
      head: path of the head that a user named, or "" if there is none; by default it is found.

    Returns:
      The model. A head in another spelling than `head/kernel [M, K]` and `head/bias [K]` is renamed in the tree, and
      `Model.tensors` keeps the names of the files. Without a head, `Model.head` is empty and the calibration says why
      label rules refuse.

    Raises:
      ValueError: if the user's head is not one: the logits do not follow from it linearly.
    """
    if head == "":
        return model._replace(head="", calibration=Calibration(refusal=f"model {model.name} is said to have no head"))
    params = model.init(jax.random.key(0))
    heads = find_heads(model, params)
    if head is not None:
        named = [one for one in heads if _layer(one.kernel) == head]
        if not named:
            known = ", ".join(_layer(one.kernel) for one in heads) or "none"
            raise ValueError(
                f"the logits of model {model.name} are not the outputs of a dense layer {head!r}; "
                f"such layers are: {known}"
            )
        heads = named
    if len(heads) != 1:
        found = ", ".join(_layer(one.kernel) for one in heads)
        trained = f" that clients train (frozen are {first_few(model.frozen)})" if model.frozen else ""
        none = f"no dense layer{trained} is the head"
        why = f"several layers may be the head ({found}): name one by head" if heads else none
        return model._replace(head="", calibration=Calibration(refusal=f"{why} of model {model.name}"))
    (one,) = heads
    calibration = calibrated(model, params, one)
    layer = _layer(one.kernel)
    is_ours = one.kernel.endswith("/kernel") and not one.transposed and one.bias in (None, f"{layer}/bias")
    if not is_ours:
        model, layer = _respelled(model, params, one)
    return with_head_checked(model._replace(head=layer, calibration=calibration))


def _respelled(model: Model, params: Params, head: Head) -> tuple[Model, str]:
    """The model with its head renamed and transposed, and the head's path."""
    layer = _layer(head.kernel) or "head"
    renamed = {head.kernel: f"{layer}/kernel"} | ({head.bias: f"{layer}/bias"} if head.bias else {})
    structure, names = jax.tree.structure(params), list(leaves_by_path(params))
    layout = "dense" if head.transposed else "same"
    spelled = tuple(Tensor(n, renamed.get(n, n), layout if n == head.kernel else "same") for n in names)

    def theirs(tree: ArrayTree) -> Params:
        tensors = tensors_from(spelled, tree)
        return jax.tree.unflatten(structure, [tensors[name] for name in names])

    def ours(tree: Params) -> ArrayTree:
        return nested(leaves_from(spelled, leaves_by_path(tree)))

    init, apply, loss_fn, statistics = model.init, model.apply, model.loss_fn, model.batch_statistics

    def their_loss(tree: ArrayTree, batch: Batch) -> Array:
        assert loss_fn is not None
        return loss_fn(theirs(tree), batch)

    model = model._replace(
        init=lambda key: ours(init(key)),
        apply=lambda tree, inputs: apply(theirs(tree), inputs),
        loss_fn=loss_fn and their_loss,
        drawn_loss_of=drawn_with_tree(model.drawn_loss_of, theirs),
        batch_statistics=lambda tree, *inputs_and_key: statistics(theirs(tree), *inputs_and_key),
        tensors=_through(model.tensors, spelled),
        frozen=tuple(renamed.get(path, path) for path in model.frozen),
        personal=tuple(renamed.get(path, path) for path in model.personal),
    )
    return model, layer


def _through(files: tuple[Tensor, ...] | None, spelled: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The names and layouts of the library's files for the renamed leaves."""
    if files is None:
        return spelled
    new = {tensor.name: tensor for tensor in spelled}
    transposed: dict[Layout, Layout] = {"same": "dense", "dense": "same"}

    def through(file: Tensor) -> Tensor:
        leaf = new[file.path]
        if leaf.layout != "same" and file.layout not in transposed:
            raise ValueError(f"the head {file.name} is transposed, which is not possible with layout {file.layout!r}")
        return file._replace(path=leaf.path, layout=file.layout if leaf.layout == "same" else transposed[file.layout])

    return tuple(map(through, files))


def _layer(path: str) -> str:
    return path.rpartition("/")[0]
