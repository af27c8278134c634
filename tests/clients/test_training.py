"""Local training against plain Python loops, finite differences and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jaxinvert import clients, models
from jaxinvert.clients import running_statistics
from jaxinvert.types import Batch
from tests.clients.conftest import (
    FEATURES,
    GRADIENT,
    LOSS,
    NUM_CLASSES,
    NUM_EXAMPLES,
    assert_trees_close,
    single,
)


def plain_loop(optimizer, params, batch, order):
    """The client in its own words: a Python loop, optax by hand, and the difference at the end."""
    local, state = params, optimizer.init(params)
    for rows in order:
        grad = GRADIENT(local, Batch(batch.inputs[rows], batch.labels[rows]))
        change, state = optimizer.update(grad, state, local)
        local = optax.apply_updates(local, change)
    return jax.tree.map(jnp.subtract, params, local)


OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.3, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.05),
    "clipped and scheduled": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(lambda count: 0.5 / (1 + count))),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_a_plain_loop(name, double):
    """Two epochs of three mini-batches, in the order of the batch."""
    params, batch = double
    client = clients.fedavg(LOSS, optimizer=OPTIMIZERS[name], batch_size=2, num_epochs=2)
    order = np.tile(np.arange(NUM_EXAMPLES).reshape(3, 2), (2, 1))
    update = jax.jit(client)(params, batch)
    assert_trees_close(update, plain_loop(OPTIMIZERS[name], params, batch, order), rtol=1e-10, atol=1e-14)
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(update))


def test_gradient_descent_by_hand():
    """Loss w^2 x / 2 with x = 1 then 3, rate 0.1: w = 2 -> 2 - 0.1 * 2 = 1.8 -> 1.8 - 0.1 * 1.8 * 3 = 1.26."""
    client = clients.fedavg(
        lambda w, batch: jnp.mean(batch.inputs) * w**2 / 2, optimizer=optax.sgd(0.1), batch_size=1
    )
    update = client(jnp.float32(2), Batch(jnp.array([1.0, 3.0]), jnp.zeros(2, int)))
    np.testing.assert_allclose(update, 2 - 1.26, rtol=1e-6)


def test_one_full_batch_step_is_rate_times_fedsgd(double):
    """To the rounding of the gradient, however small the rate: the steps do not drown in the parameters' rounding."""
    for (params, batch), tolerance in ((double, 1e-14), (single(), 1e-6)):
        gradient = jax.jit(clients.fedsgd(LOSS))(params, batch)
        for rate in (0.3, 1e-7):
            update = jax.jit(clients.fedavg(LOSS, optimizer=optax.sgd(rate)))(params, batch)
            assert_trees_close(
                jax.tree.map(lambda leaf, rate=rate: leaf / rate, update), gradient, atol=tolerance, rtol=0
            )


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_gradient_through_the_training_equals_finite_differences(name, double):
    """In inputs and in soft labels, along random directions: error of central differences is O(h^2)."""
    params, batch = double
    batch = batch._replace(labels=jax.nn.one_hot(batch.labels, NUM_CLASSES, dtype=jnp.float64))
    client = clients.fedavg(LOSS, optimizer=OPTIMIZERS[name], batch_size=3, num_epochs=2)

    @jax.jit
    def scalar(batch):
        return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in jax.tree.leaves(client(params, batch)))

    gradient, h = jax.jit(jax.grad(scalar))(batch), 1e-5
    for field in Batch._fields:
        value = getattr(batch, field)
        direction = np.random.default_rng(1).normal(size=value.shape)
        ahead, behind = (scalar(batch._replace(**{field: value + sign * h * direction})) for sign in (1, -1))
        along = float(jnp.vdot(getattr(gradient, field), direction))
        assert abs(along) > 1e-2
        np.testing.assert_allclose(along, (ahead - behind) / (2 * h), rtol=1e-6)


def test_order_within_a_minibatch_is_nothing_and_across_is_something(double):
    params, batch = double
    client = jax.jit(clients.fedavg(LOSS, optimizer=optax.sgd(0.5), batch_size=3))
    update = client(params, batch)

    def permuted(order):
        return client(params, jax.tree.map(lambda leaf: leaf[np.array(order)], batch))

    assert_trees_close(permuted([2, 0, 1, 3, 5, 4]), update, rtol=1e-12, atol=1e-15)
    assert np.max(np.abs(permuted([3, 4, 5, 0, 1, 2])["first"] - update["first"])) > 1e-3


