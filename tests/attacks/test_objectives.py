"""Objectives against values by hand, their limits, and their gradients where they are delicate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinvert.attacks import likelihoods, objectives

G = {"a": jnp.array([3.0, 0.0]), "b": {"kernel": jnp.array([[0.0, 4.0]])}}
G_STAR = {"a": jnp.array([0.0, 0.0]), "b": {"kernel": jnp.array([[0.0, 2.0]])}}
ZERO = jax.tree.map(jnp.zeros_like, G)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (objectives.squared_l2, 3.0**2 + 2.0**2),
        (objectives.l1, 3.0 + 2.0),
        (objectives.cosine, 1 - 4 / 5),  # <G, G*> = 8, |G| = 5, |G*| = 2
        (objectives.angular, np.arccos(4 / 5) / np.pi),
        (objectives.layerwise_cosine, 0.0),  # "a" was not sent, "b" is parallel
    ],
)
def test_value_by_hand(objective, expected):
    assert float(objective(G, G_STAR)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", objectives.REGISTRY)
def test_is_zero_at_the_observed_update_with_a_finite_gradient(name):
    value, gradient = jax.value_and_grad(objectives.REGISTRY[name])(G, G)
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", objectives.REGISTRY)
@pytest.mark.parametrize(("simulated", "observed"), [(ZERO, G), (G, ZERO), (ZERO, ZERO)])
def test_zero_updates_give_finite_values_and_gradients(name, simulated, observed):
    value, gradient = jax.value_and_grad(objectives.REGISTRY[name])(simulated, observed)
    assert bool(jnp.isfinite(value))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", objectives.REGISTRY)
@pytest.mark.parametrize("bad", [np.nan, 1e30])
def test_nan_or_overflow_in_either_update_never_scores(name, bad):
    broken = G | {"a": jnp.array([bad, 1.0])}
    for pair in ((broken, G), (G, broken), (broken, broken | {"a": jnp.array([1.0, bad])})):
        value = float(objectives.REGISTRY[name](*pair))
        assert not np.isfinite(value) or value > 1e20


def test_the_cosine_of_kernels_does_not_see_biases_unless_there_is_nothing_else():
    simulated, observed = (
        {"bias": jnp.array([5.0, -1.0]), "kernel": jnp.array([[3.0, 4.0]])},
        {
            "bias": jnp.array([-7.0, 2.0]),
            "kernel": jnp.array([[4.0, 3.0]]),
        },
    )
    assert float(objectives.kernel_cosine(simulated, observed)) == pytest.approx(1 - 24 / 25)
    biases = {"bias": simulated["bias"]}, {"bias": observed["bias"]}
    frozen = [{"bias": leaf["bias"], "kernel": jnp.zeros((1, 2))} for leaf in (simulated, observed)]
    assert float(objectives.kernel_cosine(*frozen)) == pytest.approx(float(objectives.cosine(*biases)))
    assert float(objectives.kernel_cosine(*biases)) == pytest.approx(float(objectives.cosine(*biases)))


def test_the_balanced_cosine_gives_biases_a_fixed_share_whatever_their_norm():
    """By hand: kernels agree; biases have 0.3 of the kernels' norm in the observed update, and are orthogonal."""
    observed = {"bias": jnp.array([1.0, 0.0]), "kernel": jnp.array([[3.0, 4.0]])}
    simulated = {"bias": jnp.array([0.0, 1.0]), "kernel": jnp.array([[3.0, 4.0]])}
    for size in (0.1, 1.0, 100.0):
        pair = [{**update, "bias": size * update["bias"]} for update in (simulated, observed)]
        assert float(objectives.balanced_cosine(*pair)) == pytest.approx(0.09 / 1.09, rel=1e-4)
    alone = [{"bias": update["bias"]} for update in (simulated, observed)]
    unbiased = [{"kernel": update["kernel"]} for update in (simulated, observed)]
    assert float(objectives.balanced_cosine(*alone)) == pytest.approx(1.0)
    assert float(objectives.balanced_cosine(*unbiased)) == pytest.approx(0.0, abs=1e-6)


