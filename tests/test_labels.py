"""Label rules: exact where their papers say so, by hand where they are not, and one contract for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, labels, models
from jaxinvert.labels.rounding import project_counts, proven_counts, round_counts_above
from jaxinvert.trees import path_name
from jaxinvert.types import Batch, LocalTraining, Observation

NUM_CLASSES, IMAGE = 5, (6, 6, 1)
FEDSGD = LocalTraining(1.0, 1)
RULES = sorted(name for name, rule in labels.REGISTRY.items() if "classes" in rule.tasks)


def apply(params, inputs):
    """Non-negative features, then the head: what the sign rules assume."""
    first, head = params["params"]["first"], params["params"]["head"]
    hidden = jax.nn.relu(inputs.reshape(inputs.shape[0], -1) @ first["kernel"] + first["bias"][None])
    return hidden @ head["kernel"] + head["bias"][None]


def make_params(seed=0, num_classes=NUM_CLASSES, head_scale=1.0, width=24):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "params": {
            "first": {"kernel": jax.random.normal(keys[0], (36, width)) / 6, "bias": jnp.full(width, 0.3)},
            "head": {
                "kernel": head_scale * jax.random.normal(keys[1], (width, num_classes)) / 5,
                "bias": 0.5 * jax.random.normal(keys[2], (num_classes,)),
            },
        }
    }


LOSS = models.cross_entropy(apply)
PARAMS = make_params()
SURROGATE = jax.random.uniform(jax.random.key(5), (40, *IMAGE))
gradient = jax.jit(clients.fedsgd(LOSS))


def images(num, seed=1):
    return jax.random.uniform(jax.random.key(seed), (num, *IMAGE))


def observe(chosen, params=PARAMS, seed=1):
    batch = Batch(images(len(chosen), seed), jnp.asarray(chosen))
    return Observation(params, gradient(params, batch), None, len(chosen), FEDSGD, surrogate=SURROGATE)


def counts_of(chosen, num_classes=NUM_CLASSES):
    return np.bincount(np.asarray(chosen), minlength=num_classes)


def build(name):
    setting = labels.LabelProblem(apply, "params/head", IMAGE, jax.random.key(3))
    return jax.jit(labels.REGISTRY[name].factory(setting), static_argnums=())


@pytest.fixture(scope="module")
def rules():
    return {name: build(name) for name in RULES}


@pytest.mark.parametrize(
    ("estimate", "num_examples", "expected"),
    [
        ([1.2, 0.7, 0.1], 2, [1, 1, 0]),
        ([2.4, -0.4, 1.0], 3, [2, 0, 1]),
        ([0.0, 0.0, 0.0], 2, [1, 1, 0]),
        ([jnp.nan, 1.0, 1.0], 2, [0, 1, 1]),
        ([1.9999998, 0.0000002, 1.0], 3, [2, 0, 1]),
        ([-3.0, -1.0, -2.0], 1, [0, 1, 0]),
        ([5.0, 5.0], 0, [0, 0]),
        ([1e6, 0.0, 0.0], 7, [7, 0, 0]),
    ],
)
def test_rounding_by_hand(estimate, num_examples, expected):
    assert labels.round_counts(jnp.array(estimate), num_examples).tolist() == expected


def test_rounding_always_sums_to_the_number_of_examples_and_stays_near():
    rng = np.random.default_rng(0)
    rounding = jax.jit(labels.round_counts)
    for _ in range(200):
        num_examples = int(rng.integers(0, 300))
        true = rng.multinomial(num_examples, rng.dirichlet(np.full(7, 0.3)))
        counts = np.asarray(rounding(jnp.asarray(true + rng.uniform(-0.2, 0.2, 7), jnp.float32), num_examples))
        assert counts.sum() == num_examples
        assert counts.min() >= 0
        assert np.abs(counts - true).max() <= 1
        wild = np.asarray(rounding(jnp.asarray(rng.normal(0, 50, 7), jnp.float32), num_examples))
        assert wild.sum() == num_examples
        assert wild.min() >= 0


def test_a_small_error_is_rounded_away():
    """Errors below 1/4 that sum to zero leave every count nearest to the truth."""
    true = jnp.array([3.0, 0.0, 1.0, 4.0])
    error = jnp.array([0.2, -0.24, 0.1, -0.06])
    assert labels.round_counts(true + error, 8).tolist() == [3, 0, 1, 4]


def test_projection_is_the_closest_point():
    """n - projection is constant on the support and larger off it (the optimality condition)."""
    point = jnp.array([2.0, -1.0, 0.5, 0.1])
    projected = project_counts(point, 2)
    np.testing.assert_allclose(projected, [1.75, 0.0, 0.25, 0.0], atol=1e-6)


def test_labels_from_counts_are_sorted():
    chosen = labels.labels_from_counts(jnp.array([2, 0, 1, 3]), 6)
    assert chosen.tolist() == [0, 0, 2, 3, 3, 3]
    assert chosen.dtype == jnp.int32


@pytest.mark.parametrize("label", range(NUM_CLASSES))
@pytest.mark.parametrize("name", RULES)
def test_one_example_is_exact_for_every_class(rules, name, label):
    for seed in range(3):
        assert rules[name](observe([label], make_params(seed), seed)).tolist() == counts_of([label]).tolist()


@pytest.mark.parametrize("name", ["idlg", "bias-sign", "llg", "ilrg", "zero-shot", "moments"])
def test_a_batch_of_one_class_is_exact(rules, name):
    assert rules[name](observe([2] * 6)).tolist() == [0, 0, 6, 0, 0]


@pytest.mark.parametrize("name", ["ilrg", "zero-shot", "zero-shot-surrogate", "moments", "moments-surrogate"])
def test_repeated_labels_are_exact_where_the_softmax_does_not_depend_on_the_input(rules, name):
    """With a zero kernel p = softmax(b) for every input: B db = B p - counts, whatever the images."""
    for chosen in ([0, 0, 0, 3], [1, 2, 2, 4, 4, 4, 4], [0, 1, 2, 3, 4] * 3):
        seen = observe(chosen, make_params(head_scale=0.0))
        assert rules[name](seen).tolist() == counts_of(chosen).tolist()


def test_counts_without_a_bias_are_exact_where_features_are_constant():
    """O_hat = sum of features is 24 for every input, so that -B (column sums) / O_hat = counts - B p."""
    params = make_params()
    params["params"]["first"] = {"kernel": jnp.zeros((36, 24)), "bias": jnp.ones(24)}
    rule = labels.zero_shot(apply, dummies=labels.surrogate_images(), use_bias=False)
    for chosen in ([0, 0, 0, 3], [1, 2, 2, 4, 4, 4, 4]):
        assert rule(observe(chosen, params)).tolist() == counts_of(chosen).tolist()


def test_llg_by_hand():
    """Column sums (-3, 1, -1, 3), B = 4, K = 4: impact = -4/4 (1 + 1/4) = -1.25.

    Classes 0 and 2 go out once, which leaves (-1.75, 1, .25, 3); then 0, which leaves -.5; then 0 again.
    """
    seen = Observation(None, {"head": {"kernel": jnp.array([[-3.0, 1.0, -1.0, 3.0]])}}, num_examples=4)
    assert labels.llg(head="head")(seen).tolist() == [3, 0, 1, 0]


def test_yin_and_bias_sign_by_hand():
    kernel = jnp.array([[0.1, -0.5, 0.3, 0.0], [-0.2, 0.4, -0.1, 0.9]])
    seen = Observation(None, {"head": {"kernel": kernel, "bias": jnp.array([-0.6, -0.2, 0.5, 0.3])}}, num_examples=2)
    assert labels.yin(head="head")(seen).tolist() == [1, 1, 0, 0]
    assert labels.yin(head="head")(seen._replace(num_examples=6)).tolist() == [2, 2, 1, 1]
    # Classes 0 and 1 once, the other four in proportion 3 : 1.
    assert labels.bias_sign(head="head")(seen._replace(num_examples=6)).tolist() == [4, 2, 0, 0]


@pytest.mark.slow
def test_rlg_finds_the_set_below_the_rank_and_nothing_above():
    """D = P - Y [B, K] of rank B < K - 1 with repeated labels; from B >= K - 1 on every class is separable."""
    num_classes, chosen = 20, np.array([3, 3, 7, 11, 18])
    hits = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        softmax = rng.dirichlet(np.full(num_classes, 5.0), chosen.size)
        gap = softmax - np.eye(num_classes)[chosen]
        features = rng.uniform(0, 1, (30, chosen.size))
        update = {"head": {"kernel": jnp.asarray(features @ gap / chosen.size, jnp.float32)}}
        found = np.asarray(labels.rlg(head="head")(Observation(None, update, num_examples=chosen.size)))
        assert found.sum() == chosen.size
        hits.append(set(np.flatnonzero(found)) == set(chosen))
    assert all(hits)


def test_ilrg_follows_its_equations():
    """Confident softmax outputs (a scaled kernel): one embedding per class explains the bias gradient."""
    params = make_params(1, head_scale=0.3)
    for chosen in ([0, 0, 1, 1, 1, 4], [2, 2, 2, 2, 3]):
        np.testing.assert_array_equal(labels.ilrg()(observe(chosen, params)), counts_of(chosen))


def test_moments_correct_the_luck_of_the_batch():
    """Dummies of the clients' own law: the correction must leave fewer errors than the zero-shot counts."""
    params = make_params(4, head_scale=3.0)
    dummies = labels.surrogate_images()
    public = images(600, seed=11)
    rng = np.random.default_rng(0)
    chosen = jnp.asarray(rng.integers(0, NUM_CLASSES, (30, 64)))
    pixels = jax.random.uniform(jax.random.key(12), (30, 64, *IMAGE))
    updates = jax.vmap(lambda x, y: gradient(params, Batch(x, y)))(pixels, chosen)
    true = np.stack([counts_of(row) for row in chosen])

    def errors(rule):
        def one(update):
            return rule(Observation(params, update, None, 64, FEDSGD, surrogate=public))

        return np.abs(np.asarray(jax.jit(jax.vmap(one))(updates)) - true).sum()

    plain, corrected = (
        errors(labels.zero_shot(apply, dummies=dummies)),
        errors(labels.moments(apply, dummies=dummies)),
    )
    assert plain > 20
    assert corrected < 0.75 * plain


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_batch_does_not_matter(rules, name):
    chosen, pixels = jnp.array([0, 0, 3, 4, 2, 2]), images(6)
    one, other = (
        Observation(PARAMS, gradient(PARAMS, Batch(pixels[o], chosen[o])), None, 6, FEDSGD, surrogate=SURROGATE)
        for o in (jnp.arange(6), jnp.array([5, 2, 0, 4, 1, 3]))
    )
    np.testing.assert_array_equal(rules[name](one), rules[name](other))


