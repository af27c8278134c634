"""Defenses: noise with the right scale, independent between tensors and targets; what exactly is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinvert import clients, defenses, models, trees
from jaxinvert.attacks import objectives
from jaxinvert.models import features
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch

UPDATE = {"a": jnp.zeros((40, 50)), "b": jnp.zeros((40, 50))}


def test_identity_changes_nothing():
    assert defenses.identity(None, UPDATE) is UPDATE


def test_gaussian_noise_has_its_scale_and_a_test_would_notice_another():
    noise = np.asarray(defenses.gaussian_noise(0.3)(jax.random.key(0), UPDATE)["a"]).ravel()
    assert stats.kstest(noise / 0.3, "norm").pvalue > 1e-3

    def p_value(scale):  # the sum of squares over scale^2 is chi-squared
        statistic = np.sum((noise / scale) ** 2)
        return 2 * min(stats.chi2.cdf(statistic, noise.size), stats.chi2.sf(statistic, noise.size))

    assert p_value(0.3) > 1e-3
    assert p_value(0.33) < 1e-3
    assert p_value(0.27) < 1e-3


def test_noise_differs_between_tensors_keys_and_targets():
    noisy = defenses.gaussian_noise(1.0)
    first = noisy(jax.random.key(0), UPDATE)
    assert abs(np.corrcoef(first["a"].ravel(), first["b"].ravel())[0, 1]) < 0.1
    again = noisy(jax.random.key(1), UPDATE)
    assert abs(np.corrcoef(first["a"].ravel(), again["a"].ravel())[0, 1]) < 0.1
    targets = jax.vmap(noisy, in_axes=(0, None))(jax.random.split(jax.random.key(0), 2), UPDATE)
    assert abs(np.corrcoef(targets["a"][0].ravel(), targets["a"][1].ravel())[0, 1]) < 0.1


def test_noise_keeps_structure_and_dtype():
    update = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    assert defenses.gaussian_noise(0.1)(jax.random.key(0), update)["w"].dtype == jnp.bfloat16


def test_the_server_sees_the_defended_update(victim):
    def halve(key, update):
        return jax.tree.map(lambda leaf: leaf / 2, update)

    seen = observe(victim.client_update, victim.params, victim.batch, defense=halve)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / 2, rtol=1e-6), seen.update, victim.observation.update)


def test_a_random_defense_needs_a_key(victim):
    with pytest.raises(ValueError, match="a random defense needs a key"):
        observe(victim.client_update, victim.params, victim.batch, defense=defenses.gaussian_noise(1.0))


def test_percentile_noise_is_in_units_of_each_tensor():
    """|update| of 0 ... 100 has its 95th percentile at 95."""
    update = {"a": jnp.arange(101.0), "b": 10 * jnp.arange(101.0)}
    many = jax.vmap(defenses.percentile_noise(0.1), in_axes=(0, None))(
        jax.random.split(jax.random.key(0), 400), update
    )
    for name, percentile in (("a", 95.0), ("b", 950.0)):
        noise = (np.asarray(many[name]) - np.asarray(update[name])).ravel() / (0.1 * percentile)
        assert stats.kstest(noise, "norm").pvalue > 1e-3
        assert stats.kstest(noise / 1.05, "norm").pvalue < 1e-3
    np.testing.assert_array_equal(defenses.percentile_noise(0.0)(jax.random.key(0), update)["a"], update["a"])


def test_row_noise_is_relative_to_the_largest_row_of_the_weights_sent():
    """Weights whose rows, what feeds one output, have norms 3 and 5: a = 5 / 0.2 = 25; small ones: a = 1.

    The update alone moved them there; a bias is one row, and a kernel has one for each of its last axis.
    """
    column = jnp.zeros(5000).at[0].set(1.0)
    sent = {
        "dense": jnp.stack([3 * column, 5 * column], axis=1),
        "small": jnp.full((5000, 2), 1e-4),
        "bias": column * 2,
        "kernel": jnp.stack([3 * column, 4 * column], axis=1).reshape(5, 5, 200, 2),
    }
    params = jax.tree.map(jnp.zeros_like, sent)
    update = jax.tree.map(jnp.negative, sent)
    noisy = defenses.row_noise(params, 0.01)(jax.random.key(0), update)
    for name, scale in (("dense", 0.25), ("small", 0.01), ("bias", 0.1), ("kernel", 0.2)):
        noise = np.asarray(noisy[name] - update[name]).ravel()
        assert stats.kstest(noise / scale, "norm").pvalue > 1e-3
        assert stats.kstest(noise / scale / 1.2, "norm").pvalue < 1e-3


def test_the_smallest_weights_are_sent_as_zeros():
    params = {"w": jnp.array([[0.1, -2.0], [3.0, -0.2]])}
    update = {"w": jnp.array([[0.05, 0.5], [0.5, 0.1]])}  # the weights sent are 0.05, -2.5, 2.5 and -0.3
    sent = params["w"] - defenses.smallest_weights_zeroed(params, 0.5)(None, update)["w"]
    np.testing.assert_allclose(sent, [[0.0, -2.5], [2.5, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(defenses.smallest_weights_zeroed(params, 0.0)(None, update)["w"], update["w"])


def test_laplace_noise_has_its_law_and_a_test_would_notice_another():
    noise = np.asarray(defenses.laplace_noise(0.3)(jax.random.key(0), UPDATE)["a"]).ravel()
    assert stats.kstest(noise, "laplace", args=(0, 0.3)).pvalue > 1e-3
    for wrong in (0.25, 0.36):
        assert stats.kstest(noise, "laplace", args=(0, wrong)).pvalue < 1e-3
    assert stats.kstest(noise, stats.norm(scale=0.3 * np.sqrt(2)).cdf).pvalue < 1e-3


def test_the_noise_of_dp_sgd_is_on_the_mean():
    assert defenses.dp_noise_scale(0.5, 4.0, 8) == 0.25


def test_the_scale_of_percentile_noise_is_estimated_from_what_it_left():
    """Normal entries, noise as large as they are, and entries that it hardly touches."""
    with jax.enable_x64(True):
        update = {"w": 2 * jax.random.normal(jax.random.key(1), (40_000,))}
        sigma_0 = 0.5
        noisy = defenses.percentile_noise(sigma_0)(jax.random.key(0), update)["w"]
        true_spread = sigma_0 * float(jnp.percentile(jnp.abs(update["w"]), 95))
        assert float(defenses.percentile_noise_spread(noisy, sigma_0)) == pytest.approx(true_spread, rel=0.03)
        flat = jnp.ones(1000)
        assert float(defenses.percentile_noise_spread(flat, 1e-6)) == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("norm", [0.5, 5.0, 50.0])
def test_clipping_bounds_the_norm_exactly_and_keeps_the_direction(norm):
    update = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # of norm 5
    clipped = defenses.clipped(norm)(None, update)
    assert float(trees.tree_norm(clipped)) == pytest.approx(min(norm, 5.0), rel=1e-6)
    assert float(objectives.cosine(clipped, update)) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_the_largest_are_kept_in_exact_number_even_of_equal_ones():
    update = {"a": jnp.array([[1.0, -5.0], [0.0, 2.0]]), "b": jnp.array([-3.0, 0.5, 4.0, 0.1, 0.2, 0.3])}
    whole = defenses.top_k(0.4)(None, update)  # 4 of 10: -5, 4, -3, 2
    assert whole["a"].tolist() == [[0.0, -5.0], [0.0, 2.0]]
    assert whole["b"].tolist() == [-3.0, 0.0, 4.0, 0.0, 0.0, 0.0]
    single = defenses.top_k_of_tensors(0.5)(None, update)  # 2 of 4 and 3 of 6
    assert single["a"].tolist() == [[0.0, -5.0], [0.0, 2.0]]
    assert single["b"].tolist() == [-3.0, 0.5, 4.0, 0.0, 0.0, 0.0]
    equal = {"a": jnp.ones(600), "b": -jnp.ones(400)}
    for share, number in ((0.1, 100), (0.6004, 600), (0.7, 700), (1e-9, 1), (1.0, 1000)):
        for traced in (share, jnp.float32(share)):
            kept = defenses.top_k(traced)(None, equal)
            assert sum(int(jnp.sum(leaf != 0)) for leaf in jax.tree.leaves(kept)) == number
    assert defenses.top_k(0.1)(None, equal)["a"].tolist() == [1.0] * 100 + [0.0] * 500


def test_a_random_choice_is_unbiased_and_as_large_as_said():
    update = {"w": jnp.full(20_000, 2.0)}
    sent = np.asarray(defenses.random_k(0.2)(jax.random.key(0), update)["w"])
    assert set(sent.tolist()) == {0.0, 10.0}
    number = int(np.sum(sent > 0))
    assert stats.binomtest(number, sent.size, 0.2).pvalue > 1e-3
    assert stats.binomtest(number, sent.size, 0.22).pvalue < 1e-3


def test_percentile_privacy_zeroes_the_small_and_clips_the_large():
    update = {"w": jnp.arange(1.0, 12.0).at[10].set(-11.0)}  # 1 ... 10 and -11: the 10th percentile is 2
    sent = defenses.percentile_privacy(10.0, 4.0)(None, update)["w"]
    assert sent.tolist() == [0.0, 2.0, 3.0, *[4.0] * 7, -4.0]


def test_qsgd_sends_levels_whose_mean_is_exact():
    """Norm 5 and 5 levels: multiples of 1; 2.25 is sent as 2 or 3, the latter in a quarter of all cases."""
    update = {"w": jnp.array([2.25, -2.75, 0.0, float(np.sqrt(25 - 2.25**2 - 2.75**2))])}
    keys = jax.random.split(jax.random.key(0), 4000)
    sent = np.asarray(jax.vmap(defenses.qsgd(5.0), in_axes=(0, None))(keys, update)["w"])
    np.testing.assert_allclose(sent, np.round(sent), atol=1e-5)
    for column, low, up in ((0, 2, 0.25), (1, -3, 0.25)):
        number = int(np.sum(np.round(sent[:, column]) == low + 1))
        assert set(np.round(sent[:, column])) == {low, low + 1}
        assert stats.binomtest(number, len(keys), up).pvalue > 1e-3
        assert stats.binomtest(number, len(keys), up + 0.04).pvalue < 1e-3
    assert not np.any(sent[:, 2])
    assert float(defenses.qsgd_step(jnp.asarray(sent[0]))) == pytest.approx(np.min(np.abs(sent[0][sent[0] != 0])))


def test_soteria_hides_the_features_that_move_least():
    """Features `a_m x_m` of a diagonal first layer: |h| / |dh/dx| is `x_m`, whatever `a_m`."""
    scales, pixels = jnp.array([1.0, -2.0, 0.5, 3.0]), jnp.array([0.9, 0.2, 0.6, 0.4])
    params = {
        "first": {"kernel": jnp.diag(scales)},
        "head": {"kernel": jax.random.normal(jax.random.key(0), (4, 3)), "bias": jnp.zeros(3)},
    }

    def apply(params, inputs):
        flat = inputs.reshape(inputs.shape[0], -1)
        return flat @ params["first"]["kernel"] @ params["head"]["kernel"] + params["head"]["bias"][None]

    batch = Batch(pixels.reshape(1, 2, 2, 1), jnp.array([1]))
    read = features(apply, "head/kernel", params, batch.inputs)
    np.testing.assert_allclose(read, (scales * pixels)[None], rtol=1e-6)
    client = clients.fedsgd(models.cross_entropy(apply))
    plain = client(params, batch)
    sent = defenses.soteria(client, apply, head="head", share=0.5)(params, batch)
    hidden = jnp.array([0.0, 1.0, 0.0, 1.0])  # the two largest pixels are gone
    np.testing.assert_allclose(sent["head"]["kernel"], plain["head"]["kernel"] * hidden[:, None], rtol=1e-6)
    np.testing.assert_array_equal(sent["first"]["kernel"], plain["first"]["kernel"])
    with pytest.raises(ValueError, match=r"the parameters have no 'tail/kernel'"):
        defenses.soteria(client, apply, head="tail", share=0.5)(params, batch)
