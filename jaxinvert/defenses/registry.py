"""Defenses by name, for command lines, sweeps and audits, alone or in a chain such as `"top-k+gaussian"`.

A recipe says what a defense changes: the network (`extend`), what a client computes (`client`), or the resulting
update (`update`). `parse` makes a `Chain` of names; `extended`, `protect` and `defend` apply all of its defenses in
their order, and `defended` is the whole client. Parameters are known by their full names, `"NAME.parameter"`. How an
attacker adapts to a defense is in `attacks.adaptive`, under the same name.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

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
from jaxinvert.types import Batch, ClientUpdateFn, Defense, Key, Params, Scalar, Update

NONE = "none"
"""The name of no defense."""


class Chain(NamedTuple):
    """Defenses in the order in which a client applies them; none for a client without a defense."""

    names: tuple[str, ...]

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What the registry knows of each."""
        return tuple(REGISTRY[name] for name in self.names)

    def parameters(self, given: Mapping[str, float]) -> dict[str, float]:
        """All parameters under their full names: the defaults, replaced by what is given.

        Args:
          given: by full name, or by the parameter's own where only one defense of the chain has it.

        Raises:
          ValueError: for a parameter that there is not, is ambiguous, is given twice, or is out of range.

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
        """Every recipe with its own parameters, under their own names, of those under their full names."""
        for name, recipe in zip(self.names, self.recipes):
            yield recipe, {own: parameters[f"{name}.{own}"] for own in recipe.parameters}


def parse(text: str) -> Chain:
    """Reads names joined by "+", such as `"dp-sgd+top-k"`, or `"none"`.

    Raises:
      ValueError: for an unknown name, one given twice, or one that changes the client but does not come first.
    """
    names = () if text == NONE else tuple(text.split("+"))
    if unknown := [name for name in names if name not in REGISTRY]:
        raise ValueError(f"unknown defense {unknown[0]!r}; known are {NONE}, {', '.join(REGISTRY)}, joined by '+'")
    if len(set(names)) < len(names):
        raise ValueError(f"defense is {text!r}, expected every name once")
    if late := [name for name in names[1:] if REGISTRY[name].changes_client]:
        raise ValueError(f"defense is {text!r}, but {late[0]} changes the client's computation: it comes first")
    return Chain(names)


def extended(chain: Chain, model: Model) -> Model:
    """The network with what the defenses add to it."""
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
    """The client with what the defenses change in its computation; `key` is for what they draw there."""
    for recipe, own in chain.with_own(parameters):
        client_update = client_update if recipe.client is None else recipe.client(facts, own, key, client_update)
    return client_update


def defend(chain: Chain, facts: ClientFacts, parameters: Parameters, params: Params) -> Defense:
    """What the defenses do to an update of `params`."""
    parts = [recipe.update(facts, own, params) for recipe, own in chain.with_own(parameters)]
    return composed(*parts) if parts else identity


def defended(
    chain: Chain, facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn
) -> AnyClientUpdateFn:
    """All that a client does: `(params, batch, key) -> update`, as it is sent."""
    draws_first = any(recipe.draws_first for recipe in chain.recipes)

    def send(params: Params, batch: Batch, key: Key | None = None) -> Update:
        first_key, update_key = jax.random.split(key) if draws_first and key is not None else (None, key)
        client = protect(chain, facts, parameters, client_update, key=first_key)
        return defend(chain, facts, parameters, params)(update_key, client(params, batch))

    return send


def _on_update(make: Callable[..., Defense]) -> Callable[[ClientFacts, Parameters, Params], Defense]:
    """For a defense that is made of its parameters alone."""
    return lambda facts, parameters, params: make(**parameters)


def _on_weights(make: Callable[..., Defense]) -> Callable[[ClientFacts, Parameters, Params], Defense]:
    """For a defense that is made of the model's parameters and its own."""
    return lambda facts, parameters, params: make(params, **parameters)


def _dp_noise(facts: ClientFacts, parameters: Parameters, params: Params) -> Defense:
    del params
    return gaussian_noise(dp_scale(facts, parameters))