def local_sgd(params, batch, learning_rate, num_steps):
    local = params
    for _ in range(num_steps):
        step = gradient(local, batch)
        local = jax.tree.map(lambda p, g: p - learning_rate * g, local, step)
    return jax.tree.map(jnp.subtract, params, local)


@pytest.mark.parametrize("name", RULES)
def test_one_local_step_says_the_same_as_the_gradient(rules, name):
    chosen = [0, 0, 3, 4, 2, 2, 2]
    batch = Batch(images(7), jnp.asarray(chosen))
    update = local_sgd(PARAMS, batch, 0.25, 1)
    seen = observe(chosen)
    local = seen._replace(update=update, local_training=LocalTraining(0.25, 1))
    np.testing.assert_array_equal(rules[name](local), rules[name](seen))


@pytest.mark.parametrize("name", ["zero-shot-surrogate", "moments-surrogate", "ilrg"])
def test_local_steps_are_divided_out_and_followed(name):
    """Ten steps move the softmax towards the batch's labels: counts stay exact only along the path."""
    params = make_params(head_scale=0.3)
    chosen = [0, 0, 0, 0, 0, 0, 3, 4]
    update = local_sgd(params, Batch(images(8), jnp.asarray(chosen)), 0.05, 10)
    seen = Observation(params, update, None, 8, LocalTraining(0.05, 10), surrogate=SURROGATE)
    assert build(name)(seen).tolist() == counts_of(chosen).tolist()
    if name == "zero-shot-surrogate":  # forgetting the division is wrong
        assert build(name)(seen._replace(local_training=FEDSGD)).tolist() != counts_of(chosen).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_contract(rules, name):
    """Type, sum and sign; eager = jit; vmap = loop; a traced number of examples; only the declared fields."""
    rule = labels.REGISTRY[name].factory(labels.LabelProblem(apply, "params/head", IMAGE, jax.random.key(3)))
    batches = [[0, 0, 3, 4, 2, 2], [1, 1, 1, 1, 1, 0], [4, 3, 2, 1, 0, 0]]
    observations = [observe(chosen, seed=seed) for seed, chosen in enumerate(batches)]
    loop = [np.asarray(rules[name](seen)) for seen in observations]
    for counts in loop:
        assert counts.shape == (NUM_CLASSES,)
        assert counts.dtype == np.int32
        assert counts.sum() == 6
        assert counts.min() >= 0
    np.testing.assert_array_equal(rule(observations[0]), loop[0])

    updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(seen.update for seen in observations))
    mapped = jax.jit(jax.vmap(lambda update: rule(observations[0]._replace(update=update))))(updates)
    np.testing.assert_array_equal(mapped, loop)

    needs = labels.REGISTRY[name].needs
    withheld = {field: None for field in Observation._fields if field not in needs}
    np.testing.assert_array_equal(rule(observations[0]._replace(**withheld)), loop[0])


