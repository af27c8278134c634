"""The registry of defenses by name, for command lines, sweeps and audits, and chains such as `"top-k+gaussian"`.

A recipe defines what a defense changes: the network (`extend`), the client's computation (`client`), or the resulting
update (`update`). `parse` builds a `Chain` from names; `extended`, `protect` and `defend` apply its defenses in
order, and `defended` builds the whole client. Parameters have full names, `"NAME.parameter"`. `attacks.adaptive`
defines, by the same names, how an attacker adapts to a defense.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert.clients import AnyClientUpdateFn
from jaxinvert.defenses.bottleneck import with_bottleneck
from jaxinvert.defenses.clipping import clipped
from jaxinvert.defenses.composition import chain as composed
from jaxinvert.defenses.composition import identity
from jaxinvert.defenses.mixing import mixup
from jaxinvert.defenses.noise import gaussian_noise, laplace_noise, percentile_noise
from jaxinvert.defenses.outpost import outpost
from jaxinvert.defenses.quantization import qsgd, sign
from jaxinvert.defenses.recipe import ClientFacts, Parameter, Parameters, Recipe, dp_scale, per_example_clipping
from jaxinvert.defenses.representation import soteria
from jaxinvert.defenses.sparsification import percentile_privacy, random_k, top_k, top_k_of_tensors
from jaxinvert.defenses.weights import row_noise, smallest_weights_zeroed
from jaxinvert.models import Model
from jaxinvert.models.roles import sent_leaves
from jaxinvert.types import ArrayTree, Batch, ClientUpdateFn, Defense, Key, Params, Scalar, Update

NONE = "none"
"""The name for a client without a defense."""


class Chain(NamedTuple):
    """Defenses in the order in which a client applies them; empty for a client without a defense."""

    names: tuple[str, ...]

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The registry's recipes of the defenses."""
        return tuple(REGISTRY[name] for name in self.names)

    def parameters(self, given: Mapping[str, float]) -> dict[str, float]:
        """All parameters under their full names: the given values, else the defaults.

        Args:
          given: by full name, or by the parameter's own name if only one defense of the chain has it.

        Raises:
          ValueError: for a parameter that is unknown, ambiguous, given twice, or out of range.

        >>> parse("top-k+gaussian").parameters({"keep": 0.5})
        {'top-k.keep': 0.5, 'gaussian.scale': 0.01}
        """
        chain = "+".join(self.names) or NONE
        known = {
            f"{name}.{own}": parameter
            for name, recipe in zip(self.names, self.recipes)
            for own, parameter in recipe.parameters.items()
        }
        values = {full: parameter.default for full, parameter in known.items()}
        taken: dict[str, str] = {}
        for name, value in given.items():
            meant = [full for full in known if name in (full, full.split(".")[1])]
            if len(meant) != 1:
                which = (
                    f"is ambiguous among {', '.join(meant)}"
                    if meant
                    else f"is unknown; there are {[*known] or 'none'}"
                )
                raise ValueError(f"defense setting {name!r} of {chain!r} {which}")
            (full,) = meant
            if full in taken:
                raise ValueError(f"defense setting {full} is given twice, as {taken[full]!r} and as {name!r}")
            if not 0 < value <= known[full].most:
                raise ValueError(
                    f"defense setting {full} is {value}, expected more than 0 and at most {known[full].most:g}"
                )
            taken[full], values[full] = name, value
        return values

    def with_own(self, parameters: Parameters) -> Iterator[tuple[Recipe, dict[str, Scalar]]]:
        """Yields every recipe with its parameters under their own names, given parameters under full names."""
        for name, recipe in zip(self.names, self.recipes):
            yield recipe, {own: parameters[f"{name}.{own}"] for own in recipe.parameters}


def parse(text: str) -> Chain:
    """Parses names joined by "+", such as `"dp-sgd+top-k"`, or `"none"`.

    Raises:
      ValueError: for an unknown or repeated name, or a defense that changes the computation but is not first.
    """
    names = () if text == NONE else tuple(text.split("+"))
    if unknown := [name for name in names if name not in REGISTRY]:
        close = difflib.get_close_matches(unknown[0][:100].lower(), REGISTRY, n=1)
        raise ValueError(
            f"unknown defense {unknown[0]!r}; known are {NONE}, {', '.join(REGISTRY)}, joined by '+'"
            + "".join(f"; did you mean {name}?" for name in close)
        )
    if len(set(names)) < len(names):
        raise ValueError(f"defense is {text!r}, expected every name once")
    if late := [name for name in names[1:] if REGISTRY[name].changes_client]:
        raise ValueError(f"defense is {text!r}, but {late[0]} changes the client's computation: it comes first")
    return Chain(names)


