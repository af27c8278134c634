"""The attack-free figure against closed forms, the whole Jacobian, and least squares; what it refuses."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import audit, jobs
from jaxinvert.audit import auditing
from jaxinvert.audit.attack_free import refusal
from jaxinvert.audit.linearization import bidiagonals, influence_db, residual_scale, resolution
from jaxinvert.defenses.registry import REGISTRY, parse
from jaxinvert.priors.bases import cosine_basis
from jaxinvert.priors.parametrizations import amplitude_of_photographs
from jaxinvert.report.risk_chart import attack_free_words
from jaxinvert.types import Batch

attack_free_module = sys.modules["jaxinvert.audit.attack_free"]  # the package's name is the function's
SHAPE = (1, 4, 4, 1)
PIXELS = 16
BATCH = Batch(jax.random.uniform(jax.random.key(0), SHAPE), jnp.zeros(1, jnp.int32))
AMPLITUDE = np.asarray(amplitude_of_photographs(SHAPE, 1.0), np.float64).ravel()
WAVES = np.kron(cosine_basis(4), cosine_basis(4)).astype(np.float64)
"""Rows are the orthonormal waves, in the order of `AMPLITUDE`."""
KEY = jax.random.key(1)


def linear(params, batch):
    return {"w": params @ batch.inputs.ravel()}


def curved(params, batch):
    return jax.grad(lambda w: jnp.mean(jnp.sin(jnp.tanh(batch.inputs.reshape(-1, PIXELS) @ w) @ jnp.arange(1.0, 6))))(
        params
    )


def deviations(scale):
    return lambda update: jax.tree.map(lambda leaf: jnp.asarray(scale), update)


def measured(client, params, scale, *, steps=PIXELS, probes=1, batch=BATCH, amplitude=None):
    sizes = {"num_steps": steps, "num_probes": probes, "amplitude": amplitude}
    return bidiagonals(client, params, batch, deviations(scale), KEY, **sizes)


def decibels(error):
    return -10 * np.log10(error)


def test_pixels_sent_with_noise_by_hand():
    """Each wave is seen with noise .1 / 2, so its variance is 1 / (1/a^2 + 400); without prior, 1/400."""
    found = measured(linear, 2 * jnp.eye(PIXELS), 0.1)
    figure = resolution(found, num_pixels=PIXELS)
    by_hand = decibels(np.mean(1 / (1 / AMPLITUDE**2 + 400)))
    for reached in (figure.psnr_db, figure.low_db, figure.high_db):
        np.testing.assert_allclose(reached, by_hand, atol=1e-3)
    np.testing.assert_allclose(figure.unbiased_db, decibels(1 / 400), atol=1e-3)
    alike = measured(linear, 2 * jnp.eye(PIXELS), 0.1, amplitude=jnp.ones(()))
    assert influence_db(alike, num_pixels=PIXELS) == pytest.approx(decibels(1 / 400), abs=1e-3)


def test_an_update_that_tells_nothing_leaves_the_prior():
    figure = resolution(measured(linear, jnp.zeros((3, PIXELS)), 0.1, steps=5), num_pixels=PIXELS)
    for reached in (figure.psnr_db, figure.low_db, figure.high_db):
        np.testing.assert_allclose(reached, decibels(1 / 16), atol=1e-4)  # standard deviation 1/4
    assert figure.unbiased_db == -np.inf


@pytest.mark.slow
@pytest.mark.parametrize("client", [linear, curved])
def test_few_steps_bracket_the_exact_form_and_all_steps_are_exact(client):
    params = jax.random.normal(jax.random.key(2), (PIXELS, PIXELS if client is linear else 5))
    jacobian = jax.jacobian(lambda x: client(params, BATCH._replace(inputs=x)))(BATCH.inputs)
    rows = np.asarray(jax.tree.leaves(jacobian)[0], np.float64).reshape(-1, PIXELS)
    information = AMPLITUDE[:, None] * (WAVES @ rows.T @ rows @ WAVES.T) / 0.05**2 * AMPLITUDE
    start = np.asarray(jax.random.rademacher(KEY, SHAPE, jnp.float32)).ravel() * AMPLITUDE
    exact = decibels(start @ np.linalg.solve(information + np.eye(PIXELS), start) / PIXELS)
    few = resolution(measured(client, params, 0.05, steps=5), num_pixels=PIXELS)
    assert few.low_db[0] + 0.1 < exact < few.high_db[0] - 0.1
    assert few.low_db < few.psnr_db < few.high_db
    every = resolution(measured(client, params, 0.05), num_pixels=PIXELS)
    np.testing.assert_allclose([every.low_db, every.high_db], exact, atol=0.02)


def test_largest_eigenvalue_and_trace_of_a_network():
    params = jax.random.normal(jax.random.key(2), (PIXELS, 5))
    rows = np.asarray(jax.jacobian(lambda x: curved(params, BATCH._replace(inputs=x)))(BATCH.inputs), np.float64)
    information = rows.reshape(-1, PIXELS).T @ rows.reshape(-1, PIXELS) / 0.3**2
    found = measured(curved, params, 0.3, steps=10, probes=400, amplitude=jnp.ones(()))
    bound = np.trace(information) / np.linalg.eigvalsh(information)[-1] ** 2 / PIXELS
    assert influence_db(found, num_pixels=PIXELS) == pytest.approx(decibels(bound), abs=0.4)


def test_no_least_squares_attack_is_below_the_bound():
    """Least squares has no bias and reaches the bound; fewer steps give a bound that is weaker, never stronger."""
    params = jax.random.normal(jax.random.key(2), (40, PIXELS))
    rng = np.random.default_rng(0)
    inverse = np.linalg.pinv(np.asarray(params, np.float64))
    error = np.mean(np.square(inverse @ (0.05 * rng.standard_normal((40, 4000)))))
    best = resolution(measured(linear, params, 0.05, probes=200), num_pixels=PIXELS).unbiased_db[0]
    assert best == pytest.approx(decibels(error), abs=0.2)
    assert resolution(measured(linear, params, 0.05, steps=3, probes=200), num_pixels=PIXELS).unbiased_db[0] > best
    found = measured(linear, params, 0.05, probes=200, amplitude=jnp.ones(()))
    assert influence_db(found, num_pixels=PIXELS) > best


def test_the_residual_follows_the_scale_of_the_update():
    params = jax.random.normal(jax.random.key(2), (40, PIXELS))

    def reached(factor):
        def client(params, batch):
            return {"w": factor * linear(params, batch)["w"], "dead": jnp.zeros(7)}

        found = bidiagonals(
            client, params, BATCH, lambda u: jax.tree.map(lambda _: residual_scale(u, 0.01), u), KEY, num_steps=6
        )
        return resolution(found, num_pixels=PIXELS).psnr_db

    np.testing.assert_allclose(reached(1.0), reached(1000.0), atol=1e-3)
    assert float(residual_scale({"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(9)}, 0.1)) == pytest.approx(
        0.5 / np.sqrt(2)
    )


def test_examples_of_a_batch_are_told_apart():
    """The second example is seen with a tenth of the noise."""
    batch = Batch(jax.random.uniform(KEY, (2, 4, 4, 1)), jnp.zeros(2, jnp.int32))
    weights = jnp.diag(jnp.repeat(jnp.array([1.0, 10.0]), PIXELS))
    figure = resolution(measured(linear, weights, 0.1, batch=batch), num_pixels=PIXELS)
    by_hand = [decibels(np.mean(1 / (1 / AMPLITUDE**2 + precision))) for precision in (100, 10_000)]
    np.testing.assert_allclose(figure.low_db, by_hand, atol=0.01)
    np.testing.assert_allclose(figure.high_db, by_hand, atol=0.01)


def test_jit_is_eager_and_vmap_is_a_loop():
    params = jax.random.normal(jax.random.key(2), (PIXELS, 5))

    def diagonals(inputs):
        return measured(curved, params, 0.1, steps=4, batch=BATCH._replace(inputs=inputs)).diagonal

    several = jnp.stack([BATCH.inputs, 1 - BATCH.inputs])
    eager = jnp.stack([diagonals(one) for one in several])
    np.testing.assert_allclose(jax.jit(jax.vmap(diagonals))(several), eager, rtol=1e-3)


def test_a_derivative_that_is_not_finite_is_refused():
    found = measured(linear, jnp.eye(PIXELS).at[0, 0].set(jnp.nan), 0.1, steps=3)
    with pytest.raises(ValueError, match="not finite"):
        resolution(found, num_pixels=PIXELS)


@pytest.fixture(scope="module")
def setup():
    return jobs.set_up(jobs.JobConfig.of(model="mlp-8", size=16, targets=2))


def figure_of(setup, **fields):
    config = setup.program.config.replace(targets=2, **fields)
    task = jobs.prepare(config, jobs.adjusted(setup, config))
    return audit.attack_free(config, task, num_steps=8)


def known(decibels):
    assert decibels is not None
    assert decibels.shape == (2, 1)
    return decibels


@pytest.mark.slow
def test_noise_lowers_the_figure_and_gives_a_bound(setup):
    plain = figure_of(setup)
    assert plain.unbiased_db is None
    assert "no noise" in plain.unbiased_words
    noisy = [figure_of(setup, defense="gaussian", defense_settings={"scale": scale}) for scale in (0.01, 0.1)]
    assert np.all(known(plain.psnr_db) > known(noisy[0].psnr_db))
    assert np.all(known(noisy[0].psnr_db) > known(noisy[1].psnr_db))
    assert known(noisy[0].unbiased_db) - known(noisy[1].unbiased_db) == pytest.approx(np.full((2, 1), 20.0), abs=0.1)


def test_what_a_defense_removes_tells_nothing(setup):
    pruned = figure_of(setup, defense="top-k", defense_settings={"keep": 0.01})
    assert np.all(known(pruned.psnr_db) < known(figure_of(setup).psnr_db) - 1)
    assert "top-k" in pruned.words


def test_clipped_examples_with_noise_are_bounded(setup):
    private = figure_of(setup, defense="dp-sgd", defense_settings={"multiplier": 1.0})
    assert np.all(np.isfinite(known(private.unbiased_db)))
    assert np.all(known(private.psnr_db) < 13)  # without the update 12.04


def test_every_defense_has_a_figure_or_a_reason():
    refused = {name for name in REGISTRY if refusal(parse(name))}
    assert refused == {"mixup", "outpost", "precode", "sign"}
    assert "changes the noise of gaussian" in refusal(parse("gaussian+top-k"))
    assert "not known here" in refusal(parse("none")._replace(names=("new",)))


def test_reasons_are_said(setup):
    found = figure_of(setup, defense="sign")
    assert found.psnr_db is None
    assert "signs are constant" in found.reason
    config = setup.program.config.replace(targets=2)
    with pytest.raises(ValueError, match="residual is 0"):
        audit.attack_free(config, jobs.prepare(config, setup), residual=0)


@pytest.mark.slow
def test_a_figure_is_kept_and_other_numbers_of_a_defense_compile_nothing(setup, tmp_path):
    """Of an audit's settings that differ in the noise alone, and again when the audit is repeated."""
    config = setup.program.config.replace(targets=2, restarts=1, steps=1)
    settings = audit.settings_for(config, ["gaussian:scale=0.01", "gaussian:scale=0.1"])
    settings = [one._replace(attackers={"naive": one.attackers["naive"]}) for one in settings]
    with pytest.MonkeyPatch.context() as patch:
        counted, original = [], attack_free_module._measure
        patch.setattr(attack_free_module, "_measure", lambda *a, **k: counted.append(1) or original(*a, **k))
        found = audit.audit(settings, with_attack_free=True, folder=tmp_path)
    assert len(counted) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditing, "attack_free", None)
        again = audit.audit(settings, with_attack_free=True, folder=tmp_path)
    for mine, theirs in zip(found, again):
        assert mine.attack_free.words == theirs.attack_free.words
        assert np.array_equal(mine.attack_free.psnr_db, theirs.attack_free.psnr_db)
        assert np.array_equal(mine.attack_free.unbiased_db, theirs.attack_free.unbiased_db)
    said = " ".join(attack_free_words(audit.record(found)["settings"]))
    assert said.count("estimated from one random probe per example") == 2
    alone = figure_of(setup, defense="gaussian", defense_settings={"scale": 0.1})
    assert "Of the example of every client" in alone.words


