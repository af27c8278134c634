"""Federated training against plain loops and closed forms; splits against the law of the Dirichlet-multinomial."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxinvert import clients, defenses, models
from jaxinvert.federation import Population, Training, dirichlet_split, evaluate, federated_averaging, populate
from jaxinvert.types import Batch

FEATURES, NUM_CLASSES = 4, 3
RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(11, FEATURES)), RNG.integers(NUM_CLASSES, size=11)
CLIENTS = (np.arange(2), np.arange(2, 5), np.arange(5, 11))
SIZES = np.array([2, 3, 6])


def apply(params, inputs):
    return jnp.tanh(inputs @ params["first"]) @ params["head"]


LOSS = models.cross_entropy(apply)
GRADIENT = jax.jit(jax.grad(LOSS))
PARAMS = {"first": RNG.normal(size=(FEATURES, 5)), "head": RNG.normal(size=(5, NUM_CLASSES))}


@pytest.fixture
def double():
    """Parameters, examples and clients of 2, 3 and 6 examples, in float64."""
    with jax.enable_x64(True):
        examples = Batch(jnp.asarray(INPUTS), jnp.asarray(LABELS))
        yield jax.tree.map(jnp.asarray, PARAMS), examples, populate(examples, CLIENTS)


def assert_trees_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, **tolerance), found, expected)


def run_rounds(federation, key, params, population, num_rounds):
    """Parameters before and after every round, leaves `[num_rounds + 1, ...]`."""

    @jax.jit
    def run(state, population):
        def body(state, _):
            state, _ = federation.round(key, state, population)
            return state, state.params

        _, after = jax.lax.scan(body, state, length=num_rounds)
        return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state.params, after)

    return run(federation.init(params), population)


@pytest.mark.parametrize("concentration", [1e-3, 0.5, math.inf])
@pytest.mark.parametrize("how", [{"num_clients": 7}, {"sizes": [1, 199, 50, 50]}])
def test_a_split_deals_every_example_once(concentration, how):
    labels = np.random.default_rng(1).integers(5, size=300)
    split = dirichlet_split(np.random.default_rng(2), labels, concentration=concentration, **how)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(300))
    assert [len(client) for client in split] == how.get("sizes", [43] * 6 + [42])
    assert all(np.all(np.diff(client) > 0) for client in split)


@pytest.mark.parametrize("concentration", [0.1, 1.0, 10.0, math.inf])
def test_concentration_is_that_of_the_dirichlet(concentration):
    """Class shares f of n draws from q ~ Dir(a p) have E sum (f - p)^2 = (1 - sum p^2) (n + a) / (n (1 + a)).

    The law of total variance: Var f = E q (1 - q) / n + Var q with Var q = p (1 - p) / (1 + a). Clients of 20 out of
    50,000 examples exhaust no class; the last client takes the rest.
    """
    labels = np.repeat([0, 1, 2, 3], [20_000, 15_000, 10_000, 5_000])
    size, num_clients = 20, 200
    sizes = [size] * num_clients + [len(labels) - size * num_clients]
    split = dirichlet_split(np.random.default_rng(3), labels, concentration=concentration, sizes=sizes)[:-1]
    p = np.array([0.4, 0.3, 0.2, 0.1])
    spread = [np.sum((np.bincount(labels[client], minlength=4) / size - p) ** 2) for client in split]

    def z_score(a):
        share = 1 / size if math.isinf(a) else (size + a) / (size * (1 + a))
        return abs(np.mean(spread) - (1 - np.sum(p**2)) * share) / (np.std(spread) / math.sqrt(num_clients))

    assert z_score(concentration) < 3.5
    assert z_score(3.0 if math.isinf(concentration) else 3 * concentration) > 3.5


def test_near_zero_concentration_clients_have_one_class():
    labels = np.repeat(np.arange(10), 1000)
    sizes = [50] * 10 + [9500]
    split = dirichlet_split(np.random.default_rng(4), labels, concentration=1e-4, sizes=sizes)
    assert all(len(np.unique(labels[client])) == 1 for client in split[:-1])
    assert len(np.unique(labels[split[-1]])) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concentration": 0.0, "num_clients": 2}, "concentration must be positive, got 0.0"),
        ({"concentration": 1.0}, "one of num_clients and sizes, got num_clients=None and sizes=None"),
        ({"concentration": 1.0, "num_clients": 5}, r"num_clients must be in \[1, 4\].* got 5"),
        ({"concentration": 1.0, "sizes": [4, 0]}, r"at least 1 each and 4 together, got \[4, 0\]"),
        ({"concentration": 1.0, "sizes": [1, 1]}, r"at least 1 each and 4 together, got \[1, 1\]"),
    ],
)
def test_a_split_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dirichlet_split(np.random.default_rng(0), np.array([0, 1, 0, 1]), **arguments)


def test_a_population_that_cannot_be_is_refused():
    examples = Batch(INPUTS, LABELS)
    with pytest.raises(ValueError, match=r"at least one example, got clients of \[2, 0\]"):
        populate(examples, [np.arange(2), np.arange(0)])
    with pytest.raises(ValueError, match=r"hold indices 0 ... 11, expected \[0, 11\)"):
        populate(examples, [np.arange(12)])


def test_one_client_with_one_full_batch_step_is_gradient_descent(double):
    params, examples, _ = double
    federation = federated_averaging(
        clients.fedsgd(LOSS), clients_per_round=1, examples_per_client=11, server_optimizer=optax.sgd(0.3)
    )
    found = run_rounds(federation, jax.random.key(0), params, populate(examples, [np.arange(11)]), 3)
    expected = params
    for _ in range(3):
        grad = GRADIENT(expected, examples)
        expected = jax.tree.map(lambda w, g: w - 0.3 * g, expected, grad)
    assert_trees_close(jax.tree.map(lambda leaf: leaf[-1], found), expected, rtol=1e-12)


@pytest.mark.slow
def test_clients_side_by_side_are_clients_one_by_one(double):
    """FedAvg of two full-batch local steps. Of 6 draws every client's examples weigh alike: 3, 2 and 1 time each."""
    params, examples, population = double
    client_update = clients.fedavg(LOSS, optimizer=optax.sgd(0.5), num_epochs=2)
    federation = federated_averaging(client_update, clients_per_round=3, examples_per_client=6)
    found = run_rounds(federation, jax.random.key(0), params, population, 2)

    expected = params
    for _ in range(2):
        local_models = []
        for client in CLIENTS:
            local = expected
            for _ in range(2):
                grad = GRADIENT(local, Batch(examples.inputs[client], examples.labels[client]))
                local = jax.tree.map(lambda w, g: w - 0.5 * g, local, grad)
            local_models.append(local)
        expected = jax.tree.map(lambda *leaves: np.average(leaves, axis=0, weights=SIZES), *local_models)
    assert_trees_close(jax.tree.map(lambda leaf: leaf[-1], found), expected, rtol=1e-12)