def test_a_key_draws_the_order_of_every_epoch(double):
    """The update is that of a plain loop over the drawn permutations; another key is another client."""
    params, batch = double
    key = jax.random.key(3)

    @jax.jit
    def train(key, batch):
        client = clients.fedavg(LOSS, optimizer=optax.sgd(0.5), batch_size=2, num_epochs=2, order_key=key)
        return client(params, batch)

    update = train(key, batch)
    epochs = [jax.random.permutation(epoch_key, NUM_EXAMPLES) for epoch_key in jax.random.split(key)]
    assert np.any(epochs[0] != epochs[1])
    order = np.concatenate([epoch.reshape(3, 2) for epoch in epochs])
    assert_trees_close(update, plain_loop(optax.sgd(0.5), params, batch, order), rtol=1e-10, atol=1e-14)
    other = train(jax.random.key(4), batch)
    assert np.max(np.abs(other["first"] - update["first"])) > 1e-3
    # Every client of a vmapped group has its own order.
    both = jax.vmap(train, (0, None))(jnp.stack([key, jax.random.key(4)]), batch)
    assert_trees_close(jax.tree.map(lambda leaf: leaf[1], both), other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1, weight_decay=0.5), optax.sgd(0.1, momentum=0.9)])
def test_running_statistics_are_not_trained(optimizer):
    """Not moved, and not counted: a global norm over trained leaves only, whatever stands in the statistics."""
    params, batch = single()
    with_stats = {"params": params, "batch_stats": {"norm": {"mean": jnp.full(4, 3.0), "var": jnp.full(4, 2.0)}}}
    chain = optax.chain(optimizer, optax.clip_by_global_norm(0.01))

    def loss_fn(variables, batch):  # someone's own, without stop_gradient
        return LOSS(variables["params"], batch) + jnp.sum(variables["batch_stats"]["norm"]["mean"])

    update = jax.jit(clients.fedavg(loss_fn, optimizer=chain, batch_size=3))(with_stats, batch)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(update["batch_stats"]))
    alone = jax.jit(clients.fedavg(LOSS, optimizer=chain, batch_size=3))(params, batch)
    assert_trees_close(update["params"], alone, rtol=1e-5, atol=1e-7)


def test_eps_root_keeps_client_adam_differentiable():
    """A dead ReLU has gradient exactly 0, where d sqrt(v) is infinite."""

    def loss_fn(params, batch):
        return jnp.mean(jax.nn.relu(batch.inputs @ params)) + jnp.mean(jnp.square(batch.inputs @ params)[:, 0])

    params, batch = jnp.array([[1.0, -1.0]]), Batch(jnp.array([[0.5], [0.7]]), jnp.zeros(2, int))

    def squared(inputs, eps_root):
        client = clients.fedavg(loss_fn, optimizer=optax.adam(0.1, eps_root=eps_root), num_epochs=2)
        return jnp.sum(jnp.square(client(params, batch._replace(inputs=inputs))))

    derivative = jax.jit(jax.grad(squared))
    assert np.isnan(derivative(batch.inputs, 0.0)).any()
    assert np.isfinite(derivative(batch.inputs, 1e-12)).all()


