"""Halving: the right restarts survive, take the steps of the plain search, and what was computed is counted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import search
from jaxinvert.attacks import inverting_gradients
from jaxinvert.search.halving import Rung, default_rungs, successive_halving
from jaxinvert.types import Attack, AttackInfo, AttackState, Observation, Reconstruction
from tests.conftest import SHAPE
from tests.search.test_search import Quadratic

OBSERVATION = Observation(params=jnp.zeros(2), update=jnp.array([1.0, 2.0]))
NUM_STEPS = 12


class Scripted(NamedTuple):
    """Restarts whose losses are a table `[R, num_steps + 1]`; the variable says which restart a lane is."""

    losses: jax.Array
    keys: jax.Array

    def attack(self):
        def init(key, observation):
            del observation
            init_keys = jax.vmap(lambda lane_key: jax.random.split(lane_key)[0])(self.keys)
            same = jnp.all(jax.random.key_data(init_keys) == jax.random.key_data(key)[None], axis=1)
            return AttackState(jnp.argmax(same), jnp.int32(0), jnp.int32(-1), jnp.full((), jnp.inf, jnp.float32))

        def step(key, state, observation):
            del key, observation
            loss = self.losses[state.variables, state.opt_state]
            finite = jnp.where(jnp.isfinite(loss), loss, jnp.inf)
            best = jnp.where(finite < state.best_loss, state.opt_state, state.best_variables)
            moved = AttackState(state.variables, state.opt_state + 1, best, jnp.minimum(finite, state.best_loss))
            return moved, AttackInfo(loss, loss, loss)

        def decode(state, observation):
            del observation
            where = jnp.stack([state.variables, state.best_variables])
            return Reconstruction(where.astype(jnp.float32), None, state.best_loss, info={})

        return Attack(init, step, decode)


def solve_table(losses, **options):
    """Successive halving of one restart for each row of a table of losses."""
    losses = jnp.asarray(losses, jnp.float32)
    num_restarts, num_iterates = losses.shape
    scripted = Scripted(losses, jax.random.split(jax.random.key(0), num_restarts))
    solve = successive_halving(scripted.attack(), num_steps=num_iterates - 1, num_restarts=num_restarts, **options)
    return jax.jit(solve)(jax.random.key(0), OBSERVATION)


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_the_best_at_each_rung_go_on_and_steps_are_counted(chunk_size):
    """After 1 evaluated iterate restart 3 is dropped, after 3 of them 0 and 2: 4 + 3 x 2 + 1 x 2 lane-steps."""
    table = [[5, 9, 9, 0, 0], [7, 6, 1, 2, 2], [6, 5, 4, 0, 0], [8, 0, 0, 0, 0]]
    found = solve_table(table, rungs=((1, 3), (3, 1)), chunk_size=chunk_size)
    assert found.info["restart_steps"].tolist() == [3, 5, 3, 1]
    assert int(found.info["lane_steps"]) == 12
    assert found.info["restart_losses"].tolist() == [5, 1, 4, 8]
    assert found.info["attack_loss"].tolist() == table[1]
    assert (int(found.info["winner"]), float(found.attack_loss)) == (1, 1)
    assert found.inputs.tolist() == [1, 2]  # restart 1, its iterate 2


def test_restarts_that_are_not_finite_drop_out_first_but_keep_what_they_found():
    """Restart 0 is lost from the start, 1 fails after the lowest loss of all: neither goes on, 1 wins."""
    nan, inf = np.nan, np.inf
    table = [[nan, nan, nan, nan], [1, nan, nan, nan], [9, 8, 7, 6], [9, 7, 5, 3], [-inf, 9, 9, 9]]
    found = solve_table(table, rungs=((2, 2),))
    assert found.info["restart_steps"].tolist() == [2, 2, 4, 4, 2]
    assert found.info["restart_losses"].tolist() == [inf, 1, 6, 3, 9]
    assert int(found.info["winner"]) == 1
    assert found.info["attack_loss"][2:].tolist() == [inf, inf]


def test_the_best_loss_so_far_counts_not_the_last():
    found = solve_table([[2, 9, 9, 1], [8, 4, 3, 0]], rungs=((2, 1),))
    assert found.info["restart_steps"].tolist() == [4, 2]


def test_if_no_loss_is_finite_it_shows():
    found = solve_table(np.full((3, 4), np.nan), rungs=((1, 2), (2, 1)))
    assert np.isinf(found.attack_loss)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_survivors_take_the_steps_of_the_plain_search(chunk_size):
    """Noise from the step's key makes every path its own; the winner's whole history is that of `run`."""
    attack, key = Quadratic().attack(), jax.random.key(3)
    halved = successive_halving(
        attack, num_steps=NUM_STEPS, num_restarts=6, rungs=((2, 4), (7, 2)), chunk_size=chunk_size
    )
    found = jax.jit(halved)(key, OBSERVATION)
    winner = int(found.info["winner"])
    alone = jax.jit(search.run(attack, num_steps=NUM_STEPS))(jax.random.split(key, 6)[winner], OBSERVATION)
    assert int(found.info["restart_steps"][winner]) == NUM_STEPS + 1
    np.testing.assert_allclose(found.info["attack_loss"], alone.info["attack_loss"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.inputs, alone.inputs, rtol=1e-4)
    np.testing.assert_allclose(found.attack_loss, alone.attack_loss, rtol=1e-4)
    assert int(found.info["lane_steps"]) == 6 * 2 + 4 * 5 + 2 * 6


def test_without_rungs_it_is_the_plain_search():
    attack, key = Quadratic().attack(), jax.random.key(4)
    halved = jax.jit(successive_halving(attack, num_steps=NUM_STEPS, num_restarts=5, rungs=()))(key, OBSERVATION)
    plain = jax.jit(search.best_of(search.run(attack, num_steps=NUM_STEPS), num_restarts=5))(key, OBSERVATION)
    np.testing.assert_allclose(halved.inputs, plain.inputs, rtol=1e-5)
    for name in ("restart_losses", "winner", "attack_loss"):
        np.testing.assert_allclose(halved.info[name], plain.info[name], rtol=1e-4, atol=1e-6)
    assert int(halved.info["lane_steps"]) == 5 * (NUM_STEPS + 1)


def test_zero_steps_evaluate_the_start():
    solve = successive_halving(Quadratic().attack(), num_steps=0, num_restarts=2, rungs=())
    found = jax.jit(solve)(jax.random.key(0), OBSERVATION)
    assert np.isfinite(found.attack_loss)
    assert int(found.info["lane_steps"]) == 2


@pytest.mark.slow
def test_gradient_matching_survives_halving(victim):
    """An optimizer with a state of its own, whose first rung the plain search's winner passes."""
    attack = inverting_gradients(victim.problem, tv=1e-4, horizon=NUM_STEPS)
    key = jax.random.key(1)
    halved = successive_halving(attack, num_steps=NUM_STEPS, num_restarts=4, rungs=((4, 2), (8, 1)), chunk_size=1)
    found = jax.jit(halved)(key, victim.observation)
    alone = jax.jit(search.run(attack, num_steps=NUM_STEPS))(
        jax.random.split(key, 4)[int(found.info["winner"])], victim.observation
    )
    np.testing.assert_allclose(found.info["attack_loss"], alone.info["attack_loss"], rtol=1e-3)
    assert np.isinf(found.info["restart_losses"]).sum() == 0
    assert found.inputs.shape == SHAPE


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_over_targets_and_vmap_equal_a_loop(chunk_size):
    updates = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]])
    solve = successive_halving(Quadratic().attack(), num_steps=NUM_STEPS, num_restarts=4, rungs=((3, 2),), patience=3)
    observations = Observation(params=jnp.zeros(2), update=updates)
    together = jax.jit(search.over_targets(solve, chunk_size=chunk_size))(jax.random.key(0), observations)
    solve = jax.jit(solve)
    for t, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        alone = solve(key, OBSERVATION._replace(update=updates[t]))
        np.testing.assert_allclose(together.inputs[t], alone.inputs, rtol=1e-4)
        assert together.info["restart_steps"][t].tolist() == alone.info["restart_steps"].tolist()
        assert int(together.info["lane_steps"][t]) == int(alone.info["lane_steps"])