def counting(sizes, examples_per_client, num_rounds):
    """How often every example was drawn in every round, `[num_rounds, M]`: its input is a unit vector."""
    examples = Batch(jnp.eye(sum(sizes)), jnp.zeros(sum(sizes), jnp.int32))
    population = populate(examples, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))
    federation = federated_averaging(
        lambda params, batch: jnp.sum(batch.inputs, axis=0),
        clients_per_round=1,
        examples_per_client=examples_per_client,
    )
    params = run_rounds(federation, jax.random.key(0), jnp.zeros(sum(sizes)), population, num_rounds)
    return -np.diff(np.asarray(params), axis=0)


def test_clients_and_their_examples_are_drawn_uniformly():
    """Clients of 3 and 5 examples, 4 drawn: one of the three comes twice, or one of the five does not come."""
    counts = counting([3, 5], 4, 400)
    of_first = counts[:, :3].sum(axis=1) > 0
    assert stats.binomtest(int(of_first.sum()), 400).pvalue > 1e-3
    first, second = counts[of_first, :3], counts[~of_first, 3:]
    assert set(map(tuple, np.sort(first))) == {(1, 1, 2)}
    assert set(map(tuple, np.sort(second))) == {(0, 1, 1, 1, 1)}
    assert stats.chisquare((first == 2).sum(axis=0)).pvalue > 1e-3
    assert stats.chisquare((second == 0).sum(axis=0)).pvalue > 1e-3
    assert not counts[of_first, 3:].any()
    assert not counts[~of_first, :3].any()