def test_memory_does_not_grow_with_the_activations_of_the_steps():
    """Per further step a set of parameters (48 KiB) is added, not the far larger activations (512 KiB)."""
    width, batch_size, num_layers = 64, 512, 4
    shapes = [(2, width)] + [(width, width)] * (num_layers - 1)
    params = {f"layer_{i}": jnp.zeros(shape) for i, shape in enumerate(shapes)}
    activations = num_layers * batch_size * width * 4  # bytes in float32
    inputs, labels = jnp.zeros((batch_size, 2)), jnp.zeros(batch_size, int)

    def deep(params, inputs):
        return functools.reduce(lambda x, i: jnp.tanh(x @ params[f"layer_{i}"]), range(num_layers), inputs)

    def temporary_bytes(num_steps):
        client = clients.fedavg(models.cross_entropy(deep), optimizer=optax.sgd(0.1), num_epochs=num_steps)

        def scalar(inputs):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(client(params, Batch(inputs, labels))))

        return jax.jit(jax.grad(scalar)).lower(inputs).compile().memory_analysis().temp_size_in_bytes

    growth_per_step = (temporary_bytes(18) - temporary_bytes(2)) / 16
    assert growth_per_step < activations / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        clients.fedavg(LOSS, optimizer=optax.sgd(0.1), **options)(*single())


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_the_last_mini_batch_of_every_pass_may_be_smaller(num_epochs):
    """Six examples in mini-batches of four, then two: by hand, with momentum across the steps of all passes."""
    params, batch = single()
    update = clients.fedavg(LOSS, optimizer=optax.sgd(0.1, momentum=0.9), batch_size=4, num_epochs=num_epochs)
    local, velocity = params, jax.tree.map(jnp.zeros_like, params)
    for _ in range(num_epochs):
        for places in (slice(0, 4), slice(4, 6)):
            gradient = GRADIENT(local, jax.tree.map(lambda leaf, places=places: leaf[places], batch))
            velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
            local = jax.tree.map(lambda p, v: p - 0.1 * v, local, velocity)
    expected = jax.tree.map(jnp.subtract, params, local)
    assert_trees_close(jax.jit(update)(params, batch), expected, rtol=1e-4, atol=1e-6)
    larger, whole = (
        jax.jit(clients.fedavg(LOSS, optimizer=optax.sgd(0.1), batch_size=size))(params, batch) for size in (9, None)
    )
    assert_trees_close(larger, whole, rtol=0, atol=0)


class Normalized(linen.Module):
    """Two BatchNorm layers in train mode around a nonlinearity, with a momentum of its own."""

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False, momentum=0.8, name="norm_0")(linen.Conv(2, (3, 3))(x))
        x = linen.BatchNorm(use_running_average=False, momentum=0.8, name="norm_1")(
            linen.Conv(3, (3, 3))(jnp.tanh(x))
        )
        return linen.Dense(NUM_CLASSES, name="head")(jnp.tanh(x).mean((1, 2)))


def test_statistics_of_local_training_end_where_flax_ends():
    """A loop with Flax's own mutable statistics sends what `advance` makes of the steps' batch statistics."""
    module, rate = Normalized(), 0.5
    model = models.from_linen(module, name="normalized", input_shape=(4, 4, 1), num_classes=NUM_CLASSES)
    params = jax.jit(model.init)(jax.random.key(0))
    params["batch_stats"]["norm_0"]["mean"] += 0.7
    batch = Batch(jax.random.uniform(jax.random.key(1), (4, 4, 4, 1)), jnp.array([0, 1, 2, 1]))

    @jax.jit
    def flax_step(variables, inputs, labels):
        def loss_fn(trained):
            logits, written = module.apply({**variables, "params": trained}, inputs, mutable=["batch_stats"])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), written

        grad, written = jax.grad(loss_fn, has_aux=True)(variables["params"])
        moved = jax.tree.map(lambda leaf, g: leaf - rate * g, variables["params"], grad)
        return {"params": moved, **written}

    local = params
    for rows in (slice(0, 2), slice(2, 4)):
        local = flax_step(local, batch.inputs[rows], batch.labels[rows])

    settings = {"optimizer": optax.sgd(rate), "batch_size": 2}
    loss_fn = models.cross_entropy(model.apply)
    measured = jax.jit(clients.local_batch_statistics(loss_fn, model.batch_statistics, **settings))(params, batch)
    sent = running_statistics.advance(params["batch_stats"], measured, momentum=0.8)
    assert_trees_close(sent, local["batch_stats"], rtol=1e-4, atol=1e-6)
    update = jax.jit(clients.fedavg(loss_fn, **settings))(params, batch)
    assert_trees_close(
        update["params"], jax.tree.map(jnp.subtract, params["params"], local["params"]), rtol=1e-3, atol=1e-6
    )
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(update["batch_stats"]))


def test_dropout_draws_a_new_mask_at_every_step(double):
    """The loss scales by one random number: the update is the sum of the plain steps, each scaled by its own."""
    _, batch = double

    def loss_fn(params, batch, key):
        return jax.random.uniform(key) * jnp.sum(params["w"] * jnp.mean(batch.inputs, axis=0))

    weights = {"w": jnp.zeros(FEATURES)}
    key = jax.random.key(3)
    found = clients.fedavg(loss_fn, optimizer=optax.sgd(0.5), num_epochs=2, dropout_key=key)(weights, batch)
    masks = [float(jax.random.uniform(k)) for k in jax.random.split(key, 2)]
    assert masks[0] != masks[1]
    np.testing.assert_allclose(found["w"], 0.5 * sum(masks) * jnp.mean(batch.inputs, axis=0), rtol=1e-12)
    once = clients.fedsgd(loss_fn, dropout_key=key)(weights, batch)
    np.testing.assert_allclose(once["w"], jax.random.uniform(key) * jnp.mean(batch.inputs, axis=0), rtol=1e-12)