@pytest.mark.parametrize(
    ("name", "field"), [(name, f) for name in RULES for f in labels.REGISTRY[name].needs if f != "update"]
)
def test_a_withheld_field_is_named(name, field):
    rule = labels.REGISTRY[name].factory(labels.LabelProblem(apply, "params/head", IMAGE, jax.random.key(3)))
    with pytest.raises(ValueError, match=rf"observation\.{field}"):
        rule(observe([0, 1])._replace(**{field: None}))


@pytest.mark.parametrize("name", RULES)
def test_a_missing_head_is_named(name):
    rule = labels.REGISTRY[name].factory(labels.LabelProblem(apply, "params/classifier", IMAGE, jax.random.key(3)))
    with pytest.raises(ValueError, match=r"params/classifier.*'params/first', 'params/head'"):
        rule(observe([0, 1]))


@pytest.mark.parametrize("name", ["bias-sign", "ilrg", "zero-shot", "moments"])
def test_a_missing_bias_is_named(name):
    def without_bias(tree):
        return {"params": {"first": tree["params"]["first"], "head": {"kernel": tree["params"]["head"]["kernel"]}}}

    def biasless(params, inputs):
        head = {**params["params"]["head"], "bias": jnp.zeros(NUM_CLASSES)}
        return apply({"params": {**params["params"], "head": head}}, inputs)

    seen = observe([0, 1])
    seen = seen._replace(params=without_bias(seen.params), update=without_bias(seen.update))
    rule = labels.REGISTRY[name].factory(labels.LabelProblem(biasless, "params/head", IMAGE, jax.random.key(3)))
    with pytest.raises(ValueError, match="needs a bias at params/head/bias"):
        rule(seen)


