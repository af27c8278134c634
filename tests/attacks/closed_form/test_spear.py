"""Exact batches: proven where they are exact, and with a reason where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinvert import clients, data, models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.closed_form import sparse_directions as sparse
from jaxinvert.attacks.closed_form.certificate import WORDS, Status, certify, certify_within, first_doubt
from jaxinvert.attacks.closed_form.independent_components import independent_components
from jaxinvert.attacks.closed_form.precision import in_float64
from jaxinvert.attacks.closed_form.spear import exact_batch, spear
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, Observation

SHAPE = (4, 4, 3)
MODEL = models.create(
    "mlp", input_shape=SHAPE, features=(40,), num_classes=5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
)
CLIENT = clients.fedsgd(MODEL.loss)
BATCH_SIZE = 3


def batch_of(size, seed=1):
    keys = jax.random.split(jax.random.key(seed))
    return Batch(jax.random.uniform(keys[0], (size, *SHAPE)), jax.random.randint(keys[1], (size,), 0, 5))


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


@pytest.fixture(scope="module")
def solve():
    """The sampler for three examples, compiled once for all statuses."""
    return jax.jit(spear(Problem(CLIENT, MODEL, BATCH_SIZE), num_samples=64, max_rounds=8))


def nearest(found, truth):
    """Each true example's largest error in its nearest reconstruction, which no two may share; that one's label."""
    difference = np.abs(np.asarray(found.inputs)[:, None] - np.asarray(truth.inputs)[None]).max(axis=(2, 3, 4))
    order = difference.argmin(axis=0)
    assert len(set(order)) == len(order)
    return difference[order, np.arange(len(order))], np.asarray(found.labels)[order]


@pytest.mark.slow
def test_three_examples_are_exact_certified_and_labeled(solve, params):
    batch = batch_of(BATCH_SIZE)
    found = solve(jax.random.key(5), observe(CLIENT, params, batch))
    errors, labels = nearest(found, batch)
    assert errors.max() < 1e-4
    assert labels.tolist() == batch.labels.tolist()
    assert bool(found.info["certified"])
    assert float(found.attack_loss) < 1e-5
    assert (int(found.info["rank"]), int(found.info["num_found"])) == (3, 3)
    assert float(found.info["pattern_agreement"]) == 1
    assert found.inputs.dtype == jnp.float32


def not_finite(params):
    update = CLIENT(params, batch_of(BATCH_SIZE))
    return jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), update)


def noisy(params):
    update = CLIENT(params, batch_of(BATCH_SIZE))
    noise = jax.random.normal(jax.random.key(3), update["params"]["head"]["kernel"].shape)
    update["params"]["head"]["kernel"] += 1e-3 * noise
    return update


def duplicated(params):
    batch = batch_of(BATCH_SIZE)
    return CLIENT(params, jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update_of", "status"),
    [
        (not_finite, Status.NOT_FINITE),
        (lambda params: jax.tree.map(jnp.zeros_like, params), Status.ZERO),
        (duplicated, Status.LOW_RANK),
        (lambda params: CLIENT(params, batch_of(2)), Status.LOW_RANK),
        (lambda params: CLIENT(params, batch_of(5)), Status.HIGH_RANK),
        (noisy, Status.DIFFERENT),
    ],
)
def test_what_cannot_be_exact_gets_a_status_and_no_certificate(solve, params, update_of, status):
    found = solve(jax.random.key(5), Observation(params, update_of(params)))
    assert int(found.info["status"]) == status
    assert not bool(found.info["certified"])
    assert WORDS[status].startswith("not certified")
    assert np.all(np.isfinite(found.inputs))


def test_a_network_without_zeros_is_not_certified(solve, params):
    """tanh is never off: no direction is sparse, and what comes out says so."""

    def apply(params, inputs):
        first, head = params["params"]["dense_0"], params["params"]["head"]
        hidden = jnp.tanh(inputs.reshape(len(inputs), -1) @ first["kernel"] + first["bias"][None])
        return hidden @ head["kernel"] + head["bias"][None]

    update = clients.fedsgd(models.cross_entropy(apply))(params, batch_of(BATCH_SIZE))
    found = solve(jax.random.key(0), Observation(params, update))
    assert int(found.info["status"]) == Status.INCOMPLETE
    assert not bool(found.info["certified"])


def test_more_examples_than_units_are_refused(params):
    solve = spear(Problem(CLIENT, MODEL, 49))
    with pytest.raises(ValueError, match=r"'params/dense_0' has 40, the batch 49"):
        solve(jax.random.key(0), Observation(params, params))


@pytest.fixture(scope="module")
def eight():
    """Eight photographs behind 96 units, where a sample of rows hits once in 16."""
    photos = data.load("photos", split="test[:8]")
    model = models.create("mlp", features=(96,), mean=photos.mean, std=photos.std)
    return model, model.init(jax.random.key(0)), Batch(jnp.asarray(photos.images), jnp.asarray(photos.labels))


@pytest.mark.slow
def test_photographs_are_told_apart_by_independence(eight):
    """Of one client, of two at once, and under noise, which no certificate survives."""
    model, params, batch = eight
    client = clients.fedsgd(model.loss)
    observation = observe(client, params, batch)
    noisy = jax.tree.map(
        lambda leaf: leaf + 1e-5 * jax.random.normal(jax.random.key(2), leaf.shape), observation.update
    )
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), observation.update, noisy)
    solve = jax.jit(
        jax.vmap(
            lambda update: exact_batch(Problem(client, model, 8))(jax.random.key(1), Observation(params, update))
        )
    )
    found = solve(both)
    exact, perturbed = jax.tree.map(lambda leaf: leaf[0], found), jax.tree.map(lambda leaf: leaf[1], found)
    errors, labels = nearest(exact, batch)
    assert errors.max() < 1e-3  # 60 dB
    assert labels.tolist() == batch.labels.tolist()
    assert bool(exact.info["certified"])
    assert float(exact.info["noise"]) < 1e-5
    errors, labels = nearest(perturbed, batch)
    strength = float(jnp.sqrt(jnp.mean(jnp.square(observation.update["params"]["dense_0"]["kernel"]))))
    assert errors.max() < 0.01 * np.sqrt(10)  # 40 dB and more, apart from the largest of many errors
    assert labels.tolist() == batch.labels.tolist()
    assert int(perturbed.info["status"]) == Status.NOISY
    assert not bool(perturbed.info["certified"])
    assert int(perturbed.info["rank"]) == 8
    assert float(perturbed.info["noise"]) == pytest.approx(1e-5 / strength, rel=0.05)


@pytest.mark.slow
def test_local_steps_in_full_batches_keep_a_batch_exact(eight):
    """An example's units are zero that are off in all steps, and the inputs are those of one step."""
    model, params, batch = eight
    client = clients.fedavg(model.loss, optimizer=optax.sgd(0.003), num_epochs=3)
    found = jax.jit(exact_batch(Problem(client, model, 8)))(jax.random.key(1), observe(client, params, batch))
    errors, labels = nearest(found, batch)
    assert errors.max() < 1e-3
    assert labels.tolist() == batch.labels.tolist()
    assert bool(found.info["certified"])


