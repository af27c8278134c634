"""Restarts, targets and the host loop: same keys, same results, one compilation, honest selection."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import search
from jaxinvert.attacks import inverting_gradients
from jaxinvert.parallel import lanes
from jaxinvert.types import Attack, AttackInfo, AttackState, Observation, Reconstruction
from tests.conftest import SHAPE

NUM_STEPS = 40


@pytest.fixture(scope="module")
def make_attack(victim):
    return lambda settings: inverting_gradients(victim.problem, **settings)


@pytest.fixture(scope="module")
def searched(make_attack, victims):
    """One search, and all its reports."""
    stepwise = search.Stepwise(make_attack, num_restarts=4)
    settings = {"tv": 1e-4, "horizon": NUM_STEPS}
    reports = list(stepwise(jax.random.key(1), victims[1], settings, num_steps=NUM_STEPS, report_every=15))
    return stepwise, reports


def test_run_evaluates_every_iterate_and_returns_the_best(make_attack, victim):
    attack = make_attack({"tv": 1e-4, "horizon": NUM_STEPS})
    found = jax.jit(search.run(attack, num_steps=NUM_STEPS))(jax.random.key(0), victim.observation)
    history = np.asarray(found.info["attack_loss"])
    assert history.shape == (NUM_STEPS + 1,)
    assert float(found.attack_loss) == history.min()
    assert history.min() < 0.1 * history[0]
    assert found.inputs.shape == SHAPE


def test_zero_steps_evaluate_the_start(make_attack, victim):
    attack = make_attack({})
    found = jax.jit(search.run(attack, num_steps=0))(jax.random.key(0), victim.observation)
    assert np.isfinite(found.attack_loss)


def fake_solve(losses):
    """An attack whose restart `i` ends with `losses[i]`; its input says which restart it was."""
    keys = jax.random.split(jax.random.key(0), len(losses))

    def solve(key, observation):
        del observation
        index = jnp.argmax(jnp.all(jax.random.key_data(keys) == jax.random.key_data(key)[None], axis=1))
        return Reconstruction(index[None].astype(jnp.float32), None, jnp.array(losses)[index], info={})

    return solve


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_best_of_skips_nan_restarts_without_shifting_the_index(victim, chunk_size):
    losses = [np.nan, 0.5, -np.inf, 0.2, np.nan, 0.3]
    best = search.best_of(fake_solve(losses), num_restarts=6, chunk_size=chunk_size)
    found = jax.jit(best)(jax.random.key(0), victim.observation)
    assert float(found.inputs[0]) == 3
    assert float(found.attack_loss) == pytest.approx(0.2)
    assert int(found.info["winner"]) == 3
    np.testing.assert_allclose(found.info["restart_losses"], [np.inf, 0.5, np.inf, 0.2, np.inf, 0.3])


def test_all_restarts_nan_is_visible(victim):
    found = search.best_of(fake_solve([np.nan] * 3), num_restarts=3)(jax.random.key(0), victim.observation)
    assert np.isinf(found.attack_loss)


@pytest.mark.slow
def test_over_targets_equals_a_loop_and_shares_the_parameters(make_attack, victims):
    _, observations = victims
    solve = search.best_of(search.run(make_attack({"tv": 1e-4}), num_steps=3), num_restarts=2)
    together = jax.jit(search.over_targets(solve))(jax.random.key(1), observations)
    keys = jax.random.split(jax.random.key(1), 3)
    alone = jax.jit(solve)
    for t in range(3):
        one = observations._replace(
            update=jax.tree.map(lambda leaf, t=t: leaf[t], observations.update), labels=observations.labels[t]
        )
        np.testing.assert_allclose(alone(keys[t], one).attack_loss, together.attack_loss[t], rtol=1e-5)


def test_different_targets_and_restarts_start_differently(make_attack, victims):
    _, observations = victims
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), observations.update)
    observations = observations._replace(update=same, labels=observations.labels[:2])
    solve = search.over_targets(search.best_of(search.run(make_attack({}), num_steps=0), num_restarts=3))
    losses = np.asarray(jax.jit(solve)(jax.random.key(0), observations).info["restart_losses"])
    assert len(np.unique(losses)) == 6


def test_stepwise_equals_the_pure_program(make_attack, victims, searched):
    _, reports = searched
    settings = {"tv": 1e-4, "horizon": NUM_STEPS}
    solve = search.best_of(search.run(make_attack(settings), num_steps=NUM_STEPS), num_restarts=4)
    pure = jax.jit(search.over_targets(solve))(jax.random.key(1), victims[1])
    stepped = reports[-1].reconstruct()
    # Signed updates are chaotic: two different programs agree in the quality they reach, not in every bit.
    assert stepped.inputs.shape == pure.inputs.shape == (3, *SHAPE)
    np.testing.assert_allclose(stepped.attack_loss, pure.attack_loss, rtol=0.5)


@pytest.mark.slow
def test_stepwise_first_losses_equal_the_pure_program(make_attack, victims):
    stepwise = search.Stepwise(make_attack, num_restarts=2)
    (report,) = stepwise(jax.random.key(1), victims[1], {"tv": 1e-4}, num_steps=0)
    solve = search.best_of(search.run(make_attack({"tv": 1e-4}), num_steps=0), num_restarts=2)
    pure = jax.jit(search.over_targets(solve))(jax.random.key(1), victims[1])
    np.testing.assert_allclose(report.best_loss, pure.info["restart_losses"], rtol=1e-5)


class Quadratic(NamedTuple):
    """Smooth descent with noise from the step's key on `|x - update|^2`: every program computes the same numbers."""

    rate: float = 0.2
    noise: float = 0.1

    def attack(self):
        def step(key, state, observation):
            x = state.variables
            loss = jnp.sum((x - observation.update) ** 2)
            better = loss < state.best_loss
            moved = x - self.rate * 2 * (x - observation.update) + self.noise * jax.random.normal(key, x.shape)
            best = jnp.where(better, x, state.best_variables)
            state = AttackState(moved, (), best, jnp.minimum(loss, state.best_loss))
            return state, AttackInfo(loss, loss, loss)

        return Attack(
            init=lambda key, observation: AttackState(
                jax.random.normal(key, (2,)), (), jnp.zeros(2), jnp.full((), jnp.inf, jnp.float32)
            ),
            step=step,
            decode=lambda state, observation: Reconstruction(state.best_variables, None, state.best_loss, info={}),
        )


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_stepwise_equals_run_with_the_steps_own_keys(num_steps):
    observations = Observation(params=jnp.zeros(2), update=jnp.array([[1.0, 2.0], [-1.0, 0.5]]))
    *_, last = search.Stepwise(lambda settings: Quadratic().attack(), num_restarts=3)(
        jax.random.key(0), observations, {}, num_steps=num_steps, report_every=2
    )
    solve = search.over_targets(search.best_of(search.run(Quadratic().attack(), num_steps=num_steps), num_restarts=3))
    pure = jax.jit(solve)(jax.random.key(0), observations)
    np.testing.assert_allclose(last.best_loss, pure.info["restart_losses"], rtol=1e-5)
    np.testing.assert_allclose(last.reconstruct().inputs, pure.inputs, rtol=1e-5)


