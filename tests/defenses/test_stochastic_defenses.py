"""Defenses that take part in the training: mixtures, OUTPOST, and a variational bottleneck."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from scipy import stats

from jaxinvert import clients, defenses, models
from jaxinvert.defenses.bottleneck import BOTTLENECK
from jaxinvert.defenses.outpost import perturbation
from jaxinvert.types import Batch


def test_mixtures_are_convex_and_their_labels_go_along():
    """Images that are one-hot show the shares; each has its own, the sums are one, and labels have the same."""
    size = 6
    batch = Batch(jnp.eye(size).reshape(size, size, 1, 1), jnp.arange(size))
    mixed = jax.jit(lambda key: defenses.mixed(key, batch, num_classes=size))(jax.random.key(0))
    shares = np.asarray(mixed.inputs).reshape(size, size)
    np.testing.assert_allclose(mixed.labels, shares, rtol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert np.all(np.sum(shares > 0, axis=1) <= 4)
    assert np.all(np.diag(shares) > 0)
    assert len({round(float(one), 6) for one in np.diag(shares)}) == size
    soft = defenses.mixed(jax.random.key(0), batch._replace(labels=jnp.eye(size)), num_classes=size)
    np.testing.assert_allclose(soft.labels, mixed.labels, rtol=1e-6)


def test_shares_of_a_mixture_are_uniform_on_the_simplex():
    """One's own share of four is Beta(1, 3), but where a partner is the image itself, once in 1,000 draws."""
    batch = Batch(jnp.zeros((1000, 1, 1, 1)), jnp.arange(1000))
    labels = jax.jit(lambda key: defenses.mixed(key, batch, num_classes=1000).labels)(jax.random.key(1))
    own = np.diag(labels)
    assert stats.kstest(own, stats.beta(1, 3).cdf).pvalue > 1e-3
    assert stats.kstest(own, stats.beta(1, 2).cdf).pvalue < 1e-3


def test_outpost_prunes_every_tensor_and_disturbs_where_the_fisher_information_is_large():
    """Weights of variance 0.25 and noise 2: deviation 0.5, on the half of the inputs with the largest gradients."""
    params = {"w": jnp.tile(jnp.array([0.5, -0.5]), (40, 50)) * jnp.sqrt(3999 / 4000)}
    sizes = jnp.where(jnp.arange(40) < 20, 0.1, 10.0)[:, None] * jnp.linspace(0.5, 1, 100)[None]
    sent = perturbation(params, phi=50.0, prune=30.0, noise=2.0)(jax.random.key(0), {"w": sizes})["w"]
    quiet, loud = np.asarray(sent[:20]), np.asarray(sent[20:] - sizes[20:])
    assert np.mean(quiet == 0) == pytest.approx(0.6, abs=1e-3)  # 30 % of all entries, the smallest, are here
    np.testing.assert_array_equal(quiet[quiet != 0], np.asarray(sizes[:20])[quiet != 0])
    assert stats.kstest(loud.ravel() / 0.5, "norm").pvalue > 1e-3
    assert stats.kstest(loud.ravel() / 0.6, "norm").pvalue < 1e-3
    wide = jax.tree.map(lambda leaf: 100 * leaf, params)
    far = perturbation(wide, phi=50.0, prune=30.0, noise=2.0)(jax.random.key(0), {"w": sizes})["w"]
    assert np.std(np.asarray(far[20:] - sizes[20:])) == pytest.approx(2.0, rel=0.05)  # a risk is 1 at most


def test_outpost_gets_rarer_with_every_step():
    """After t steps it happens with probability 1 / (1 + t)."""
    params = {"w": jnp.linspace(-1.0, 1.0, 8)}

    def happens(key):
        change = defenses.outpost(key, decay=1.0)
        state, steps = change.init(params), []
        for _ in range(3):
            sent, state = change.update(params, state, params)
            steps.append(jnp.any(sent["w"] != params["w"]))
        return jnp.stack(steps)

    counts = np.asarray(jax.jit(jax.vmap(happens))(jax.random.split(jax.random.key(0), 2000))).sum(axis=0)
    for count, share in zip(counts, (1 / 2, 1 / 3, 1 / 4)):
        assert stats.binomtest(int(count), 2000, share).pvalue > 1e-3
        assert stats.binomtest(int(count), 2000, share + 0.06).pvalue < 1e-3


def test_a_changed_gradient_is_that_of_every_local_step():
    """Halved in each of two steps of rate 1 on the loss w^2 / 2: w is 1, 1/2, 1/4; running statistics stay."""

    def loss(params, batch):
        return 0.5 * params["w"] ** 2 + 0 * jnp.sum(batch.inputs) + jnp.sum(params["batch_stats"]["mean"])

    params = {"w": jnp.array(1.0), "batch_stats": {"mean": jnp.zeros(1)}}
    batch = Batch(jnp.zeros((1, 1)), jnp.zeros(1))
    halve = optax.scale(0.5)
    assert float(clients.fedsgd(loss, change=halve)(params, batch)["w"]) == 0.5
    train = clients.fedavg(loss, optimizer=optax.chain(halve, optax.sgd(1.0)), num_epochs=2)
    assert float(train(params, batch)["w"]) == 0.75