def planted(num_units=120, batch_size=4, dead=6):
    """Factors of a planted sparse matrix: half of its entries are zero, some units are dead, and `Q` is known."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(num_units, batch_size)) * (rng.random((num_units, batch_size)) < 0.5)
    outputs[:dead] = 0
    left, sizes, right = np.linalg.svd(outputs @ rng.normal(size=(batch_size, 30)), full_matrices=False)
    truth = np.linalg.lstsq(left[:, :batch_size], outputs, rcond=None)[0].T
    factors = sparse.Factors(
        left[:, :batch_size], sizes[:batch_size, None] * right[:batch_size], sizes[: batch_size + 1]
    )
    return (
        jax.tree.map(jnp.asarray, factors),
        outputs,
        jnp.asarray(truth / np.linalg.norm(truth, axis=1, keepdims=True)),
    )


@pytest.mark.slow
def test_sparse_directions_are_found_from_nearby_and_ranked_by_their_zeros():
    with jax.enable_x64(True):
        factors, outputs, truth = planted()
        mixed = sparse.mixture(factors, inactive=jnp.float64(0.2))
        living = np.any(outputs != 0, axis=1)
        np.testing.assert_array_equal(mixed.alive, living)
        zeros = sparse.num_zeros(mixed, truth)
        assert zeros.tolist() == (outputs[living] == 0).sum(axis=0).tolist()
        near = truth + 0.1 * jax.random.normal(jax.random.key(0), truth.shape)
        walked = sparse.sparsest_near(mixed, near, wanted=jnp.ones(4, bool), num_steps=40)
        np.testing.assert_allclose(jnp.abs(jnp.sum(walked * truth, axis=1)), 1, atol=1e-12)
        mixture_of_two = (truth[0] + truth[1]) / jnp.linalg.norm(truth[0] + truth[1])
        basis = sparse.sparsest_basis(mixed, jnp.concatenate([mixture_of_two[None], truth, truth[::-1]]))
        assert basis.found.all()
        order = np.argsort(-np.asarray(zeros), kind="stable")
        np.testing.assert_allclose(basis.directions, truth[order])
        few = sparse.sparsest_basis(mixed, jnp.stack([truth[2], truth[2]]))
        assert few.found.tolist() == [True, False, False, False]
        np.testing.assert_allclose(sparse.outside(few) @ truth[2], 0, atol=1e-12)


def test_null_vectors_vanish_where_they_must():
    with jax.enable_x64(True):
        factors, outputs, truth = planted()
        others_on = (outputs != 0).sum(axis=1) == 3
        rows = jnp.asarray([np.flatnonzero((outputs[:, b] == 0) & others_on)[:3] for b in range(4)])
        found = sparse.null_vectors(factors.left, rows, jax.random.normal(jax.random.key(0), (4, 4)))
        np.testing.assert_allclose(jnp.abs(jnp.sum(found * truth, axis=1)), 1, atol=1e-9)
        dead = sparse.null_vectors(factors.left, jnp.zeros((1, 3), int), jnp.ones((1, 4)))
        assert np.all(np.isfinite(dead))


def test_the_first_doubt_counts():
    true, false = jnp.array(True), jnp.array(False)
    assert int(first_doubt({Status.ZERO: false, Status.LOW_RANK: true, Status.INCOMPLETE: true})) == 3
    assert int(first_doubt({Status.ZERO: false})) == Status.CERTIFIED


def test_float64_inside_of_float32_and_under_vmap():
    """1 + 1e-12 - 1 is 0 in float32."""
    function = in_float64(lambda x, i: ((x + 1e-12) - x, i + 1))
    difference, integer = jax.jit(jax.vmap(function))(jnp.ones(3), jnp.arange(3))
    np.testing.assert_allclose(difference, 1e-12, rtol=1e-3)
    assert (difference.dtype, integer.dtype) == (jnp.float32, jnp.int32)


@pytest.mark.slow
def test_directions_settle_on_the_zeros_of_rough_outputs_under_noise():
    """From outputs of which one sign in ten is wrong, and noise of a hundredth of the entries."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        hidden = rng.normal(size=(200, 6))
        gradient = np.maximum(hidden, 0) @ rng.normal(size=(6, 40))
        noisy = gradient + 0.01 * gradient.std() * rng.normal(size=gradient.shape)
        factors = sparse.factorize(jnp.asarray(noisy), jnp.asarray(rng.normal(size=(40, 16))), rank=6)
        assert float(factors.noise) == pytest.approx(0.01 * gradient.std(), rel=0.1)
        assert int(sparse.rank_above_noise(factors, 40, resolution=1e-7)) == 6
        mixed = sparse.noisy_mixture(factors, inactive=jnp.float64(0.2), resolution=1e-7)
        assert not mixed.alive[np.all(hidden < 0, axis=1)].any()
        truth = np.linalg.lstsq(np.asarray(factors.left), np.maximum(hidden, 0), rcond=None)[0].T
        truth = truth / np.linalg.norm(truth, axis=1, keepdims=True)
        rough = jnp.asarray(hidden.T + 0.3 * rng.normal(size=hidden.T.shape))
        guesses = jnp.asarray(truth + rng.normal(size=truth.shape))
        wanted = jnp.arange(6) != 2
        found = jax.jit(lambda *given: sparse.settled(mixed, *given, wanted=wanted, num_steps=8))(guesses, rough)
        np.testing.assert_allclose(np.abs(np.sum(found * truth, axis=1)), [1, 1, 0, 1, 1, 1], atol=1e-3)
        assert np.all(sparse.num_zeros(mixed, found)[wanted] > 60)