def test_every_step_draws_anew_and_the_last_iterate_counts():
    observation = Observation(params=jnp.zeros(2), update=jnp.zeros(2))
    walk = Quadratic(rate=0.0, noise=1.0).attack()  # x moves by its noise alone
    history = np.asarray(search.run(walk, num_steps=3)(jax.random.key(0), observation).info["attack_loss"])
    init_key, step_key = jax.random.split(jax.random.key(0))
    x = np.asarray(jax.random.normal(init_key, (2,)))
    for step in range(4):
        assert history[step] == pytest.approx(np.sum(x**2), rel=1e-4)
        x = x + np.asarray(jax.random.normal(jax.random.fold_in(step_key, step), (2,)))
    descent = Quadratic(rate=0.25, noise=0.0)  # halves the distance: the last of n + 1 iterates is the best
    for num_steps in (1, 3):
        found = search.run(descent.attack(), num_steps=num_steps)(jax.random.key(0), observation)
        start = np.sum(np.asarray(jax.random.normal(init_key, (2,))) ** 2)
        assert float(found.attack_loss) == pytest.approx(start * 0.25**num_steps, rel=1e-4)


def test_the_time_of_the_start_is_apart_from_that_of_compilation_and_steps():
    """A start that waits, waits once."""
    waits = []

    def wait(x):
        waits.append(time.sleep(0.2))
        return np.asarray(x)

    def make_attack(settings):
        attack = Quadratic().attack()

        def init(key, observation):
            state = attack.init(key, observation)
            waited = jax.pure_callback(wait, state.variables, state.variables, vmap_method="sequential")
            return state._replace(variables=waited)

        return attack._replace(init=init)

    observations = Observation(params=jnp.zeros(2), update=jnp.array([[1.0, 2.0]]))
    stepwise = search.Stepwise(make_attack)
    *_, last = stepwise(jax.random.key(0), observations, {}, num_steps=1)
    assert len(waits) == 1
    assert stepwise.seconds_start > 0.2 > last.seconds
    for _ in stepwise(jax.random.key(0), observations, {}, num_steps=2, resume=last.resumable):
        pass
    assert len(waits) == 1