def test_the_head_is_found_by_its_path_not_by_its_position():
    """A head whose name sorts first, among larger layers."""
    seen = observe([3])
    renamed = {
        "params": {"a_head": seen.update["params"]["head"], "zz": seen.update["params"]["first"]},
    }
    assert path_name(jax.tree_util.tree_leaves_with_path(renamed)[0][0]) == "params/a_head/bias"
    assert labels.idlg(head="params/a_head")(seen._replace(update=renamed)).tolist() == counts_of([3]).tolist()


@pytest.mark.parametrize("make", [labels.white_noise, labels.natural_noise])
def test_dummies_are_valid_images_and_differ_by_key(make):
    first, again, other = (make(jax.random.key(k), input_shape=(8, 6, 3))(None) for k in (0, 0, 1))
    assert first.ndim == 5
    assert first.shape[2:] == (8, 6, 3)
    assert 0 <= first.min() < first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert jnp.mean(jnp.abs(first - other)) > 0.05


def test_surrogate_dummies_have_the_mean_and_covariance_of_the_images():
    """Images (1/2 + t/20) in a fixed pattern, t = +-1 at random: mean 1/2, deviations along one direction only."""
    signs = jnp.where(jax.random.bernoulli(jax.random.key(0), shape=(200, 1, 1, 1)), 1.0, -1.0)
    pattern = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
    seen = Observation(None, None, surrogate=0.5 + signs * pattern / 20)
    drawn = labels.surrogate_gaussian(jax.random.key(1), num_inputs=4000)(seen)[0]
    deviation = drawn - jnp.mean(seen.surrogate, axis=0, keepdims=True)
    along = jnp.sum(deviation * pattern, axis=(1, 2, 3)) / jnp.sum(pattern**2)
    np.testing.assert_allclose(jnp.std(along), 1 / 20, rtol=0.05)
    np.testing.assert_allclose(deviation, along[:, None, None, None] * pattern, atol=1e-4)
    np.testing.assert_array_equal(labels.surrogate_images(max_inputs=7)(seen), seen.surrogate[None, :7])


