"""NNX, Haiku, Equinox and Keras: gradients of the library itself, names of its files, modes, frozen layers."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxinvert import Batch, jobs, models
from jaxinvert.clients import running_statistics
from tests.models.adapters import checks

os.environ.setdefault("KERAS_BACKEND", "jax")
EXTRA = "needs pip install 'jaxinvert[{}]'"


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, checks.LABELS).mean()


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs, use_fast_variance=False)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(64, 4, rngs=rngs)])

    def __call__(self, x):
        x = jax.nn.gelu(self.norm(self.conv(x)))
        return self.blocks[0](self.drop(x.reshape(len(x), -1)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nnx(mode):
    module = Nnx(nnx.Rngs(0))
    model = models.from_nnx(module, input_shape=(8, 8, 3), batch_norm=mode)
    assert (model.num_classes, model.head) == (4, "params/blocks/0")
    module.eval()
    module.norm.use_running_average = mode == "eval"
    grads = nnx.grad(lambda m: cross_entropy(m(checks.IMAGES)))(module)
    expected = {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(grads)}
    found = checks.gradient(model)
    assert checks.relative_error(found, expected) < 1e-5
    assert set(found) == set(expected) | {"norm/mean", "norm/var"}
    assert not found["norm/mean"].any()
    checks.check_round_trip(model)
    seen = model.batch_statistics(model.init(None), jnp.asarray(checks.IMAGES))
    np.testing.assert_allclose(seen["norm"]["mean"], module.conv(checks.IMAGES).mean((0, 1, 2)), atol=1e-6)


def test_nnx_dropout_is_off_or_drawn():
    model = models.from_nnx(Nnx(nnx.Rngs(0)), input_shape=(8, 8, 3), dropout="train")
    batch = Batch(jnp.asarray(checks.IMAGES), jnp.asarray(checks.LABELS))
    losses = [float(model.drawn_loss_fn(model.init(None), batch, jax.random.key(i))) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert models.from_nnx(Nnx(nnx.Rngs(0)), input_shape=(8, 8, 3)).drawn_loss_fn is None


def haiku_net(hk):
    def forward(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3, stride=2)(x), is_training)
        return hk.Linear(4)(hk.Flatten()(jax.nn.gelu(x)))

    return hk.transform_with_state(forward)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_haiku(mode):
    hk = pytest.importorskip("haiku", reason=EXTRA.format("haiku"))
    net = haiku_net(hk)
    model = models.from_haiku(net, input_shape=(8, 8, 3), batch_norm=mode)
    assert (model.num_classes, model.head) == (4, "params/linear")
    params, _ = net.init(jax.random.key(0), checks.IMAGES, True)
    named = models.to_named(model, model.init(jax.random.key(0)))
    state: dict = {}
    for name, value in named.items():
        module, _, kind = name.rpartition("/")
        if module in params:
            np.testing.assert_array_equal(value, params[module][kind])
        else:
            state.setdefault(module, {})[kind] = value

    def loss(params):
        return cross_entropy(net.apply(params, state, None, checks.IMAGES, mode == "train")[0])

    expected = {
        f"{module}/{kind}": leaf for module, by in jax.grad(loss)(params).items() for kind, leaf in by.items()
    }
    found = checks.gradient(model)
    assert checks.relative_error(found, expected) < 1e-5
    assert not found["batch_norm/~/mean_ema/counter"].any()  # an integer, which travels
    checks.check_round_trip(model)
    params, images = model.init(jax.random.key(0)), jnp.asarray(checks.IMAGES)
    measured = jax.tree.map(lambda leaf: leaf[None], model.batch_statistics(params, images))
    sent = net.apply(*net.init(jax.random.key(0), checks.IMAGES, True), None, checks.IMAGES, True)[1]
    advanced = running_statistics.advance(params["batch_stats"], measured, momentum=0.9)
    for kind in ("mean", "var"):
        np.testing.assert_allclose(
            advanced["batch_norm"][kind], sent[f"batch_norm/~/{kind}_ema"]["hidden"], rtol=1e-4, atol=1e-6
        )


class HaikuModes:
    """A network with one argument for the modes of BatchNorm, a random layer, and perhaps a norm of one's own."""

    def __init__(self, hk, own=False):
        self.hk, self.own = hk, own

    def __call__(self, x, is_training):
        hk = self.hk
        if self.own:
            mean = hk.get_state("mean", x.shape[-1:], init=jnp.zeros)
            if is_training:
                hk.set_state("mean", x.mean((0, 1, 2)))
            x = x - mean[None, None, None]
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        if is_training:
            kept = jax.random.bernoulli(hk.next_rng_key(), 0.5, (len(x), 1, 1, 1))
            x = jnp.where(kept, 2 * x, 0.0)
        return hk.Linear(4)(hk.Flatten()(x))


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_haiku_layers_are_in_their_own_modes(batch_norm):
    hk = pytest.importorskip("haiku", reason=EXTRA.format("haiku"))
    net = hk.transform_with_state(HaikuModes(hk))
    model = models.from_haiku(net, input_shape=(8, 8, 3), batch_norm=batch_norm, dropout="train")
    params, images = model.init(jax.random.key(0)), jnp.asarray(checks.IMAGES)
    named = models.to_named(model, params)
    mean, var = (named[f"batch_norm/~/{kind}_ema/average"] for kind in ("mean", "var"))
    if batch_norm == "train":
        mean, var = images.mean((0, 1, 2), keepdims=True), images.var((0, 1, 2), keepdims=True)
    x = ((images - mean) / np.sqrt(var + 1e-5)).reshape(3, -1)
    head = lambda x: x @ named["linear/w"] + named["linear/b"][None]  # noqa: E731
    np.testing.assert_allclose(model.apply(params, images), head(x), atol=1e-3)
    heard = []
    probe = model._replace(loss_of=lambda apply: lambda p, b: heard.append(apply(p, b.inputs)) or jnp.sum(heard[-1]))
    probe.drawn_loss_fn(params, Batch(images, jnp.zeros(3, int)), jax.random.key(3))
    outcomes = [head(x * np.array(kept)[:, None] * 2) for kept in np.ndindex(2, 2, 2)]
    assert min(np.abs(heard[0] - outcome).max() for outcome in outcomes) < 1e-3
    own = hk.transform_with_state(HaikuModes(hk, own=True))
    with pytest.raises(ValueError, match="changes its state '~/mean' when it is told to train"):
        models.from_haiku(own, input_shape=(8, 8, 3), batch_norm=batch_norm, dropout="train")