def test_dropout_of_a_flax_module():
    class Dropping(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(NUM_CLASSES)(linen.Dropout(0.5, deterministic=False)(x))

    module, batch = Dropping(), single()[1]
    params = jax.jit(module.init)({"params": jax.random.key(0), "dropout": jax.random.key(0)}, batch.inputs)

    def loss_fn(params, batch, key):
        return models.cross_entropy(lambda p, x: module.apply(p, x, rngs={"dropout": key}))(params, batch)

    @jax.jit
    def update(key):
        return clients.fedsgd(loss_fn, dropout_key=key)(params, batch)

    first, again, other = (update(jax.random.key(seed)) for seed in (0, 0, 1))
    assert_trees_close(first, again, rtol=0)
    assert not np.allclose(first["params"]["Dense_0"]["kernel"], other["params"]["Dense_0"]["kernel"])


@pytest.mark.parametrize(
    "make", [clients.fedsgd, functools.partial(clients.fedavg, optimizer=optax.sgd(0.1), num_epochs=2)]
)
def test_chunks_change_nothing_but_memory(make):
    params, batch = single()
    plain, chunked = (jax.jit(make(LOSS, chunk_size=size))(params, batch) for size in (None, 4))
    jax.tree.map(lambda p, c: np.testing.assert_allclose(c, p, rtol=1e-5, atol=1e-7), plain, chunked)


def test_chunks_refuse_dropout():
    with pytest.raises(ValueError, match="chunk_size is 2, but dropout draws for a whole batch"):
        clients.fedsgd(LOSS, dropout_key=jax.random.key(0), chunk_size=2)
    with pytest.raises(ValueError, match="chunk_size is 2, but dropout draws for a whole batch"):
        clients.fedavg(LOSS, optimizer=optax.sgd(0.1), dropout_key=jax.random.key(0), chunk_size=2)


@pytest.mark.parametrize("kind", ["frozen", "drawn"])
def test_statistics_of_local_training_are_those_of_the_same_training(kind):
    """By hand, one example per step: what is frozen stays, and loss and statistics have the same draws."""
    params = {"first": jnp.ones((3, 3)), "head": jnp.ones(3), "batch_stats": jnp.zeros(3)}
    batch = Batch(jax.random.normal(jax.random.key(0), (4, 3)), jnp.arange(4.0))
    key, rate = jax.random.key(1), 0.1

    def hidden(params, inputs, *key):
        noise = jax.random.normal(key[0], inputs.shape) if key else 0.0
        return jnp.tanh((inputs + noise) @ params["first"])

    def loss_fn(params, batch, *key):
        return jnp.mean((hidden(params, batch.inputs, *key) @ params["head"] - batch.labels) ** 2)

    settings = {"optimizer": optax.sgd(rate), "batch_size": 1}
    settings |= {"dropout_key": key} if kind == "drawn" else {"frozen": ["first"]}
    statistics = lambda params, inputs, *key: hidden(params, inputs, *key)[0]  # noqa: E731
    measured = jax.jit(clients.local_batch_statistics(loss_fn, statistics, **settings))(params, batch)
    gradient = jax.jit(jax.grad(loss_fn))
    local, expected = params, []
    for step, own in enumerate(jax.random.split(key, 4)):
        keys, one = (own,) if kind == "drawn" else (), jax.tree.map(lambda leaf: leaf[step : step + 1], batch)  # noqa: B023
        expected.append(statistics(local, one.inputs, *keys))
        grads = gradient(local, one, *keys)
        trained = ["head"] if kind == "frozen" else ["head", "first"]
        local = local | {name: local[name] - rate * grads[name] for name in trained}
    np.testing.assert_allclose(measured, jnp.stack(expected), rtol=1e-5)
    update = jax.jit(clients.fedavg(loss_fn, **settings))(params, batch)
    np.testing.assert_allclose(params["head"] - update["head"], local["head"], rtol=1e-5)
