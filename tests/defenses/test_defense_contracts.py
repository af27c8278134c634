"""One contract for every registered defense, and for every attacker who adapts to one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, models, trees
from jaxinvert.attacks import adaptive, objectives
from jaxinvert.defenses import registry
from jaxinvert.defenses.recipe import ClientFacts, _same_update
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, ClientUpdateFn, Params

ON_UPDATE = [name for name, recipe in registry.REGISTRY.items() if recipe.update is not _same_update]
ON_CLIENT = [name for name, recipe in registry.REGISTRY.items() if recipe.changes_client]
DRAWING_FIRST = [name for name, recipe in registry.REGISTRY.items() if recipe.draws_first]
RANDOM = {name for name, recipe in registry.REGISTRY.items() if recipe.random}
COUNTERED = list(adaptive.COUNTERS)
KEYS = jax.random.split(jax.random.key(3), 3)


def parameters_of(name):
    return {full: jnp.float32(value) for full, value in registry.parse(name).parameters({}).items()}


@pytest.fixture
def updates():
    """Three updates, longer than any default clipping norm."""
    keys = jax.random.split(jax.random.key(1))
    return {"w": 3 * jax.random.normal(keys[0], (3, 8, 10)), "b": jax.random.normal(keys[1], (3, 80))}


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(2))
    return {"w": jax.random.normal(keys[0], (8, 10)), "b": jax.random.normal(keys[1], (80,))}


@pytest.fixture
def facts(victim):
    return ClientFacts(victim.model, num_examples=1)


EXTENSIBLE = models.create("mlp-16", input_shape=(6, 6, 1), num_classes=3)


class Client(NamedTuple):
    """A client with as many examples as a defense needs, its network as the defense wants it."""

    facts: ClientFacts
    params: Params
    batch: Batch
    plain: ClientUpdateFn

    def send(self, name, parameters, key, inputs):
        client = registry.defended(registry.parse(name), self.facts, parameters, self.plain)
        return client(self.params, self.batch._replace(inputs=inputs), key)


def client_of(name, victim):
    recipe = registry.REGISTRY[name]
    model, num_examples = recipe.extend(EXTENSIBLE) if recipe.changes_model else victim.model, recipe.least_examples
    batch = Batch(jax.random.uniform(jax.random.key(2), (num_examples, 6, 6, 1)), jnp.arange(num_examples))
    plain = clients.fedsgd(model.loss)
    return Client(ClientFacts(model, num_examples), model.init(jax.random.key(0)), batch, plain)


def one(tree, t=1):
    return jax.tree.map(lambda leaf: leaf[t], tree)


@pytest.mark.parametrize("name", ON_UPDATE)
def test_defense(name, facts, params, updates):
    def defend(key, update, parameters):
        return registry.defend(registry.parse(name), facts, parameters, params)(key, update)

    eager = defend(KEYS[1], one(updates), parameters_of(name))
    mapped = jax.jit(jax.vmap(defend, in_axes=(0, 0, None)))(KEYS, updates, parameters_of(name))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one(mapped), eager)
    assert jax.tree.structure(mapped) == jax.tree.structure(updates)
    for leaf, defended in zip(jax.tree.leaves(updates), jax.tree.leaves(mapped)):
        assert (leaf.shape, leaf.dtype) == (defended.shape, defended.dtype)
        assert bool(jnp.all(jnp.any(leaf != defended, axis=tuple(range(1, leaf.ndim)))))

    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), one(updates))
    assert {leaf.dtype for leaf in jax.tree.leaves(defend(KEYS[0], half, parameters_of(name)))} == {
        jnp.dtype("bfloat16")
    }
    nothing = defend(KEYS[0], jax.tree.map(jnp.zeros_like, one(updates)), parameters_of(name))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(nothing))


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_defenses_draw_anew_for_every_key_tensor_and_target(name, facts):
    """From the same numbers in two tensors and two targets."""
    start = jnp.linspace(-1.0, 1.0, 900)
    update = {"a": start, "b": start}
    params = {"a": jnp.ones(900), "b": jnp.ones(900)}
    defend = registry.defend(registry.parse(name), facts, parameters_of(name), params)
    drawn = jax.vmap(defend, in_axes=(0, None))(KEYS, update)
    with pytest.raises(ValueError, match="a random defense needs a key"):
        defend(None, update)
    changes = [np.asarray(drawn[leaf][t] - start) for leaf in update for t in range(2)]
    changes = [change - (change @ start) / (start @ start) * start for change in changes]
    correlations = np.corrcoef(np.stack(changes)) - np.eye(4)
    assert np.max(np.abs(correlations)) < 0.2


@pytest.mark.parametrize("name", sorted(set(ON_UPDATE) - RANDOM))
def test_others_need_no_key(name, facts, params, updates):
    registry.defend(registry.parse(name), facts, parameters_of(name), params)(None, one(updates))


@pytest.mark.parametrize("name", ON_CLIENT)
def test_protected_client(name, victim):
    """A protected client is as differentiable in its images as the plain one, and sends a tree of the same form."""
    client = client_of(name, victim)
    plain = client.plain(client.params, client.batch)
    strong = parameters_of(name) | {"dp-sgd": {"dp-sgd.norm": 0.1}, "outpost": {"outpost.decay": 1e-6}}.get(name, {})

    def size(inputs):
        changed = registry.protect(registry.parse(name), client.facts, strong, client.plain, key=KEYS[0])(
            client.params, client.batch._replace(inputs=inputs)
        )
        return trees.tree_squared_norm(changed), changed

    (_, changed), slope = jax.jit(jax.value_and_grad(size, has_aux=True))(client.batch.inputs)
    assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, plain)
    assert objectives.squared_l2(changed, plain) > 0
    assert bool(jnp.all(jnp.isfinite(slope)) & jnp.any(slope != 0))


@pytest.mark.parametrize("name", DRAWING_FIRST)
def test_clients_that_draw_do_so_anew_for_every_key(name, victim):
    client = client_of(name, victim)

    def send(key):
        return client.send(name, parameters_of(name), key, client.batch.inputs)

    sent = jax.jit(jax.vmap(send))(jnp.stack([KEYS[0], KEYS[0], KEYS[1]]))
    first, again, other = max(jax.tree.leaves(sent), key=jnp.size)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    with pytest.raises(ValueError, match=f"a random defense needs a key: {name}"):
        send(None)


@pytest.mark.parametrize("name", COUNTERED)
def test_an_adaptive_attacker_prefers_the_truth(name, victim):
    """Of the truth and 16 random images, truth explains best what was sent; gradients are finite there, too."""
    chain, parameters, client = registry.parse(name), parameters_of(name), client_of(name, victim)
    send = jax.jit(registry.defended(chain, client.facts, parameters, client.plain))
    observed = observe(send, client.params, client.batch, client_key=jax.random.key(5)).update
    others = jax.random.uniform(jax.random.key(6), (16, *client.batch.inputs.shape))
    candidates = jnp.concatenate([client.batch.inputs[None], others])

    @jax.jit
    @jax.vmap
    def explain(inputs):
        simulate, distance = adaptive.adapt(chain, client.facts, parameters, client.plain, objectives.cosine)

        def loss(inputs):
            return distance(simulate(client.params, Batch(inputs, client.batch.labels)), observed)

        return jax.value_and_grad(loss)(inputs)

    losses, slopes = explain(candidates)
    assert int(jnp.argmin(losses)) == 0
    assert bool(jnp.all(jnp.isfinite(slopes)))


def test_parameters_have_full_names_and_ranges():
    assert registry.parse("top-k").parameters({"keep": 0.5}) == {"top-k.keep": 0.5}
    both = registry.parse("laplace+gaussian").parameters({"laplace.scale": 2.0})
    assert both == {"laplace.scale": 2.0, "gaussian.scale": 0.01}
    for chain, given, message in (
        ("laplace+gaussian", {"scale": 1.0}, "'scale' .* is ambiguous among laplace.scale, gaussian.scale"),
        ("top-k", {"share": 1.0}, "'share' of 'top-k' is unknown; there are .*top-k.keep"),
        ("none", {"keep": 1.0}, "'keep' of 'none' is unknown; there are none"),
        ("top-k", {"keep": 0.5, "top-k.keep": 0.5}, "top-k.keep is given twice"),
        ("top-k", {"keep": 1.5}, "top-k.keep is 1.5, expected more than 0 and at most 1"),
        ("top-k", {"keep": float("nan")}, "top-k.keep is nan"),
        ("topk", {}, "unknown defense 'topk'; known are none, clip"),
        ("sign+sign", {}, "expected every name once"),
        ("clip+soteria", {}, "soteria changes the client's computation: it comes first"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.parse(chain).parameters(given)


def test_a_chain_is_its_parts_in_order(facts, params, updates):
    parameters = {"clip.norm": 1.0, "top-k.keep": 0.1}
    found = registry.defend(registry.parse("top-k+clip"), facts, parameters, params)(None, one(updates))
    assert float(trees.tree_norm(found)) == pytest.approx(1.0, rel=1e-6)
    assert sum(int(jnp.sum(leaf != 0)) for leaf in jax.tree.leaves(found)) == 16


def test_of_noise_and_sparsification_the_attacker_knows_both(facts):
    """Normal noise, then the largest of three entries, 4: others up to 4 are as likely as none, 9 is 5 too large."""
    chain, parameters = registry.parse("gaussian+top-k"), {"gaussian.scale": 0.5, "top-k.keep": 0.3}
    _, distance = adaptive.adapt(chain, facts, parameters, models.cross_entropy, objectives.cosine)
    observed = {"w": jnp.array([0.0, 4.0, 0.0])}
    for update, expected in (([2.0, 3.0, -4.0], 1 / 16), ([2.0, 3.0, -9.0], 26 / 16)):
        simulated = adaptive.Simulated({"w": jnp.array(update)}, params={})
        assert float(distance(simulated, observed)) == pytest.approx(expected)


def test_what_is_known_of_defenses_on_weights(facts):
    """Noise 0.1 on weights of norm 5, bound 0.2: deviation 2.5; then of two weights sent one is zero."""
    params = {"w": jnp.array([3.0, 4.0])}
    noise, zeros = {"row-noise.scale": 0.1, "row-noise.bound": 0.2}, {"smallest-weights-zeroed.share": 0.5}
    for name, parameters, observed, expected in (
        ("row-noise", noise, [1.0, 2.0], (1 + 0) / (1 + 4)),
        ("row-noise+smallest-weights-zeroed", noise | zeros, [3.0, 2.0], 0 / 4),
    ):
        _, distance = adaptive.adapt(registry.parse(name), facts, parameters, models.cross_entropy, objectives.cosine)
        simulated = adaptive.Simulated({"w": jnp.array([2.0, 2.0])}, params)
        assert float(distance(simulated, {"w": jnp.array(observed)})) == pytest.approx(expected)


def test_only_dp_sgd_bounds_every_example(victim):
    """Two examples of which one has a long gradient: the mean of the clipped ones, by hand."""
    loss_fn = models.cross_entropy(victim.model.apply)
    plain = jax.jit(clients.fedsgd(loss_fn))
    clipped = jax.jit(lambda bound, batch: clients.dp_fedsgd(loss_fn, clip_norm=bound)(victim.params, batch))
    images = jnp.concatenate([victim.batch.inputs, 10 * victim.batch.inputs])
    batch = Batch(images, jnp.array([1, 2]))
    alone = [plain(victim.params, Batch(images[i : i + 1], batch.labels[i : i + 1])) for i in range(2)]
    lengths = [float(trees.tree_norm(update)) for update in alone]
    bound = (min(lengths) + max(lengths)) / 2
    expected = jax.tree.map(
        lambda a, b: (a * min(1, bound / lengths[0]) + b * min(1, bound / lengths[1])) / 2, *alone
    )
    found = clipped(bound, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    whole = clipped(jnp.inf, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, plain(victim.params, batch)
    )


@pytest.mark.parametrize("name", ON_UPDATE)
def test_what_a_client_does_not_send_stays_zero(name, victim):
    """Noise on running statistics or frozen layers would move the server's copy of them in every round."""
    client = client_of(name, victim)
    kept = {
        "batch_stats": {"var": jnp.full((40,), 0.01)},
        "step": jnp.array(3),
        "frozen": {"kernel": jnp.ones((4, 5))},
    }
    extra = {**kept, "adapter": {"kernel": jnp.ones((3, 4))}, "personal": jnp.ones(7)}
    model = victim.model._replace(frozen=("frozen",), personal=("personal",))

    def loss_fn(params, batch):
        own = jnp.sum(jnp.square(params["adapter"]["kernel"])) + jnp.sum(params["personal"])
        return client.facts.model.loss(params, batch) + own

    facts = client.facts._replace(model=model._replace(loss_fn=loss_fn))
    send = registry.defended(registry.parse(name), facts, parameters_of(name), clients.fedsgd(loss_fn))
    sent = send({**client.params, **extra}, client.batch, KEYS[0])
    for kept_name in (*kept, "personal"):
        for leaf in jax.tree.leaves(sent[kept_name]):
            np.testing.assert_array_equal(leaf, 0)
    assert np.any(sent["adapter"]["kernel"] != 0)


def test_only_what_is_sent_counts_for_the_share_of_top_k(victim):
    facts = ClientFacts(victim.model._replace(personal=("first",)), num_examples=1)
    client = registry.defended(registry.parse("top-k"), facts, {"top-k.keep": 0.5}, victim.client_update)
    sent = client(victim.params, victim.batch, None)
    head = victim.params["head"]
    assert (
        sum(int(jnp.sum(leaf != 0)) for leaf in jax.tree.leaves(sent))
        == (head["kernel"].size + head["bias"].size) // 2 + 1
    )