def test_haiku_without_state():
    hk = pytest.importorskip("haiku", reason=EXTRA.format("haiku"))
    net = hk.transform(lambda x: hk.nets.MLP([5, 4])(hk.Flatten()(x)))
    model = models.from_haiku(net, input_shape=(8, 8, 3))
    assert model.head == "params/mlp/~/linear_1"
    checks.check_examples_are_apart(model)
    keyless = models.from_haiku(hk.without_apply_rng(net), input_shape=(8, 8, 3))
    params, inputs = model.init(jax.random.key(0)), jnp.ones((2, 8, 8, 3))
    np.testing.assert_array_equal(keyless.apply(params, inputs), model.apply(params, inputs))


def equinox_net(eqx, key):
    keys = jax.random.split(key)

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        drop: eqx.nn.Dropout
        head: eqx.nn.Linear
        act: object
        table: jax.Array

        def __init__(self):
            self.conv, self.drop = eqx.nn.Conv2d(3, 4, 3, stride=2, key=keys[0]), eqx.nn.Dropout(0.5)
            self.head, self.act = eqx.nn.Linear(36, 4, key=keys[1]), jax.nn.gelu
            self.table = jnp.arange(36)[::-1]

        def __call__(self, x, key=None):
            return self.head(self.drop(self.act(self.conv(x)).ravel()[self.table], key=key))

    return Net()