def test_every_client_in_every_round_draws_its_own_noise():
    """Client c sends z e_c with a normal z: entry c of a round's average is z_c n_c / sum n."""
    examples = Batch(jnp.zeros((11, 1)), jnp.repeat(jnp.arange(3), jnp.asarray(SIZES), total_repeat_length=11))
    federation = federated_averaging(
        lambda params, batch: jax.nn.one_hot(batch.labels[0], 3),
        clients_per_round=3,
        examples_per_client=2,
        defense=lambda key, update: update * jax.random.normal(key),
    )
    params = run_rounds(federation, jax.random.key(0), jnp.zeros(3), populate(examples, CLIENTS), 300)
    z = -np.diff(np.asarray(params, np.float64), axis=0) * 11 / SIZES
    assert len(np.unique(np.round(z, 3))) > 700
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert np.max(np.abs(np.corrcoef(z.T) - np.eye(3))) < 4 / math.sqrt(300)
    assert stats.pearsonr(z[1:].ravel(), z[:-1].ravel()).pvalue > 1e-3


@pytest.mark.parametrize("sends", [False, True])
def test_running_statistics_are_averaged_and_nothing_else_moves_them(double, sends):
    """Each client sends the mean of its inputs; their average by size is the mean of all, whatever noise there is."""
    *_, population = double
    params = {"params": jnp.ones(2), "batch_stats": {"mean": jnp.full(FEATURES, 7.0)}}
    federation = federated_averaging(
        lambda params, batch: jax.tree.map(jnp.zeros_like, params),
        clients_per_round=3,
        examples_per_client=6,
        defense=defenses.gaussian_noise(1.0),
        server_optimizer=optax.adamw(0.1, weight_decay=0.5),
        running_statistics=(lambda params, batch: {"mean": batch.inputs.mean(axis=0)}) if sends else None,
    )
    after, update_norm = jax.jit(federation.round)(jax.random.key(0), federation.init(params), population)
    expected = INPUTS.mean(axis=0) if sends else np.full(FEATURES, 7.0)
    np.testing.assert_allclose(after.params["batch_stats"]["mean"], expected, rtol=1e-12)
    assert np.all(after.params["params"] != 1)
    assert update_norm > 0


def test_numbers_below_one_and_too_few_clients_are_refused():
    with pytest.raises(ValueError, match="examples_per_client must be at least 1, got 0"):
        federated_averaging(clients.fedsgd(LOSS), clients_per_round=1, examples_per_client=0)
    federation = federated_averaging(clients.fedsgd(LOSS), clients_per_round=4, examples_per_client=1)
    with pytest.raises(ValueError, match="clients_per_round is 4, but there are 3 clients"):
        federation.round(jax.random.key(0), federation.init(PARAMS), populate(Batch(INPUTS, LABELS), CLIENTS))


def test_evaluation_by_hand():
    """Logits (2, 0) for both examples: log-loss log(1 + e^-2) for class 0, two more for class 1."""
    accuracy, loss = evaluate(
        lambda params, inputs: jnp.stack([params * inputs[:, 0], inputs[:, 1]], axis=1),
        jnp.array(2.0),
        Batch(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1])),
    )
    assert accuracy == 0.5
    assert loss == pytest.approx(1 + math.log1p(math.exp(-2)), rel=1e-6)