def test_the_share_of_biases_is_divided_among_those_that_were_sent():
    sent = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    unsent = {"mean": jnp.zeros(5), "var": jnp.zeros(5), "frozen": jnp.zeros(2)}
    other = {"kernel": jnp.ones((3, 2)), "bias": jnp.array([1.0, -1.0])}
    alone = objectives.balanced_cosine(other, sent)
    assert float(objectives.balanced_cosine(other | unsent, sent | unsent)) == pytest.approx(float(alone), rel=1e-6)


def test_the_balanced_cosine_does_not_enlarge_rounding_errors():
    """A bias in front of BatchNorm in train mode: its gradient is zero but for rounding, and agrees with nothing."""
    observed = {"bias": jnp.array([1e-7, 0.0]), "kernel": jnp.array([[0.6, 0.8]])}
    simulated = {"bias": jnp.array([0.0, 1e-7]), "kernel": jnp.array([[0.6, 0.8]])}
    assert float(objectives.balanced_cosine(simulated, observed)) < 1e-9


@pytest.mark.parametrize("objective", [objectives.cosine, objectives.angular])
def test_scale_free_objectives_ignore_a_positive_factor_and_see_the_sign(objective):
    opposite = jax.tree.map(lambda leaf: -2 * leaf, G)
    scaled = jax.tree.map(lambda leaf: 7 * leaf, G)
    assert float(objective(scaled, G)) == pytest.approx(0.0, abs=1e-6)
    assert float(objective(opposite, G)) == pytest.approx(float(objective(opposite, G).round()), abs=1e-6)
    assert float(objective(opposite, G)) > 0.99


def test_cosine_keeps_its_precision_near_zero():
    # Two unit vectors at angle t have distance 1 - cos t = t^2 / 2; float32's 1 - x would round 5e-9 to 0.
    angle = 1e-4
    distance = objectives.cosine([jnp.array([1.0, angle])], [jnp.array([1.0, 0.0])])
    assert float(distance) == pytest.approx(angle**2 / 2, rel=1e-2)


def test_layer_subset_reads_only_the_named_tensors():
    only_kernel = objectives.layer_subset(objectives.squared_l2, lambda path: path == "b/kernel")
    assert float(only_kernel(G, G_STAR)) == 4.0
    nothing = objectives.layer_subset(objectives.squared_l2, lambda path: False)
    with pytest.raises(ValueError, match=r"keeps no tensor.*b/kernel"):
        nothing(G, G_STAR)


def test_masked_reads_only_the_set_entries():
    mask = jax.tree.map(jnp.zeros_like, G) | {"a": jnp.array([1.0, 0.0])}
    assert float(objectives.masked(objectives.squared_l2, mask)(G, G_STAR)) == 9.0


def test_layer_weights_multiply_both_updates():
    weighted = objectives.layer_weighted(objectives.squared_l2, lambda path: 3.0 if path == "b/kernel" else 0.0)
    only_kernel = objectives.layer_subset(objectives.squared_l2, lambda path: path == "b/kernel")
    assert float(weighted(G, G_STAR)) == pytest.approx(9 * float(only_kernel(G, G_STAR)))