@pytest.mark.slow
def test_equinox():
    eqx = pytest.importorskip("equinox", reason=EXTRA.format("equinox"))
    module = equinox_net(eqx, jax.random.key(0))
    model = models.from_equinox(module, input_shape=(8, 8, 3))
    assert (model.num_classes, model.head) == (4, "params/head")
    quiet = eqx.nn.inference_mode(module)

    @eqx.filter_grad
    def theirs(module):
        return cross_entropy(jax.vmap(module)(checks.IMAGES.transpose(0, 3, 1, 2)))

    grads = theirs(quiet)
    expected = {"conv.weight": grads.conv.weight, "conv.bias": grads.conv.bias, "head.weight": grads.head.weight}
    found = checks.gradient(model)
    assert checks.relative_error(found, expected) < 1e-5
    assert set(found) == {*expected, "head.bias", "table"}
    assert model.init(None)["params"]["conv"]["kernel"].shape == (3, 3, 3, 4)
    checks.check_round_trip(model)
    drawn = models.from_equinox(module, input_shape=(8, 8, 3), dropout="train")
    batch = Batch(jnp.asarray(checks.IMAGES), jnp.asarray(checks.LABELS))
    losses = [float(drawn.drawn_loss_fn(drawn.init(None), batch, jax.random.key(i))) for i in range(2)]
    assert losses[0] != losses[1]


def test_equinox_batch_norm_has_a_state():
    eqx = pytest.importorskip("equinox", reason=EXTRA.format("equinox"))

    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")
            self.head = eqx.nn.Linear(192, 4, key=key)

        def __call__(self, x, state):
            x, state = self.norm(x, state)
            return self.head(x.ravel()), state

    pair = eqx.nn.make_with_state(Net)(jax.random.key(0))
    quiet, coupled = (models.from_equinox(pair, input_shape=(8, 8, 3), batch_norm=m) for m in ("eval", "train"))
    images = jnp.asarray(checks.IMAGES)
    apart = quiet.apply(quiet.init(None), images[:1])
    np.testing.assert_allclose(apart, quiet.apply(quiet.init(None), images)[:1], atol=1e-5)
    assert jnp.abs(coupled.apply(coupled.init(None), images)[:1] - apart).max() > 1e-2
    with pytest.raises(ValueError, match="Net: the inputs of Equinox's BatchNorm layers cannot be observed"):
        coupled.batch_statistics(coupled.init(None), images)
    config = jobs.JobConfig.of(batch_norm="train", threat_model="E", num_examples=3)
    with pytest.raises(ValueError, match="cannot be observed"):
        jobs.deployment_of(config, coupled).sent_statistics()(coupled.init(None), Batch(images, checks.LABELS))


def keras_net(keras):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("gelu"),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(6),
            keras.layers.Dense(4),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_keras(mode):
    keras = pytest.importorskip("keras", reason=EXTRA.format("keras"))
    keras_net(keras)  # counts the names of the next one further
    net = keras_net(keras)
    net.layers[5].trainable = False
    model = models.from_keras(net, batch_norm=mode)
    assert (model.num_classes, model.head) == (4, "params/dense_1")
    assert model.frozen == ("params/dense/kernel", "params/dense/bias")
    weights, state = ([v.value for v in vs] for vs in (net.trainable_variables, net.non_trainable_variables))
    if mode == "eval":

        def loss(weights):
            return cross_entropy(net.stateless_call(weights, state, checks.IMAGES, training=False)[0])

        names = ["conv2d/kernel", "conv2d/bias", "batch_normalization/gamma", "batch_normalization/beta"]
        with jax.numpy_rank_promotion("allow"):
            expected = dict(zip([*names, "dense_1/kernel", "dense_1/bias"], jax.grad(loss)(weights)))
        found = checks.gradient(model)
        assert checks.relative_error(found, expected) < 1e-5
        assert not found["dense/kernel"].any()
        checks.check_examples_are_apart(model)
    checks.check_round_trip(model)
    seen = model.batch_statistics(model.init(None), jnp.asarray(checks.IMAGES))
    with jax.numpy_rank_promotion("allow"):
        first = np.asarray(net.layers[0](checks.IMAGES))
    np.testing.assert_allclose(seen["batch_normalization"]["mean"], first.mean((0, 1, 2)), atol=1e-5)
    if mode == "train":
        logits = model.apply(model.init(None), jnp.asarray(checks.IMAGES))
        normalized = (first - first.mean((0, 1, 2))) / np.sqrt(first.var((0, 1, 2)) + net.layers[1].epsilon)
        x = jax.nn.gelu(normalized, approximate=False).reshape(3, -1)
        for layer in net.layers[5:]:
            x = x @ layer.kernel.value + layer.bias.value[None]
        np.testing.assert_allclose(logits, x, atol=1e-4)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"needs torch: pip install 'jaxinvert\[torch\]'"):
        models.from_torch(None, input_shape=(8, 8, 3))