def _clipped_examples(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del key, client_update  # the gradient of the mean, which cannot be clipped any more
    return per_example_clipping(facts, parameters)


def _mixup(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del parameters
    return mixup(client_update, key=key, num_classes=facts.model.num_classes)


def _outpost(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del client_update  # which trains without it
    return facts.train(facts.model.loss, change=outpost(key, **parameters))


def _precode(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del parameters, client_update  # whose loss has no noise
    if key is None:
        raise ValueError("a random defense needs a key: precode was handed None")
    if facts.model.drawn_loss_fn is None:
        raise ValueError(f"precode needs a network with a bottleneck, which {facts.model.name} has not: `extended`")
    return facts.train(facts.model.drawn_loss_fn, dropout_key=key)


def _soteria(
    facts: ClientFacts, parameters: Parameters, key: Key | None, client_update: ClientUpdateFn
) -> ClientUpdateFn:
    del key
    return soteria(client_update, facts.model.apply, head=facts.model.head, **parameters)


_SHARE = Parameter(0.1, most=1)

REGISTRY: dict[str, Recipe] = {
    "clip": Recipe(
        summary="the update scaled down to a norm",
        no_epsilon="it bounds the update of all examples together and adds no noise",
        parameters={"norm": Parameter(4.0)},
        update=_on_update(clipped),
    ),
    "dp-sgd": Recipe(
        summary="every example's gradient clipped to a norm, normal noise on their mean (Abadi et al. 2016)",
        parameters={"norm": Parameter(1.0), "multiplier": Parameter(0.1)},
        client=_clipped_examples,
        update=_dp_noise,
        single_examples=True,
        one_step=True,
    ),
    "gaussian": Recipe(
        summary="normal noise of a fixed scale; not differentially private",
        no_epsilon="noise without a bound on every example's gradient hides no example for certain",
        parameters={"scale": Parameter(1e-2)},
        update=_on_update(gaussian_noise),
    ),
    "laplace": Recipe(
        summary="Laplace noise of a fixed scale; not differentially private",
        no_epsilon="noise without a bound on every example's gradient hides no example for certain",
        parameters={"scale": Parameter(1e-2)},
        update=_on_update(laplace_noise),
    ),
    "mixup": Recipe(
        summary="trains on mixtures of 4 images and of their labels (Zhang et al. 2018; Huang et al. 2021)",
        no_epsilon="every mixture holds a share of single examples, and nothing bounds what they contribute",
        parameters={},
        client=_mixup,
        draws_first=True,
        least_examples=2,
    ),
    "outpost": Recipe(
        summary="pruned local gradients, noise where they tell most, ever more rarely (Wang et al. 2023)",
        no_epsilon="at random times it sends the gradient as it is, and no example's gradient bounds its noise",
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
        summary="normal noise in units of each tensor's 95th percentile (Hatamizadeh et al. 2023)",
        no_epsilon="its scale is taken from the update that it shall hide, and no example's gradient is bounded",
        parameters={"scale": Parameter(1.0)},
        update=_on_update(percentile_noise),
    ),
    "percentile-privacy": Recipe(
        summary="small entries of each tensor zeroed, large ones clipped (Shokri, Shmatikov 2015)",
        no_epsilon="nothing in it is random",
        parameters={"percentile": Parameter(10.0, most=100), "bound": Parameter(0.01)},
        update=_on_update(percentile_privacy),
    ),
    "precode": Recipe(
        summary="a variational bottleneck of 256 units before the head (Scheliga et al. 2022)",
        no_epsilon="its noise is inside the network, whose gradients nothing bounds",
        parameters={},
        client=_precode,
        extend=with_bottleneck,
        draws_first=True,
    ),
    "qsgd": Recipe(
        summary="entries rounded at random to a few levels, unbiased (Alistarh et al. 2017)",
        no_epsilon="its randomness rounds to neighboring levels and leaves what is far apart distinguishable",
        parameters={"levels": Parameter(16.0)},
        update=_on_update(qsgd),
    ),
    "random-k": Recipe(
        summary="a random share of the entries, rescaled to be unbiased (Wangni et al. 2018)",
        no_epsilon="what it sends, it sends as it is",
        parameters={"keep": _SHARE},
        update=_on_update(random_k),
    ),
    "row-noise": Recipe(
        summary="noise on the weights sent, relative to their largest row (Zhao et al. 2022)",
        no_epsilon="its scale is taken from the weights that it shall hide, and no example's gradient is bounded",
        parameters={"scale": Parameter(1e-3), "bound": Parameter(0.2)},
        update=_on_weights(row_noise),
    ),
    "sign": Recipe(
        summary="the signs alone (Bernstein et al. 2018)",
        no_epsilon="nothing in it is random",
        parameters={},
        update=_on_update(lambda: sign),
    ),
    "smallest-weights-zeroed": Recipe(
        summary="zeros for the smallest weights sent (Zhao et al. 2022)",
        no_epsilon="nothing in it is random",
        parameters={"share": Parameter(0.9, most=1)},
        update=_on_weights(smallest_weights_zeroed),
    ),
    "soteria": Recipe(
        summary="zeros in the head's gradient for the features that tell most of the input (Sun et al. 2021)",
        no_epsilon="nothing in it is random, and what it hides depends on the examples",
        parameters={"share": Parameter(0.8, most=1)},
        client=_soteria,
        single_examples=True,
    ),
    "top-k": Recipe(
        summary="the largest entries of the whole update",
        no_epsilon="nothing in it is random",
        parameters={"keep": _SHARE},
        update=_on_update(top_k),
    ),
    "top-k-per-tensor": Recipe(
        summary="the largest entries of every tensor",
        no_epsilon="nothing in it is random",
        parameters={"keep": _SHARE},
        update=_on_update(top_k_of_tensors),
    ),
}