@pytest.mark.parametrize(
    ("num_logits", "labels", "message"),
    [
        (1, jnp.array([0, 1]), "one logit per class"),
        (2, jnp.array([[0.0, 1.0], [1.0, 1.0]]), "one class per example"),
        (2, jnp.array([0.5, 2.0]), "one class per example"),
    ],
)
def test_an_accuracy_without_classes_is_refused(num_logits, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda params, inputs: inputs[:, :num_logits], (), Batch(jnp.ones((2, 2)), labels))


def separable(num_examples, seed):
    """Three well separated Gaussians in the plane."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=num_examples)
    centers = 3 * np.array([[1, 0], [-0.5, 0.87], [-0.5, -0.87]])
    inputs = centers[labels] + 0.7 * generator.normal(size=(num_examples, 2))
    return Batch(jnp.asarray(inputs, jnp.float32), jnp.asarray(labels))


def test_training_learns_is_resumed_where_it_was_and_suffers_from_noise():
    train, test = separable(400, 0), separable(200, 1)
    split = dirichlet_split(np.random.default_rng(0), np.asarray(train.labels), num_clients=20, concentration=0.5)
    population = populate(train, split)

    def linear(params, inputs):
        return inputs @ params

    def make(noise):
        client_update = clients.fedavg(models.cross_entropy(linear), optimizer=optax.sgd(0.2), batch_size=5)
        return federated_averaging(
            client_update, clients_per_round=5, examples_per_client=10, defense=defenses.gaussian_noise(noise)
        )

    training = Training(make, linear, chunk_size=64)
    arguments = (jax.random.key(0), jnp.zeros((2, 3)), population, test)
    whole = list(training(*arguments, 0.01, rounds=[0, 3, 40]))
    assert [snapshot.round for snapshot in whole] == [0, 3, 40]
    assert [int(snapshot.state.round) for snapshot in whole] == [0, 3, 40]
    assert whole[0].accuracy < 0.5
    assert whole[0].loss == pytest.approx(math.log(3), rel=1e-5)
    assert whole[0].update_norm is None
    assert whole[-1].accuracy > 0.95
    assert whole[-1].loss < whole[1].loss

    (begun,) = training(*arguments, 0.01, rounds=[7])
    (resumed,) = training(*arguments, 0.01, rounds=[0, 3, 40], resume=begun.state)
    assert resumed.update_norm == whole[-1].update_norm
    np.testing.assert_array_equal(resumed.state.params, whole[-1].state.params)

    between: list = []
    told = list(training(*arguments, 0.01, rounds=[0, 3, 40], on_state=between.append))
    assert [(one.accuracy, one.loss) for one in told] == [(one.accuracy, one.loss) for one in whole]
    assert between
    assert not {int(state.round) for state in between} & {0, 3, 40}
    (again,) = training(*arguments, 0.01, rounds=[40], resume=between[-1])
    np.testing.assert_array_equal(again.state.params, whole[-1].state.params)

    *_, noisy = training(*arguments, 100.0, rounds=[40])
    assert noisy.loss > whole[0].loss
    assert training.num_traces == 1
    with pytest.raises(ValueError, match=r"rounds must ascend.* got \[3, 3\]"):
        next(training(*arguments, 0.0, rounds=[3, 3]))


def test_a_population_is_a_pytree_of_arrays():
    """So that it travels as an argument of compiled programs, not as a constant in them."""
    population = populate(Batch(INPUTS, LABELS), CLIENTS)
    assert isinstance(population, Population)
    assert [leaf.shape for leaf in jax.tree.leaves(population)] == [(11, FEATURES), (11,), (3, 6), (3,)]
    for client, row in zip(CLIENTS, np.asarray(population.members)):
        np.testing.assert_array_equal(row[: len(client)], client)
        assert set(row) == set(client)