def test_a_finished_search_goes_on_as_if_it_had_not_ended(make_attack, victims):
    _, observations = victims
    stepwise = search.Stepwise(make_attack)
    *_, whole = stepwise(jax.random.key(0), observations, {}, num_steps=6, report_every=6)
    *_, half = stepwise(jax.random.key(0), observations, {}, num_steps=3, report_every=3)
    *_, gone_on = stepwise(jax.random.key(0), observations, {}, num_steps=6, report_every=3, resume=half.resumable)
    np.testing.assert_array_equal(gone_on.best_loss, whole.best_loss)
    np.testing.assert_array_equal(gone_on.reconstruct().inputs, whole.reconstruct().inputs)
    *_, again = stepwise(jax.random.key(0), observations, {}, num_steps=3, report_every=3, resume=half.resumable)
    np.testing.assert_array_equal(again.best_loss, half.best_loss)


def test_a_bad_target_is_named_before_anything_runs(make_attack, victims):
    _, observations = victims
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), observations.update)
    with pytest.raises(ValueError, match=r"target 1: update 'first/bias' holds 16 non-finite values"):
        next(search.Stepwise(make_attack)(jax.random.key(0), observations._replace(update=broken), {}, num_steps=1))


def test_reports_count_steps_and_never_get_worse(searched):
    _, reports = searched
    assert [report.step for report in reports] == [15, 30, 40]
    assert reports[-1].best_loss.shape == (3, 4)
    assert np.all(np.diff([report.best_loss for report in reports], axis=0) <= 0)


def test_new_settings_steps_and_keys_compile_nothing(searched, victims):
    stepwise, _ = searched
    assert stepwise.num_traces == 1
    for tv, horizon, num_steps in [(0, 10, 5), (1e-1, 20.0, 7), (np.float64(1e-3), 3, 4)]:
        settings = {"tv": tv, "horizon": horizon}
        for _ in stepwise(jax.random.key(5), victims[1], settings, num_steps=num_steps):
            pass
    assert stepwise.num_traces == 1


def test_settings_reach_the_attack(searched, victims):
    stepwise, _ = searched
    losses = []
    for tv in (0.0, 10.0):
        *_, last = stepwise(jax.random.key(1), victims[1], {"tv": tv, "horizon": 10}, num_steps=3)
        losses.append(last.best_loss.mean())
    assert losses[1] > 2 * losses[0]


def test_same_key_same_result_bit_by_bit(searched, victims):
    stepwise, reports = searched
    settings = {"tv": 1e-4, "horizon": NUM_STEPS}
    *_, again = stepwise(jax.random.key(1), victims[1], settings, num_steps=NUM_STEPS, report_every=7)
    np.testing.assert_array_equal(again.reconstruct().inputs, reports[-1].reconstruct().inputs)


def test_an_earlier_report_can_still_be_reconstructed(searched):
    _, reports = searched
    early, late = (report.reconstruct().attack_loss for report in (reports[0], reports[-1]))
    assert np.all(late <= early)
    np.testing.assert_allclose(early, reports[0].best_loss.min(axis=1))


