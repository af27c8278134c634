"""Defenses by name, each with the attacker that adapts to it, for command lines, sweeps and audits.

A recipe says what it changes: the network (`extend`), what a client computes (`client`), or the update that comes of
it (`update`). How an attacker adapts is in `counters`, under the same name. `extended`, `protect`, `defend` and
`adapt` do that for several defenses at once, named `"top-k+gaussian"` in the order in which the client applies them;
`defended` is the whole client. Numbers are known by `"NAME.number"`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxinvert.clients import AnyClientUpdateFn
from jaxinvert.defenses.bottleneck import with_bottleneck
from jaxinvert.defenses.clipping import clipped
from jaxinvert.defenses.composition import chain, identity
from jaxinvert.defenses.mixing import mixup
from jaxinvert.defenses.noise import gaussian_noise, laplace_noise, percentile_noise
from jaxinvert.defenses.outpost import outpost
from jaxinvert.defenses.quantization import qsgd, sign
from jaxinvert.defenses.recipe import Numbers, Setting, dp_scale, per_example_clipping
from jaxinvert.defenses.representation import soteria
from jaxinvert.defenses.sparsification import percentile_privacy, random_k, top_k, top_k_of_tensors
from jaxinvert.defenses.weights import row_noise, smallest_weights_zeroed
from jaxinvert.models import Model, training_loss
from jaxinvert.types import Batch, ClientUpdateFn, Defense, Key, Params, Scalar, Update

NONE = "none"
"""What a client without a defense has."""


class Number(NamedTuple):
    """A strength of a defense: its default, and the most it can be; it is always positive."""

    default: float
    most: float = float(np.finfo(np.float32).max)


def _same_client(
    setting: Setting, numbers: Numbers, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del setting, numbers, key
    return client_update


def _same_update(setting: Setting, numbers: Numbers, params: Params) -> Defense:
    del setting, numbers, params
    return identity


def _same_model(model: Model) -> Model:
    return model


class Recipe(NamedTuple):
    """A defense under its name.

    Attributes:
      summary: one line for people.
      numbers: its strengths; all may be traced. An attacker that adapts must know them.
      client: `(setting, numbers, key, client_update) -> client_update`, for what happens before there is an update;
        the key may be `None` unless `draws_first`.
      update: `(setting, numbers, params) -> defense`, for what happens to the update.
      extend: of the network, for what the server would have to do.
      draws_first: whether `client` draws random numbers.
      single_examples: whether it looks at examples one by one.
      least_examples: behind an update for it to do anything.
      one_step: whether it is defined for a client that sends one gradient only.
      no_epsilon: why it is not differentially private; empty for a defense that is.
    """

    summary: str
    numbers: Mapping[str, Number]
    client: Callable[[Setting, Numbers, Key | None, ClientUpdateFn], ClientUpdateFn] = _same_client
    update: Callable[[Setting, Numbers, Params], Defense] = _same_update
    extend: Callable[[Model], Model] = _same_model
    draws_first: bool = False
    single_examples: bool = False
    least_examples: int = 1
    one_step: bool = False
    no_epsilon: str = ""

    @property
    def changes_client(self) -> bool:
        """Whether it acts before there is an update; such a defense comes first."""
        return self.client is not _same_client

    @property
    def changes_model(self) -> bool:
        """Whether the network is another one with it."""
        return self.extend is not _same_model


def names_in(defense: str) -> tuple[str, ...]:
    """The names in a chain such as `"dp-sgd+top-k"`; none in `"none"`.

    Raises:
      ValueError: for an unknown name, one given twice, or one that changes the client but does not come first.
    """
    names = () if defense == NONE else tuple(defense.split("+"))
    if unknown := [name for name in names if name not in REGISTRY]:
        raise ValueError(f"unknown defense {unknown[0]!r}; known are {NONE}, {', '.join(REGISTRY)}, joined by '+'")
    if len(set(names)) < len(names):
        raise ValueError(f"defense is {defense!r}, expected every name once")
    if late := [name for name in names[1:] if REGISTRY[name].changes_client]:
        raise ValueError(f"defense is {defense!r}, but {late[0]} changes the client's computation: it comes first")
    return names


def numbers_of(defense: str, given: Mapping[str, float]) -> dict[str, float]:
    """All numbers of a chain under their full names: the defaults, replaced by what is given.

    Args:
      defense: a chain.
      given: by full name, or by the number's own where only one defense of the chain has it.

    Raises:
      ValueError: for a number that there is not, is ambiguous, is given twice, or is out of range.

    >>> numbers_of("top-k+gaussian", {"keep": 0.5})
    {'top-k.keep': 0.5, 'gaussian.scale': 0.01}
    """
    known = {f"{name}.{own}": number for name in names_in(defense) for own, number in REGISTRY[name].numbers.items()}
    values = {full: number.default for full, number in known.items()}
    taken: dict[str, str] = {}
    for name, value in given.items():
        meant = [full for full in known if name in (full, full.split(".")[1])]
        if len(meant) != 1:
            which = (
                f"is ambiguous among {', '.join(meant)}" if meant else f"is unknown; there are {[*known] or 'none'}"
            )
            raise ValueError(f"defense setting {name!r} of {defense!r} {which}")
        (full,) = meant
        if full in taken:
            raise ValueError(f"defense setting {full} is given twice, as {taken[full]!r} and as {name!r}")
        if not 0 < value <= known[full].most:
            raise ValueError(
                f"defense setting {full} is {value}, expected more than 0 and at most {known[full].most:g}"
            )
        taken[full], values[full] = name, value
    return values


def extended(defense: str, model: Model) -> Model:
    """The network with what the defenses add to it."""
    for name in names_in(defense):
        model = REGISTRY[name].extend(model)
    return model


def protect(
    defense: str, setting: Setting, numbers: Numbers, client_update: ClientUpdateFn, *, key: Key | None = None
) -> ClientUpdateFn:
    """The client with what the defenses change in its computation; `key` is for what they draw there."""
    for recipe, own in recipes_in(defense, numbers):
        client_update = recipe.client(setting, own, key, client_update)
    return client_update


def defend(defense: str, setting: Setting, numbers: Numbers, params: Params) -> Defense:
    """What the defenses do to an update of `params`."""
    parts = [recipe.update(setting, own, params) for recipe, own in recipes_in(defense, numbers)]
    return chain(*parts) if parts else identity


def defended(defense: str, setting: Setting, numbers: Numbers, client_update: ClientUpdateFn) -> AnyClientUpdateFn:
    """All that a client does: `(params, batch, key) -> update`, as it is sent."""
    draws_first = any(REGISTRY[name].draws_first for name in names_in(defense))

    def send(params: Params, batch: Batch, key: Key | None = None) -> Update:
        first_key, update_key = jax.random.split(key) if draws_first and key is not None else (None, key)
        client = protect(defense, setting, numbers, client_update, key=first_key)
        return defend(defense, setting, numbers, params)(update_key, client(params, batch))

    return send


def recipes_in(defense: str, numbers: Numbers) -> Iterator[tuple[Recipe, dict[str, Scalar]]]:
    """Every recipe of a chain with its own numbers under their own names."""
    for name in names_in(defense):
        yield REGISTRY[name], {own: numbers[f"{name}.{own}"] for own in REGISTRY[name].numbers}


def _on_update(make: Callable[..., Defense]) -> Callable[[Setting, Numbers, Params], Defense]:
    """For a defense that is made of its numbers alone."""
    return lambda setting, numbers, params: make(**numbers)


def _on_weights(make: Callable[..., Defense]) -> Callable[[Setting, Numbers, Params], Defense]:
    """For a defense that is made of the parameters and its numbers."""
    return lambda setting, numbers, params: make(params, **numbers)


def _dp_noise(setting: Setting, numbers: Numbers, params: Params) -> Defense:
    del params
    return gaussian_noise(dp_scale(setting, numbers))


def _clipped_examples(
    setting: Setting, numbers: Numbers, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del key, client_update  # the gradient of the mean, which cannot be clipped any more
    return per_example_clipping(setting, numbers)


def _mixup(setting: Setting, numbers: Numbers, key: Key | None, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del numbers
    return mixup(client_update, key=key, num_classes=setting.model.num_classes)


def _outpost(setting: Setting, numbers: Numbers, key: Key | None, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del client_update  # which trains without it
    return setting.train(training_loss(setting.model), change=outpost(key, **numbers))


def _precode(setting: Setting, numbers: Numbers, key: Key | None, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del numbers, client_update  # whose loss has no noise
    if key is None:
        raise ValueError("a random defense needs a key: precode was handed None")
    if setting.model.drawn_loss_fn is None:
        raise ValueError(f"precode needs a network with a bottleneck, which {setting.model.name} has not: `extended`")
    return setting.train(setting.model.drawn_loss_fn, dropout_key=key)


def _soteria(setting: Setting, numbers: Numbers, key: Key | None, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del key
    return soteria(client_update, setting.model.apply, head=setting.model.head, **numbers)


_SHARE = Number(0.1, most=1)

REGISTRY: dict[str, Recipe] = {
    "clip": Recipe(
        summary="the update scaled down to a norm",
        no_epsilon="it bounds the update of all examples together and adds no noise",
        numbers={"norm": Number(4.0)},
        update=_on_update(clipped),
    ),
    "dp-sgd": Recipe(
        summary="every example's gradient clipped to a norm, normal noise on their mean (Abadi et al. 2016)",
        numbers={"norm": Number(1.0), "multiplier": Number(0.1)},
        client=_clipped_examples,
        update=_dp_noise,
        single_examples=True,
        one_step=True,
    ),
    "gaussian": Recipe(
        summary="normal noise of a fixed scale; not differentially private",
        no_epsilon="noise without a bound on every example's gradient hides no example for certain",
        numbers={"scale": Number(1e-2)},
        update=_on_update(gaussian_noise),
    ),
    "laplace": Recipe(
        summary="Laplace noise of a fixed scale; not differentially private",
        no_epsilon="noise without a bound on every example's gradient hides no example for certain",
        numbers={"scale": Number(1e-2)},
        update=_on_update(laplace_noise),
    ),
    "mixup": Recipe(
        summary="trains on mixtures of 4 images and of their labels (Zhang et al. 2018; Huang et al. 2021)",
        no_epsilon="every mixture holds a share of single examples, and nothing bounds what they contribute",
        numbers={},
        client=_mixup,
        draws_first=True,
        least_examples=2,
    ),
    "outpost": Recipe(
        summary="pruned local gradients, noise where they tell most, ever more rarely (Wang et al. 2023)",
        no_epsilon="at random times it sends the gradient as it is, and no example's gradient bounds its noise",
        numbers={
            "phi": Number(40.0, most=100),
            "prune": Number(80.0, most=100),
            "noise": Number(0.8),
            "decay": Number(0.125),
        },
        client=_outpost,
        draws_first=True,
    ),
    "percentile-noise": Recipe(
        summary="normal noise in units of each tensor's 95th percentile (Hatamizadeh et al. 2023)",
        no_epsilon="its scale is taken from the update that it shall hide, and no example's gradient is bounded",
        numbers={"scale": Number(1.0)},
        update=_on_update(percentile_noise),
    ),
    "percentile-privacy": Recipe(
        summary="small entries of each tensor zeroed, large ones clipped (Shokri, Shmatikov 2015)",
        no_epsilon="nothing in it is random",
        numbers={"percentile": Number(10.0, most=100), "bound": Number(0.01)},
        update=_on_update(percentile_privacy),
    ),
    "precode": Recipe(
        summary="a variational bottleneck of 256 units before the head (Scheliga et al. 2022)",
        no_epsilon="its noise is inside the network, whose gradients nothing bounds",
        numbers={},
        client=_precode,
        extend=with_bottleneck,
        draws_first=True,
    ),
    "qsgd": Recipe(
        summary="entries rounded at random to a few levels, unbiased (Alistarh et al. 2017)",
        no_epsilon="its randomness rounds to neighboring levels and leaves what is far apart distinguishable",
        numbers={"levels": Number(16.0)},
        update=_on_update(qsgd),
    ),
    "random-k": Recipe(
        summary="a random share of the entries, rescaled to be unbiased (Wangni et al. 2018)",
        no_epsilon="what it sends, it sends as it is",
        numbers={"keep": _SHARE},
        update=_on_update(random_k),
    ),
    "row-noise": Recipe(
        summary="noise on the weights sent, relative to their largest row (Zhao et al. 2022)",
        no_epsilon="its scale is taken from the weights that it shall hide, and no example's gradient is bounded",
        numbers={"scale": Number(1e-3), "bound": Number(0.2)},
        update=_on_weights(row_noise),
    ),
    "sign": Recipe(
        summary="the signs alone (Bernstein et al. 2018)",
        no_epsilon="nothing in it is random",
        numbers={},
        update=_on_update(lambda: sign),
    ),
    "smallest-weights-zeroed": Recipe(
        summary="zeros for the smallest weights sent (Zhao et al. 2022)",
        no_epsilon="nothing in it is random",
        numbers={"share": Number(0.9, most=1)},
        update=_on_weights(smallest_weights_zeroed),
    ),
    "soteria": Recipe(
        summary="zeros in the head's gradient for the features that tell most of the input (Sun et al. 2021)",
        no_epsilon="nothing in it is random, and what it hides depends on the examples",
        numbers={"share": Number(0.8, most=1)},
        client=_soteria,
        single_examples=True,
    ),
    "top-k": Recipe(
        summary="the largest entries of the whole update",
        no_epsilon="nothing in it is random",
        numbers={"keep": _SHARE},
        update=_on_update(top_k),
    ),
    "top-k-per-tensor": Recipe(
        summary="the largest entries of every tensor",
        no_epsilon="nothing in it is random",
        numbers={"keep": _SHARE},
        update=_on_update(top_k_of_tensors),
    ),
}