def test_a_unit_at_its_threshold_does_not_cost_the_certificate():
    """A client whose update jumps at 0.5: rounding decides on which side its input is."""

    def client(params, batch):
        return params + jnp.where(batch.inputs > 0.5, 1.01, 1.0)

    params, doubt = jnp.zeros(()), jnp.int32(Status.CERTIFIED)
    nudges = jnp.array([[-1e-6], [1e-6]])

    def status(simulated, **options):
        batch = Batch(jnp.array([simulated]), jnp.zeros(1, int))
        return int(
            options.pop("check")(
                client, params, jnp.array([1.01]), batch, tolerance=1e-4, doubt=doubt, **options
            ).status
        )

    assert status(0.5, check=certify) == Status.DIFFERENT
    assert status(0.5, check=certify_within, nudges=nudges) == Status.CERTIFIED
    assert status(0.4, check=certify_within, nudges=nudges) == Status.DIFFERENT


def test_independent_components_end_once_they_stay():
    """With a tolerance that every step meets, one step is taken; without, all are."""
    rng = np.random.default_rng(0)
    samples = jnp.asarray(rng.laplace(size=(3, 500)) - 0.0, jnp.float32)
    start = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)
    one, early, all_of = (
        independent_components(start, samples, num_components=3, num_steps=steps, tolerance=tolerance)
        for steps, tolerance in ((1, 0.0), (50, 2.0), (50, 0.0))
    )
    np.testing.assert_allclose(early, one)
    assert np.abs(np.asarray(all_of) - np.asarray(one)).max() > 1e-2