@pytest.mark.parametrize(("num_lanes", "expected"), [(1, 1), (6, 6), (8, 8), (12, 6), (13, 7), (101, 8)])
def test_lanes_at_once_prefers_divisors_but_does_not_starve(monkeypatch, num_lanes, expected):
    monkeypatch.setattr(lanes, "_CPU_LANE_BYTES", 8 * 400)
    assert lanes.lanes_at_once(jnp.zeros(100), num_lanes) == expected


def test_large_updates_run_one_at_a_time():
    assert lanes.lanes_at_once(jnp.zeros(2**24), 8) == 1


@pytest.mark.parametrize(("num_restarts", "num_targets", "in_step"), [(2, 3, 2), (1, 4, 2), (3, 2, 2), (3, 3, 1)])
def test_large_lanes_step_in_pairs_to_the_same_result(monkeypatch, num_restarts, num_targets, in_step):
    """Pairs of one target, of two targets, of both kinds; an odd number of lanes goes one after the other."""
    monkeypatch.setattr(lanes, "_CPU_LANE_BYTES", 1)
    on_cpu = jax.devices()[0].platform == "cpu"
    assert lanes.lanes_in_step(1, num_targets * num_restarts) == (in_step if on_cpu else 1)
    observations = Observation(params=jnp.zeros(2), update=3 * jnp.arange(2.0 * num_targets).reshape(num_targets, 2))
    results = []
    for chunk_size in (None, 1):
        stepwise = search.Stepwise(
            lambda settings: Quadratic().attack(), num_restarts=num_restarts, chunk_size=chunk_size
        )
        *_, report = stepwise(jax.random.key(0), observations, {}, num_steps=9)
        results.append((report.best_loss, report.reconstruct().inputs))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(np.unique(results[0][0])) == num_targets * num_restarts


@pytest.mark.slow
@pytest.mark.parametrize(("chunk_size", "side_by_side"), [(None, 8), (1, 1), (4, 4), (100, 8)])
def test_jobs_side_by_side_do_what_they_do_alone(chunk_size, side_by_side):
    """Four jobs of two lanes, each with its own key, parameters and targets; a chunk of 100 is as good as all."""
    updates = 3 * jnp.arange(4 * 2 * 2.0).reshape(4, 2, 2)
    jobs = Observation(params=jnp.arange(8.0).reshape(4, 2), update=updates)
    keys = jax.random.split(jax.random.key(0), 4)
    settings = {"unused": jnp.zeros(4)}
    together = search.Stepwise(lambda settings: Quadratic().attack(), chunk_size=chunk_size, num_jobs=4)
    assert together.lanes_side_by_side(jobs) == side_by_side
    *_, report = together(keys, jobs, settings, num_steps=9)
    assert report.best_loss.shape == (4, 2, 1)
    alone = search.Stepwise(lambda settings: Quadratic().attack())
    for j in range(4):
        one = jax.tree.map(lambda leaf, j=j: leaf[j], jobs)
        *_, expected = alone(keys[j], one, {"unused": 0.0}, num_steps=9)
        np.testing.assert_allclose(report.best_loss[j], expected.best_loss, rtol=1e-5)
        np.testing.assert_allclose(report.reconstruct().inputs[j], expected.reconstruct().inputs, rtol=1e-5)
    assert together.num_traces == 1


@pytest.mark.slow
def test_a_remainder_of_lanes_is_not_lost(victim, make_attack):
    solve = search.best_of(search.run(make_attack({}), num_steps=1), num_restarts=5, chunk_size=2)
    losses = jax.jit(solve)(jax.random.key(0), victim.observation).info["restart_losses"]
    assert len(np.unique(losses)) == 5


def test_disagreeing_targets_are_refused(victims):
    _, observations = victims
    with pytest.raises(ValueError, match="the same for all"):
        search.num_targets(observations._replace(labels=observations.labels[:2]))


@pytest.mark.parametrize("make", [lambda f: search.run(f, num_steps=-1), lambda f: search.best_of(f, num_restarts=0)])
def test_counts_are_checked(make):
    with pytest.raises(ValueError, match="expected at least"):
        make(None)