def test_proven_counts_by_hand():
    """Two examples: db = mean(p - y). One class holds what its gradient cannot explain otherwise."""
    found = proven_counts(jnp.array([0.3, -0.0001, -1.0001, -1.15]) / 1.0, 2)
    assert found.tolist() == [0, 1, 2, 3]
    assert proven_counts(jnp.array([0.0, 0.0]), 5).tolist() == [0, 0]


def test_bounds_that_fit_are_kept_and_others_are_not():
    estimate = jnp.array([3.0, 0.0, 0.0])
    assert round_counts_above(estimate, jnp.array([0, 1, 0]), 3).tolist() == [2, 1, 0]
    assert round_counts_above(estimate, jnp.array([2, 2, 0]), 3).tolist() == [3, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_no_batch_has_fewer_than_what_is_proven(seed):
    """Confident outputs, as of a trained network."""
    params = make_params(seed, head_scale=20.0)
    keys = jax.random.split(jax.random.key(seed))
    chosen = jax.random.randint(keys[0], (6,), 0, NUM_CLASSES)
    update = gradient(params, Batch(jax.random.uniform(keys[1], (6, *IMAGE)), chosen))
    proven = proven_counts(update["params"]["head"]["bias"], 6)
    assert bool(jnp.all(proven <= jnp.bincount(chosen, length=NUM_CLASSES)))
    assert float(proven.sum()) > 0


@pytest.mark.parametrize(
    ("name", "bias"), [("idlg", True), ("idlg", False), ("llg", True), ("llg", False), ("llg-star", True)]
)
def test_features_that_cancel_in_their_sum_do_not_mislead(name, bias):
    """LayerNorm's features sum to zero, up to rounding: column sums tell nothing there."""

    def normalized(params, inputs):
        features = inputs.reshape(len(inputs), -1) @ params["first"]
        features -= jnp.mean(features, axis=1, keepdims=True)
        features /= jnp.std(features, axis=1, keepdims=True)
        logits = features @ params["head"]["kernel"]
        return logits + params["head"]["bias"][None] if bias else logits

    keys = jax.random.split(jax.random.key(0), 3)
    head = {"kernel": jax.random.normal(keys[1], (24, 5)) / 24, **({"bias": jnp.zeros(5)} if bias else {})}
    params = {"batch_stats": {}, "first": jax.random.normal(keys[0], (36, 24)), "head": head}
    rule = labels.REGISTRY[name].factory(labels.LabelProblem(normalized, "head", (6, 6, 1), keys[2]))
    for label in range(5):
        batch = Batch(jax.random.uniform(jax.random.key(label), (1, 6, 6, 1)), jnp.array([label]))
        update = jax.grad(models.cross_entropy(normalized))(params, batch)
        seen = Observation(params, update, num_examples=1, local_training=LocalTraining(1.0, 1))
        assert rule(seen).tolist() == counts_of([label]).tolist()
