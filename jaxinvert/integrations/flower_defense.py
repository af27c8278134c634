"""Reads the clients' defense off a Flower deployment: its strategy, with all its wrappers, and the clients' mods."""
# pyright: reportMissingImports=false

import math
from collections.abc import Iterator, Sequence
from typing import Any

from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    Strategy,
)

_CLIPPING = (DifferentialPrivacyClientSideAdaptiveClipping, DifferentialPrivacyClientSideFixedClipping)


def wrapped(strategy: Any) -> Iterator[Any]:
    """The strategy and those that it wraps, from the outside in, whatever attributes hold them."""
    pending, seen = [strategy], set()
    while pending:
        one = pending.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            pending += [value for value in getattr(one, "__dict__", {}).values() if isinstance(value, Strategy)]


def defense_of(strategy: Any, mods: Sequence[Any] = ()) -> str | None:
    """The clients' defense as `jaxinvert audit` spells it, read off Flower's own clipping and noise; `None` for none.

    Client-side clipping is `clip`; `LocalDpMod` is `clip+gaussian`; a client with both clips to the smaller norm.
    What a strategy clips or adds to the mean happens after the server has seen the updates, and protects nothing from
    it.

    Args:
      strategy: the strategy, maybe inside others.
      mods: the clients' mods in their order; the last one changes a reply first.

    Raises:
      ValueError: for noise that is not the last change, which has no spelling.
    """
    clipping = [one for one in wrapped(strategy) if isinstance(one, _CLIPPING)]
    norms = [one.clipping_norm for one in clipping[:1]]  # clients get the outermost one's
    private = [number for number, mod in enumerate(mods) if isinstance(mod, LocalDpMod)]
    if not private:
        return f"clip:norm={norms[0]:.6g}" if norms else None
    after = [mod for mod in mods[: private[-1]] if mod in (adaptiveclipping_mod, fixedclipping_mod)]
    if len(private) > 1 or (norms and after):
        raise ValueError("a mod changes replies after LocalDpMod has added noise: name the defense by facts")
    mod = mods[private[0]]
    scale = mod.sensitivity * math.sqrt(2 * math.log(1.25 / mod.delta)) / mod.epsilon
    return f"clip+gaussian:norm={min([mod.clipping_norm, *norms]):.6g},scale={scale:.6g}"