def extended(chain: Chain, model: Model) -> Model:
    """The network with the layers that the defenses add."""
    for recipe in chain.recipes:
        model = model if recipe.extend is None else recipe.extend(model)
    return model


def protect(
    chain: Chain,
    facts: ClientFacts,
    parameters: Parameters,
    client_update: ClientUpdateFn,
    *,
    key: Key | None = None,
) -> ClientUpdateFn:
    """The client with its computation changed by the defenses; `key` is for their random draws."""
    for recipe, own in chain.with_own(parameters):
        client_update = client_update if recipe.client is None else recipe.client(facts, own, key, client_update)
    return client_update


def defend(chain: Chain, facts: ClientFacts, parameters: Parameters, params: Params) -> Defense:
    """The chain's transformation of an update of `params`."""
    parts = [recipe.update(facts, own, params) for recipe, own in chain.with_own(parameters)]
    return composed(*parts) if parts else identity


def defended(
    chain: Chain, facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn
) -> AnyClientUpdateFn:
    """The whole client with its defenses, `(params, batch, key) -> sent update`.

    The defenses see only what the client sends. What it does not send (running statistics, buffers, frozen and
    personal layers) stays zero: noise there would move the server's copy in every round.
    """
    draws_first = any(recipe.draws_first for recipe in chain.recipes)

    def send(params: Params, batch: Batch, key: Key | None = None) -> Update:
        first_key, update_key = jax.random.split(key) if draws_first and key is not None else (None, key)
        update = protect(chain, facts, parameters, client_update, key=first_key)(params, batch)
        sent = sent_leaves(params, facts.model.frozen, facts.model.personal)
        defense = defend(chain, facts, parameters, _without_the_others(params, sent))
        changed = defense(update_key, _without_the_others(update, sent))
        return jax.tree.map(lambda whole, part: jnp.zeros_like(whole) if part is None else part, update, changed)

    return send


def _without_the_others(tree: ArrayTree, chosen: ArrayTree) -> ArrayTree:
    """The tree with `None`, a node without leaves, for every leaf that is not chosen."""
    return jax.tree.map(lambda leaf, is_chosen: leaf if is_chosen else None, tree, chosen)


def _on_update(make: Callable[..., Defense]) -> Callable[[ClientFacts, Parameters, Params], Defense]:
    """The `update` of a defense that is built from its parameters alone."""
    return lambda facts, parameters, params: make(**parameters)


def _on_weights(make: Callable[..., Defense]) -> Callable[[ClientFacts, Parameters, Params], Defense]:
    """The `update` of a defense that is built from the model's parameters and its own."""
    return lambda facts, parameters, params: make(params, **parameters)


def _dp_noise(facts: ClientFacts, parameters: Parameters, params: Params) -> Defense:
    del params
    return gaussian_noise(dp_scale(facts, parameters))