@pytest.mark.slow
def test_every_target_can_be_warm_started_from_its_own_earlier_reconstruction(victim, victims):
    """One program: what a first search found is where the lanes of the second begin, but for a little noise."""

    def attack(**options):
        return inverting_gradients(victim.problem, tv=1e-4, horizon=60, **options)

    def solve(key, observation):
        first = search.run(attack(), num_steps=60)(key, observation)
        second = successive_halving(attack(start_images=first.inputs), num_steps=0, num_restarts=3, rungs=())
        started = second(key, observation)
        return started._replace(info={**started.info, "first": first.inputs})

    _, observations = victims
    warm = jax.jit(search.over_targets(solve))(jax.random.key(0), observations)
    cold = jax.jit(search.over_targets(search.run(attack(), num_steps=0)))(jax.random.key(0), observations)
    assert np.all(np.abs(warm.inputs - warm.info["first"]) < 0.5)  # five deviations of the noise
    assert np.all(np.asarray(warm.attack_loss) < 0.5 * np.asarray(cold.attack_loss))
    assert np.abs(warm.info["first"][0] - warm.info["first"][1]).max() > 0.2


PLATEAUS = [[9, 9, 9, 9, 9, 9, 1], [9, 8, 7, 6, 5, 4, 3], [9, 5, 4.9, 4.8, 4.7, 4.6, 4.5]]