def test_largest_tensors_are_chosen_by_the_observed_update():
    observed = {"small": jnp.array([1.0]), "large": jnp.array([3.0]), "middle": jnp.array([2.0])}
    simulated = {"small": jnp.array([100.0]), "large": jnp.array([4.0]), "middle": jnp.array([5.0])}
    for number, expected in ((1, 1.0), (2, 1.0 + 9.0), (3, 1.0 + 9.0 + 99.0**2), (9, 1.0 + 9.0 + 99.0**2)):
        objective = objectives.largest_tensors(objectives.squared_l2, number)
        assert float(jax.jit(objective)(simulated, observed)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 1 tensor, got 0"):
        objectives.largest_tensors(objectives.squared_l2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("distance", [1e-4, 5e-3, 2e-2, 0.5, 1.5])
def test_the_derivative_of_the_cosine_by_hand(distance):
    """d (1 - c) / da = (c a / |a| - b / |b|) / |a|, in both updates, near a match and far from it; and once more."""
    with jax.enable_x64(True):
        first = np.array([3.0, 0.0, 4.0])
        side = np.array([4.0, 0.0, -3.0])
        angle = np.arccos(1 - distance)
        second = 2.0 * (np.cos(angle) * first + np.sin(angle) * side)
        a, b = ({"x": jnp.asarray(v[:1]), "y": jnp.asarray(v[1:])} for v in (first, second))
        assert float(objectives.cosine(a, b)) == pytest.approx(distance, rel=1e-9)
        slopes = jax.grad(objectives.cosine, argnums=(0, 1))(a, b)
        for (this, other), slope in zip(((first, second), (second, first)), slopes):
            this_norm, other_norm = np.linalg.norm(this), np.linalg.norm(other)
            expected = ((1 - distance) * this / this_norm - other / other_norm) / this_norm
            np.testing.assert_allclose(np.concatenate([slope["x"], slope["y"]]), expected, rtol=1e-7, atol=1e-12)
        jax.test_util.check_grads(lambda g: objectives.cosine(g, b), (a,), order=2, modes=("fwd", "rev"), eps=1e-4)


@pytest.mark.parametrize("distance", [1e-4, 0.5])
def test_float32_keeps_the_derivative_of_the_cosine(distance):
    angle = np.arccos(1 - distance)
    a = jnp.array([3.0, 4.0])
    b = jnp.array([3 * np.cos(angle) + 4 * np.sin(angle), 4 * np.cos(angle) - 3 * np.sin(angle)], jnp.float32)
    expected = ((1 - distance) * np.asarray(a) / 5 - np.asarray(b) / 5) / 5
    np.testing.assert_allclose(jax.grad(objectives.cosine)(a, b), expected, rtol=1e-3)


TRUTH = {"a": jnp.array([3.0, -1.0, 0.5, 2.0]), "b": jnp.array([-4.0, 0.1])}


def test_under_top_k_only_the_transmitted_entries_agree_with_the_truth():
    """Sent are 3 and -4, 25 of a squared norm of 30.26: the naive cosine is 1 - 5 / sqrt(30.26) at the truth."""
    sent = {"a": jnp.array([3.0, 0.0, 0.0, 0.0]), "b": jnp.array([-4.0, 0.0])}
    assert float(likelihoods.transmitted(objectives.cosine)(TRUTH, sent)) == pytest.approx(0, abs=1e-12)
    assert float(likelihoods.largest_sent(objectives.cosine)(TRUTH, sent)) == pytest.approx(0, abs=1e-12)
    assert float(objectives.cosine(TRUTH, sent)) == pytest.approx(1 - 5 / np.sqrt(30.26), rel=1e-5)


def test_what_was_not_sent_is_no_larger_than_what_was():
    """Sent are 3 and -4: of the whole update others are at most 3, of each tensor at most 3 and 4."""
    sent = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([-4.0, 0.0])}
    simulated = {"a": jnp.array([3.0, -5.0]), "b": jnp.array([-4.0, 3.5])}
    assert float(likelihoods.largest_sent(objectives.squared_l2)(simulated, sent)) == pytest.approx(2**2 + 0.5**2)
    of_tensors = likelihoods.largest_sent(objectives.squared_l2, of_tensors=True)
    assert float(of_tensors(simulated, sent)) == pytest.approx(2**2)
    nothing_sent = {"a": jnp.zeros(2), "b": sent["b"]}
    assert float(of_tensors(simulated, nothing_sent)) == 0  # of such a tensor nothing is known


def test_at_the_truth_twice_the_likelihood_is_chi_squared():
    """Noise of another scale for each tensor, and one tensor without any, which is left out."""
    scales = {4000: 0.2, 3000: 5.0, 10: 0.0}
    update = {str(size): jnp.zeros(size) for size in scales}
    keys = jax.random.split(jax.random.key(0), 2)
    noisy = {
        "4000": 0.2 * jax.random.normal(keys[0], (4000,)),
        "3000": 5.0 * jax.random.normal(keys[1], (3000,)),
        "10": jnp.ones(10),
    }

    def p_value(factor):
        likelihood = likelihoods.gaussian_likelihood(lambda leaf: factor * scales[leaf.size])
        return stats.chi2.sf(2 * float(likelihood(update, noisy)), 7000)

    assert 1e-3 < p_value(1.0) < 1 - 1e-3
    assert p_value(0.95) < 1e-3
    assert p_value(1.05) > 1 - 1e-3


def test_laplace_likelihood_and_units_of_nothing_found():
    objective = likelihoods.laplace_likelihood(lambda leaf: 0.5)
    observed = {"a": TRUTH["a"] + jnp.array([1.0, -1.0, 0.0, 2.0]), "b": TRUTH["b"]}
    assert float(objective(TRUTH, observed)) == pytest.approx(8.0)
    nothing = jax.tree.map(jnp.zeros_like, TRUTH)
    assert float(likelihoods.relative(objective)(nothing, observed)) == pytest.approx(1.0)
    assert float(likelihoods.relative(objectives.squared_l2)(TRUTH, nothing)) == pytest.approx(30.26)  # no units


def test_clipped_entries_are_lower_bounds():
    """What was clipped to 1 agrees with 3 but not with 0.5; what was not clipped must be met, even beyond it."""
    distance = likelihoods.censored(objectives.squared_l2, 1.0)
    observed = {"w": jnp.array([1.0, -1.0, 0.25])}
    for simulated, expected in (([3.0, -7.0, 0.25], 0.0), ([0.5, 0.0, 0.25], 1.25), ([1.0, -1.0, 2.25], 4.0)):
        assert float(distance({"w": jnp.array(simulated)}, observed)) == pytest.approx(expected)


def test_rounding_likelihood_is_the_probability_of_the_level():
    """0.75 is rounded to 1 with probability 3/4 and to 0 with 1/4; 2.5 cannot be: tangent at 0.9, slope 10."""
    likelihood = likelihoods.rounding_likelihood(lambda leaf: 2.0)
    for simulated, observed, expected in (
        (1.5, 2.0, -np.log(0.75)),
        (1.5, 0.0, -np.log(0.25)),
        (-1.5, -2.0, -np.log(0.75)),
        (5.0, 0.0, -np.log(0.1) + 10 * 1.6),
    ):
        found = likelihood({"w": jnp.array([simulated])}, {"w": jnp.array([observed])})
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_sign_margin_by_hand_and_blind_to_scale():
    """The mean size is 1: right by 2, wrong by 1, right by less than the margin, and zero: 0 + 1.5 + 0.4 + 0.9."""
    simulated = {"w": jnp.array([2.0, -1.0, 0.1, 0.9])}
    signs = {"w": jnp.array([1.0, 1.0, 1.0, 0.0])}
    found = float(objectives.sign_margin(simulated, signs, margin=0.5))
    assert found == pytest.approx((0 + 1.5 + 0.4 + 0.9) / 4, rel=1e-6)
    larger = {"w": 1e4 * simulated["w"]}
    assert float(objectives.sign_margin(larger, signs, margin=0.5)) == pytest.approx(found, rel=1e-5)


def test_of_unknown_scale_is_the_logarithm_and_has_no_slope_at_the_truth():
    """Two residuals of 1 and 2: log 5, whose gradient is that of the sum of squares over 5."""
    objective = likelihoods.of_unknown_scale(objectives.squared_l2)
    simulated, observed = jnp.array([1.0, 2.0]), jnp.zeros(2)
    value, slope = jax.value_and_grad(objective)(simulated, observed)
    assert float(value) == pytest.approx(np.log(5.0), rel=1e-6)
    np.testing.assert_allclose(slope, 2 * simulated / 5, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(objective)(observed, observed), 0)
