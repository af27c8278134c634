"""Matches tensors that have a position instead of a name: `arr_0`, `arr_1` ... of `np.savez(file, *arrays)`.

Flower's `NumPyClient` sends such lists, and so do others that drop names. A list is matched by order, and its shapes
are the check: an order whose shapes differ anywhere is wrong. If two orders fit, the file is ambiguous.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from jaxinvert.readers.stored import Stored

_POSITION = re.compile(r"(?:arr_)?(\d{1,6})")
Shapes = Mapping[str, tuple[int, ...]]


def is_positional(names: Iterable[str]) -> bool:
    """Whether all names are positions: `arr_0` ... or `0` ..., without a gap."""
    found = [_POSITION.fullmatch(name) for name in names]
    return bool(found) and sorted(int(one[1]) if one else -1 for one in found) == [*range(len(found))]


def by_position(tensors: Mapping[str, Stored], shapes: Shapes, orders: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The name in the file of each tensor of the model.

    Args:
      tensors: the file's tensors by position, see `is_positional`.
      shapes: expected shapes by name.
      orders: the orders in which libraries list these names, by what they are called.

    Returns:
      Names in the file by name in the model.

    Raises:
      ValueError: if no order fits, or if two fit and differ; the message names the first tensor in question.
    """
    placed = sorted(tensors, key=lambda name: int(_POSITION.fullmatch(name)[1]))  # type: ignore[index]
    sizes = [tensors[name].shape for name in placed]
    fitting: dict[tuple[str, ...], str] = {}
    for called, order in orders.items():
        if [shapes[name] for name in order] == sizes:
            fitting.setdefault(tuple(order), called)
    if len(fitting) > 1:
        (one, called), (other, also_called) = list(fitting.items())[:2]
        at = next(i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1])
        raise ValueError(
            f"its tensors have no names, and both {called} and {also_called} fit their shapes: {placed[at]} is "
            f"{one[at]} or {other[at]}; write the tensors with their names"
        )
    if fitting:
        return dict(zip(next(iter(fitting)), placed))
    by_shape = {shape: name for name, shape in shapes.items()}
    if len(by_shape) == len(shapes) == len(sizes) and sorted(sizes) == sorted(shapes.values()):
        return {by_shape[tensors[name].shape]: name for name in placed}  # every shape is there once
    order = next(iter(orders.values()))
    if len(order) != len(sizes):
        raise ValueError(
            f"it has {len(sizes)} tensors without names, expected {len(order)}: {', '.join(order[:4])} ..."
        )
    at = next(i for i, name in enumerate(order) if shapes[name] != sizes[i])
    raise ValueError(
        f"its tensors have no names, and in order {placed[at]} {sizes[at]} would be {order[at]} {shapes[order[at]]}; "
        "write the tensors with their names"
    )