@pytest.mark.slow
def test_a_figure_that_fails_leaves_the_verdict(monkeypatch):
    """Of whatever kind the error is: the attacks are finished."""
    config = jobs.JobConfig.of(model="mlp-8", targets=2, restarts=1, steps=1)
    for error, said in ((ValueError("not finite"), "not finite"), (MemoryError("full"), "MemoryError: full")):

        def failing(*_, error=error, **__):
            raise error

        monkeypatch.setattr(auditing, "attack_free", failing)
        (found,) = audit.audit([audit.Scenario("no defense", {"naive": config})], with_attack_free=True)
        assert found.verdict.headline
        assert found.attack_free.psnr_db is None
        assert found.attack_free.reason == said
        assert audit.record([found])["settings"][0]["attack_free"]["reason"] == said


def test_an_update_that_tells_of_few_directions_ends_the_steps_early():
    """A frozen layer leaves the head's gradient, of rank 8: what follows in 24 steps is below any number."""
    config = jobs.JobConfig.of(model="mlp-8", targets=1, frozen=("dense_0",))
    found = audit.attack_free(config, jobs.prepare(config))
    assert found.reason == ""
    np.testing.assert_allclose(found.low_db, found.high_db, atol=0.1)
    assert 12 < found.psnr_db.item() < 15  # 12.0 dB without the update