@pytest.mark.parametrize(("tolerance", "steps"), [(0.0, [3, 7, 7]), (0.1, [3, 7, 4])])
def test_a_lane_that_stands_still_stops(tolerance, steps):
    """With patience 3 restart 0 stops before the step that would have helped it; 2 % at a time is little progress."""
    found = solve_table(PLATEAUS, rungs=(), patience=3, tolerance=tolerance, chunk_size=1)
    assert found.info["restart_steps"].tolist() == steps
    assert int(found.info["lane_steps"]) == sum(steps)
    assert int(found.info["winner"]) == 1
    assert float(found.info["restart_losses"][0]) == 9


def test_a_stopped_lane_that_waits_for_its_chunk_counts():
    """The first chunk's second lane goes on to the end: 2 x 7; the other chunk stops after 4."""
    found = solve_table(PLATEAUS, rungs=(), patience=3, tolerance=0.1, chunk_size=2)
    assert found.info["restart_steps"].tolist() == [3, 7, 4]
    assert int(found.info["lane_steps"]) == 2 * 7 + 4


def test_a_stopped_lane_does_not_start_again_at_the_next_rung():
    table = [[5, 5, 5, 5, 0, 0], [6, 6, 6, 6, 0, 0], [9, 8, 7, 6.5, 6.4, 6.3]]
    found = solve_table(table, rungs=((3, 3), (4, 2)), patience=2, chunk_size=1)
    assert found.info["restart_steps"].tolist() == [2, 2, 4]
    assert float(found.attack_loss) == 5


def test_the_default_rungs_are_cheap_and_valid():
    for num_steps in (0, 1, 3, 7, 40, 4800):
        for num_restarts in (1, 2, 3, 8, 16, 100):
            rungs = default_rungs(num_steps=num_steps, num_restarts=num_restarts)
            successive_halving(Quadratic().attack(), num_steps=num_steps, num_restarts=num_restarts, rungs=rungs)
    assert default_rungs(num_steps=2, num_restarts=8) == (Rung(1, 1),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": -1}, "num_steps is -1"),
        ({"num_restarts": 0}, "num_restarts is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"rungs": ((0, 2),)}, "at step 0, expected more than 0 and at most 9"),
        ({"rungs": ((10, 2),)}, "at step 10"),
        ({"rungs": ((4, 2), (4, 1))}, "at step 4, expected more than 4"),
        ({"rungs": ((2, 5),)}, "keeps 5, expected 1 to 4"),
        ({"rungs": ((2, 2), (3, 3))}, "keeps 3, expected 1 to 2"),
        ({"rungs": ((2, 0),)}, "keeps 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        successive_halving(Quadratic().attack(), **{"num_steps": 9, "num_restarts": 4, "rungs": (), **options})
