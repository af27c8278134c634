"""Running statistics forward by hand, backward exactly, and across the frameworks' conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.clients import running_statistics

RNG = np.random.default_rng(0)


def statistics(*leading):
    return {"norm": {"mean": RNG.normal(size=(*leading, 3)), "var": RNG.uniform(0.5, 2, size=(*leading, 3))}}


def assert_trees_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, **tolerance), found, expected)


def test_advance_by_hand():
    """m = 0.75: 4 -> 0.75 * 4 + 0.25 * 8 = 5 -> 0.75 * 5 + 0.25 * 1 = 4."""
    after = running_statistics.advance(jnp.array([4.0]), jnp.array([[8.0], [1.0]]), momentum=0.75)
    np.testing.assert_allclose(after, [4.0], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_recover_is_exact_after_one_step(momentum):
    with jax.enable_x64(True):
        initial, batch = statistics(), statistics(1)
        sent = running_statistics.advance(initial, batch, momentum=momentum)
        recovered = running_statistics.recover(sent, initial, momentum=momentum)
        assert_trees_close(recovered, jax.tree.map(lambda leaf: leaf[0], batch), rtol=1e-13)


def test_recover_is_exact_after_many_steps_on_the_same_batch():
    with jax.enable_x64(True):
        initial, batch = statistics(), statistics()
        repeated = jax.tree.map(lambda leaf: np.stack([leaf] * 5), batch)
        sent = running_statistics.advance(initial, repeated, momentum=0.9)
        assert_trees_close(running_statistics.recover(sent, initial, momentum=0.9, num_steps=5), batch, rtol=1e-13)
        wrong = running_statistics.recover(sent, initial, momentum=0.9, num_steps=4)
        assert np.max(np.abs(wrong["norm"]["mean"] - batch["norm"]["mean"])) > 1e-2


def test_recover_is_a_weighted_mean_of_different_steps():
    """Weights (1 - m) m^(S - s) / (1 - m^S): here 0.16, 0.4, 1 in proportion."""
    with jax.enable_x64(True):
        initial, batches = statistics(), statistics(3)
        sent = running_statistics.advance(initial, batches, momentum=0.4)
        expected = jax.tree.map(lambda leaf: np.average(leaf, axis=0, weights=[0.16, 0.4, 1.0]), batches)
        recovered = jax.jit(running_statistics.recover)(sent, initial, momentum=0.4, num_steps=3)  # traced
        assert_trees_close(recovered, expected, rtol=1e-12)


def test_float32_loses_what_the_table_says():
    """Rounding of r (relative 6e-8) grows tenfold at m = 0.9."""
    initial = jnp.full(1000, 1.0)
    batch = jnp.asarray(RNG.uniform(1, 2, size=(1, 1000)), jnp.float32)
    sent = running_statistics.advance(initial, batch, momentum=0.9)
    error = np.abs(running_statistics.recover(sent, initial, momentum=0.9) - batch[0])
    assert np.max(error) < 5e-6
    assert sent.dtype == jnp.float32


def test_a_pytorch_client_in_its_own_conventions():
    """running = 0.9 running + 0.1 unbiased variance of the batch (PyTorch's momentum is 0.1)."""
    with jax.enable_x64(True):
        values = RNG.normal(size=(7, 3))
        initial = jnp.ones(3)
        sent = (1 - 0.1) * initial + 0.1 * values.var(axis=0, ddof=1)
        momentum = running_statistics.convert_momentum(0.1)
        recovered = running_statistics.recover(sent, initial, momentum=momentum)
        np.testing.assert_allclose(running_statistics.biased_variance(recovered, 7), values.var(axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            running_statistics.unbiased_variance(values.var(axis=0), 7), values.var(axis=0, ddof=1), rtol=1e-12
        )


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5, float("nan")])
def test_momentum_outside_of_its_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), the share of the old value, got"):
        running_statistics.recover(jnp.ones(1), jnp.ones(1), momentum=momentum)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        running_statistics.advance(jnp.ones(1), jnp.ones((1, 1)), momentum=momentum)


def test_no_step_recovers_nothing():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        running_statistics.recover(jnp.ones(1), jnp.ones(1), momentum=0.9, num_steps=0)


def test_relative_distance_by_hand():
    """Means off by half a deviation in one of two layers, deviations by twice in the other, each channel alike."""
    wanted = {"a": {"mean": np.zeros(2), "var": np.full(2, 4.0)}, "b": {"c": {"mean": np.ones(3), "var": np.ones(3)}}}
    found = {
        "a": {"mean": np.ones(2), "var": np.full(2, 4.0)},
        "b": {"c": {"mean": np.ones(3), "var": np.full(3, 9)}},
    }
    expected = 0.5 * (0.5**2 / 2 + (3 - 1) ** 2 / 2)
    np.testing.assert_allclose(running_statistics.relative_distance(found, wanted), expected, rtol=1e-4)
    assert running_statistics.relative_distance(wanted, wanted) == 0


def test_relative_distance_has_a_gradient_where_nothing_varies_and_noise_made_a_variance_negative():
    wanted = {"mean": jnp.ones(2), "var": jnp.array([-0.1, 1.0])}
    found = {"mean": jnp.ones(2), "var": jnp.array([0.0, 0.0])}
    slope = jax.grad(running_statistics.relative_distance)(found, wanted)
    assert np.all(np.isfinite(slope["var"]))
    assert slope["var"][1] < 0