@pytest.fixture(scope="module")
def precode():
    model = models.create("mlp-16", input_shape=(4, 4, 1), num_classes=3)
    batch = Batch(jax.random.uniform(jax.random.key(1), (2, 4, 4, 1)), jnp.array([0, 2]))
    return model, defenses.with_bottleneck(model, num_units=5, beta=0.1), batch


def test_a_bottleneck_is_what_it_says(precode):
    """By hand: features, encoder, mean, decoder, head; the divergence is in the loss."""
    model, extended, batch = precode
    params = extended.init(jax.random.key(0))
    layers, weights = params["params"], params["params"][BOTTLENECK]
    plain = model.init(jax.random.key(0))["params"]
    jax.tree.map(np.testing.assert_array_equal, {name: layers[name] for name in plain}, plain)
    flat = batch.inputs.reshape(2, -1)
    features = jax.nn.relu(flat @ layers["dense_0"]["kernel"] + layers["dense_0"]["bias"][None])
    encoded = features @ weights["encoder"]["kernel"] + weights["encoder"]["bias"][None]
    mean, spread = encoded[:, :5], jnp.log1p(jnp.exp(encoded[:, 5:]))
    decoded = mean @ weights["decoder"]["kernel"] + weights["decoder"]["bias"][None]
    logits = decoded @ layers["head"]["kernel"] + layers["head"]["bias"][None]
    np.testing.assert_allclose(extended.apply(params, batch.inputs), logits, rtol=1e-5)

    divergence = jnp.sum(jnp.square(mean) + jnp.square(spread) - 1 - 2 * jnp.log(spread), axis=1) / 2
    still = jax.tree.map(jnp.zeros_like, weights["decoder"])  # what was drawn reaches no logit
    deaf = {"params": {**layers, BOTTLENECK: {**weights, "decoder": still}}}
    expected = models.cross_entropy(extended.apply)(deaf, batch) + 0.1 * jnp.mean(divergence)
    assert float(extended.drawn_loss_fn(deaf, batch, jax.random.key(3))) == pytest.approx(float(expected), rel=1e-5)


def test_the_code_has_the_spread_that_the_encoder_says(precode):
    """A head and decoder that hand the code on: its mean and deviation over draws are the encoder's."""
    model, _, batch = precode
    first = model._replace(loss_fn=lambda params, batch: model.apply(params, batch.inputs)[0, 0])
    drawn = defenses.with_bottleneck(first, num_units=1, beta=0.0)
    params = drawn.init(jax.random.key(0))
    params["params"]["head"] = {"kernel": jnp.zeros((16, 3)).at[0, 0].set(1.0), "bias": jnp.zeros(3)}
    decoder = {"kernel": jnp.zeros((1, 16)).at[0, 0].set(1.0), "bias": jnp.zeros(16)}
    encoder = {"kernel": jnp.zeros((16, 2)), "bias": jnp.array([0.7, 1.3])}
    params["params"][BOTTLENECK] = {"encoder": encoder, "decoder": decoder}
    codes = jax.vmap(lambda key: drawn.drawn_loss_fn(params, batch, key))(jax.random.split(jax.random.key(0), 2000))
    spread = np.log1p(np.exp(1.3))
    assert stats.kstest((np.asarray(codes) - 0.7) / spread, "norm").pvalue > 1e-3
    assert stats.kstest((np.asarray(codes) - 0.7) / (1.2 * spread), "norm").pvalue < 1e-3


def test_a_network_without_a_flax_head_gets_no_bottleneck(victim):
    extended = defenses.with_bottleneck(victim.model._replace(init=lambda key: victim.params))
    with pytest.raises(ValueError, match="a bottleneck needs a Flax layer after it, but tiny calls none at 'head'"):
        extended.init(jax.random.key(0))


def test_fedavg_clients_train_their_bottleneck(precode):
    _, extended, batch = precode
    params = extended.init(jax.random.key(0))
    train = clients.fedavg(
        extended.drawn_loss_fn, optimizer=optax.sgd(0.1), num_epochs=2, dropout_key=jax.random.key(1)
    )
    moved = train(params, batch)["params"][BOTTLENECK]
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(moved))


class Headless(linen.Module):
    """A network whose last layer is not where the model says."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, name="last")(x.reshape(x.shape[0], -1))


def test_a_head_without_parameters_is_refused():
    model = models.from_linen(Headless(), name="headless", input_shape=(2, 2, 1), num_classes=3)
    with pytest.raises(ValueError, match="headless has no parameters params/head/kernel"):
        defenses.with_bottleneck(model).init(jax.random.key(0))