def _clipped_examples(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del key, client_update  # it returns the mean gradient, which cannot be clipped per example
    return per_example_clipping(facts, parameters)


def _mixup(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del parameters
    return mixup(client_update, key=key, num_classes=facts.model.num_classes)


def _outpost(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del client_update  # it trains without the defense
    return facts.train(facts.model.loss, change=outpost(key, **parameters))


def _precode(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del parameters, client_update  # its loss has no noise
    if key is None:
        raise ValueError("a random defense needs a key: precode received None")
    if facts.model.drawn_loss_fn is None:
        raise ValueError(f"precode needs a network with a bottleneck; apply `extended` to {facts.model.name}")
    return facts.train(facts.model.drawn_loss_fn, dropout_key=key)


def _soteria(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del key
    return soteria(client_update, facts.model.apply, head=facts.model.head, **parameters)


_SHARE = Parameter(0.1, most=1)

REGISTRY: dict[str, Recipe] = {
    "clip": Recipe(
        summary="scales the update down to a maximum norm",
        no_epsilon="it bounds the update of all examples together and adds no noise",
        parameters={"norm": Parameter(4.0)},
        update=_on_update(clipped),
    ),
    "dp-sgd": Recipe(
        summary="clips each example's gradient to a norm, adds normal noise to their mean (Abadi et al. 2016)",
        parameters={"norm": Parameter(1.0), "multiplier": Parameter(0.1)},
        client=_clipped_examples,
        update=_dp_noise,
        random=True,
        single_examples=True,
        one_step=True,
    ),
    "gaussian": Recipe(
        summary="adds normal noise of a fixed scale; not differentially private",
        no_epsilon="the gradients of single examples are not bounded, so noise of a fixed scale guarantees nothing",
        parameters={"scale": Parameter(1e-2)},
        update=_on_update(gaussian_noise),
        random=True,
    ),
    "laplace": Recipe(
        summary="adds Laplace noise of a fixed scale; not differentially private",
        no_epsilon="the gradients of single examples are not bounded, so noise of a fixed scale guarantees nothing",
        parameters={"scale": Parameter(1e-2)},
        update=_on_update(laplace_noise),
        random=True,
    ),
    "mixup": Recipe(
        summary="trains on mixtures of 4 images and of their labels (Zhang et al. 2018; Huang et al. 2021)",
        no_epsilon="every mixture contains single examples, whose contributions are not bounded",
        parameters={},
        client=_mixup,
        draws_first=True,
        least_examples=2,
    ),
    "outpost": Recipe(
        summary="prunes local gradients, adds noise of decaying probability by Fisher information (Wang et al. 2023)",
        no_epsilon="at random steps the gradient is unchanged, and gradients of single examples are not bounded",
        parameters={
            "phi": Parameter(40.0, most=100),
            "prune": Parameter(80.0, most=100),
            "noise": Parameter(0.8),
            "decay": Parameter(0.125),
        },
        client=_outpost,
        draws_first=True,
    ),
    "percentile-noise": Recipe(
        summary="adds normal noise in units of each tensor's 95th percentile (Hatamizadeh et al. 2023)",
        no_epsilon="its noise scale depends on the private update, and gradients of single examples are not bounded",
        parameters={"scale": Parameter(1.0)},
        update=_on_update(percentile_noise),
        random=True,
    ),
    "percentile-privacy": Recipe(
        summary="zeros small entries of each tensor and clips large ones (Shokri, Shmatikov 2015)",
        no_epsilon="it is deterministic",
        parameters={"percentile": Parameter(10.0, most=100), "bound": Parameter(0.01)},
        update=_on_update(percentile_privacy),
    ),
    "precode": Recipe(
        summary="adds a variational bottleneck of 256 units before the head (Scheliga et al. 2022)",
        no_epsilon="its noise is inside the network, and gradients are not bounded",
        parameters={},
        client=_precode,
        extend=with_bottleneck,
        draws_first=True,
    ),
    "qsgd": Recipe(
        summary="rounds entries stochastically to a few levels, unbiased (Alistarh et al. 2017)",
        no_epsilon="it rounds only to neighboring levels, so distant values remain distinguishable",
        parameters={"levels": Parameter(16.0)},
        update=_on_update(qsgd),
        random=True,
    ),
    "random-k": Recipe(
        summary="sends a random share of the entries, rescaled to be unbiased (Wangni et al. 2018)",
        no_epsilon="it adds no noise to the entries that it sends",
        parameters={"keep": _SHARE},
        update=_on_update(random_k),
        random=True,
    ),
    "row-noise": Recipe(
        summary="adds noise to the sent weights, relative to their largest row (Zhao et al. 2022)",
        no_epsilon="its noise scale depends on the private weights, and gradients of single examples are not bounded",
        parameters={"scale": Parameter(1e-3), "bound": Parameter(0.2)},
        update=_on_weights(row_noise),
        random=True,
    ),
    "sign": Recipe(
        summary="sends only the signs of the entries (Bernstein et al. 2018)",
        no_epsilon="it is deterministic",
        parameters={},
        update=_on_update(lambda: sign),
    ),
    "smallest-weights-zeroed": Recipe(
        summary="zeros the smallest of the sent weights (Zhao et al. 2022)",
        no_epsilon="it is deterministic",
        parameters={"share": Parameter(0.9, most=1)},
        update=_on_weights(smallest_weights_zeroed),
    ),
    "soteria": Recipe(
        summary="zeros the head's gradient for the features that reveal most about the input (Sun et al. 2021)",
        no_epsilon="it is deterministic, and the features that it zeros depend on the examples",
        parameters={"share": Parameter(0.8, most=1)},
        client=_soteria,
        single_examples=True,
    ),
    "top-k": Recipe(
        summary="sends only the largest entries of the whole update",
        no_epsilon="it is deterministic",
        parameters={"keep": _SHARE},
        update=_on_update(top_k),
    ),
    "top-k-per-tensor": Recipe(
        summary="sends only the largest entries of each tensor",
        no_epsilon="it is deterministic",
        parameters={"keep": _SHARE},
        update=_on_update(top_k_of_tensors),
    ),
}
