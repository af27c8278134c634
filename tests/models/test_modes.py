"""Linen modules with one argument for all modes: BatchNorm in one mode, random layers in the other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxinvert import Batch, clients, models

SHAPE, KEY = (4, 4, 3), jax.random.key(7)
IMAGES = jax.random.uniform(jax.random.key(0), (5, *SHAPE), minval=-2, maxval=3)
BATCH = Batch(IMAGES, jnp.array([0, 1, 2, 3, 0]))


class DropPath(linen.Module):
    """A random layer of one's own, with one's own stream of random numbers."""

    @linen.compact
    def __call__(self, x, deterministic):
        if deterministic:
            return x
        kept = jax.random.bernoulli(self.make_rng("drop_path"), 0.5, (len(x),) + (1,) * (x.ndim - 1))
        return jnp.where(kept, x / 0.5, 0.0)


class OwnNorm(linen.Module):
    """Writes running statistics without being Flax's BatchNorm."""

    @linen.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        if not train:
            return x - mean.value[None, None, None]
        mean.value = x.mean((0, 1, 2))
        return x - mean.value[None, None, None]


class Net(linen.Module):
    """The mode reaches BatchNorm as an attribute or in the call; the second layer is always frozen."""

    in_call: bool = False
    random: str = "dropout"
    own_norm: bool = False

    @linen.compact
    def __call__(self, x, train: bool):
        if self.own_norm:
            x = OwnNorm()(x, train)
        elif self.in_call:
            x = linen.BatchNorm(name="norm")(x, not train)
        else:
            x = linen.BatchNorm(not train, name="norm")(x)
        x = linen.BatchNorm(True, name="frozen")(x)
        if self.random == "dropout":
            x = linen.Dropout(0.5, deterministic=not train)(x)
        elif self.random == "path":
            x = DropPath()(x, deterministic=not train)
        return linen.Dense(4, name="head")(x.reshape(len(x), -1))


def model_in(batch_norm, **options):
    net = Net(**options)
    modes = {"batch_norm": batch_norm, "dropout": "train"}
    return models.from_linen(net, name="net", input_shape=SHAPE, num_classes=4, **modes)


def drawn_logits(model, params, keys):
    """`[N, B, K]`: the logits with draws, read from a loss that is one of them."""

    def logit(key, index):
        probe = model._replace(loss_of=lambda apply: lambda p, b: apply(p, b.inputs).ravel()[index])
        return probe.drawn_loss_fn(params, BATCH, key)

    over_logits = jax.vmap(logit, in_axes=(None, 0))
    found = jax.jit(jax.vmap(over_logits, in_axes=(0, None)))(keys, jnp.arange(20))
    return np.asarray(found).reshape(-1, 5, 4)


def by_hand(params, batch_norm):
    """The features behind both norms, and the head."""
    x = np.asarray(IMAGES, np.float64)
    if batch_norm == "train":
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    else:
        x = x / np.sqrt(1 + 1e-5)
    x = (x / np.sqrt(1 + 1e-5)).reshape(5, -1)
    head = jax.tree.map(np.asarray, params["params"]["head"])
    return x, lambda h: h @ head["kernel"] + head["bias"]


@pytest.mark.parametrize("in_call", [False, True])
@pytest.mark.parametrize("random", ["dropout", "path"])
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_each_kind_of_layer_is_in_its_own_mode(batch_norm, random, in_call):
    model = model_in(batch_norm, random=random, in_call=in_call)
    params = model.init(jax.random.key(1))
    features, head = by_hand(params, batch_norm)
    np.testing.assert_allclose(model.apply(params, IMAGES), head(features), atol=1e-4)
    seen = model.batch_statistics(params, IMAGES)["norm"]["mean"]
    np.testing.assert_allclose(seen, IMAGES.mean((0, 1, 2)), atol=1e-5)
    if random == "path":  # each example is kept or dropped as a whole: all 32 outcomes are known
        outcomes = [head(features * np.array(kept)[:, None] * 2) for kept in itertools.product([0, 1], repeat=5)]
        for found in drawn_logits(model, params, jax.random.split(KEY, 3)):
            assert min(np.abs(found - outcome).max() for outcome in outcomes) < 1e-4
    else:  # the mean over draws is the network without draws, whatever the mode of BatchNorm
        draws = drawn_logits(model, params, jax.random.split(KEY, 300))
        spread = draws.std(0).max()
        assert spread > 0.1
        np.testing.assert_allclose(draws.mean(0), head(features), atol=5 * spread / np.sqrt(300))
    update = clients.fedsgd(model.drawn_loss_fn, dropout_key=KEY)(params, BATCH)
    assert not jax.tree.leaves(update["batch_stats"])[0].any()


@pytest.mark.slow
def test_gradients_of_examples_see_the_mode_that_layers_are_put_into():
    """The module is told to evaluate, its BatchNorm layer trains: the examples are coupled."""
    coupled, apart = model_in("train"), model_in("eval")
    params = coupled.init(jax.random.key(1))
    with pytest.raises(ValueError, match="BatchNorm layer 'norm' is in train mode"):
        clients.dp_fedsgd(coupled.loss, clip_norm=1.0)(params, BATCH)
    clients.dp_fedsgd(apart.loss, clip_norm=1.0)(params, BATCH)
    one = jax.tree.map(lambda leaf: leaf[:1], BATCH)
    drawn = lambda params, batch: apart.drawn_loss_fn(params, batch, KEY)  # noqa: E731
    clients.dp_fedsgd(drawn, clip_norm=1.0)(params, one)


def test_layers_that_cannot_be_told_apart_are_refused():
    model = model_in("eval", own_norm=True)
    params = model.init(jax.random.key(1))
    model.apply(params, IMAGES)
    with pytest.raises(ValueError, match=r"net draws random numbers, and has layers beside .* the same mode"):
        model.drawn_loss_fn(params, BATCH, KEY)
    both = model_in("train", own_norm=True)
    both.drawn_loss_fn(params, BATCH, KEY)
    with pytest.raises(ValueError, match="the same mode"):
        both.apply(params, IMAGES)
    alone = model_in("train", own_norm=True, random="none")  # nothing to tell apart: told to train
    shifted = alone.apply(params, IMAGES + 3)
    np.testing.assert_allclose(shifted, alone.apply(params, IMAGES), atol=1e-4)


def test_a_module_without_a_mode_that_draws_is_refused():
    module = linen.Sequential(
        [linen.Dropout(0.5, deterministic=False), lambda x: x.reshape(len(x), -1), linen.Dense(4)]
    )
    model = models.from_linen(module, name="net", input_shape=SHAPE, num_classes=4, head="", dropout="train")
    with pytest.raises(ValueError, match="net draws random numbers where it should not: give its __call__"):
        model.apply({"params": {}}, IMAGES)
