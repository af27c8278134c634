"""Every attack lowers for CUDA and TPU, on a machine that has neither; float64 solvers run on the host of a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import jobs, search
from jaxinvert.attacks import TextProblem, registry, tableak
from jaxinvert.attacks.closed_form import precision
from jaxinvert.attacks.closed_form.dager import dager
from jaxinvert.attacks.closed_form.known_patches import known_patches
from jaxinvert.clients import fedsgd
from jaxinvert.jobs.execute import search_arguments
from jaxinvert.schema import Column
from jaxinvert.types import Attack, Observation
from tests.attacks.closed_form.test_dager import DECODER, ENCODER
from tests.test_contracts import setting_of

ON_THE_HOST = {"april", "patch-embedding", "exact-batch", "spear", "rgap"}
"""Registered attacks with a solver in float64."""


@pytest.fixture
def host_calls(monkeypatch):
    """Counts host callbacks and replaces them by zeros: jax lowers callbacks only for a platform that is there."""
    calls = []

    def called(function, outputs, *operands, vmap_method):
        assert vmap_method == "sequential"
        calls.append(function)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs)

    monkeypatch.setattr(jax, "pure_callback", called)
    return calls


def precisions(lowered):
    """Whether each matrix product and convolution of a program has the highest precision; those of float64 have."""
    products = [
        line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line or ".convolution(" in line
    ]
    return {"HIGHEST" in line or "xf64>" in line for line in products}


def check_lowers(solve, *arguments):
    """The program is traced once and lowered for both; all products are precise, and a TPU has nothing in float64."""
    traced = jax.jit(solve).trace(*arguments)
    assert precisions(traced.lower(lowering_platforms=("cuda",))) <= {True}
    lines = traced.lower(lowering_platforms=("tpu",)).as_text().splitlines()
    # Constants of the branch that a TPU does not run stand unused in the program.
    assert not [line for line in lines if "f64" in line and "stablehlo." in line and "stablehlo.constant" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.REGISTRY)
def test_a_registered_attack_lowers(name, victim, victims, host_calls):
    entry = registry.REGISTRY[name]
    problem, observations = setting_of(name, victim, victims)
    shared, per_target = search.split_shared(observations)
    observation = jax.tree.map(lambda leaf: leaf[0], per_target)._replace(**shared)
    hyperparameters = {key: jnp.float32(value) for key, value in entry.hyperparameters.items()}

    def solve(key, observation, hyperparameters):
        built = entry.build(problem, hyperparameters, 10.0)
        return (search.run(built, num_steps=2) if isinstance(built, Attack) else built)(key, observation)

    check_lowers(solve, jax.random.key(0), observation, hyperparameters)
    assert bool(host_calls) == (name in ON_THE_HOST)


@pytest.mark.slow
@pytest.mark.parametrize("model", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_attacks_on_text_lower(model, host_calls):
    params = model.init(jax.random.key(0))
    solve = dager(TextProblem(fedsgd(model.loss_fn), model, 2))
    check_lowers(lambda observation: solve(None, observation), Observation(params, params))
    assert host_calls


def test_an_attack_on_records_lowers(victim):
    numbers = tuple(Column(f"column {i}", low=0, high=1) for i in range(34))
    schema = (Column("color", ("red", "green")), *numbers)
    problem = victim.problem._replace(schema=schema)
    check_lowers(tableak(problem, num_members=2, num_steps=2), jax.random.key(0), victim.observation)


def test_patches_are_recognized_on_the_host(host_calls):
    update = {"params": {"patches": {"kernel": jnp.ones((12, 5)), "bias": jnp.ones(5)}}}
    check_lowers(known_patches, update, jnp.ones((2, 4, 4, 3)))
    assert host_calls


def test_the_host_solves_as_the_platform_does(monkeypatch):
    """Under vmap, with a traced number that the solver uses beside its arguments; 1 + 1e-12 - 1 is 0 in float32."""

    def found(scale, matrix, number):
        def solve(matrix, number):
            sizes = jnp.linalg.svd(scale * matrix @ matrix)[1]
            return {"sizes": sizes, "small": (jnp.ones(2) + 1e-12) - 1, "number": number + 1}

        return precision.in_float64(solve)(matrix, number)

    arguments = (jnp.arange(1.0, 4.0), jax.random.normal(jax.random.key(0), (3, 4, 4)), jnp.arange(3))
    expected = jax.jit(jax.vmap(found))(*arguments)
    calls, callback = [], jax.pure_callback
    monkeypatch.setattr(jax, "pure_callback", lambda *args, **options: calls.append(1) or callback(*args, **options))
    monkeypatch.setattr(precision, "_WITH_FLOAT64", ("cuda",))
    on_host = jax.jit(jax.vmap(found))(*arguments)
    assert calls
    assert on_host["sizes"].dtype == jnp.float32
    assert on_host["number"].dtype == jnp.int32
    np.testing.assert_allclose(on_host["small"], 1e-12, rtol=1e-3)
    for name, values in expected.items():
        np.testing.assert_allclose(on_host[name], values, rtol=1e-6)
    one = jax.tree.map(lambda leaf: leaf[1], arguments)
    np.testing.assert_allclose(found(*one)["sizes"], expected["sizes"][1], rtol=1e-6)  # outside of any program


@pytest.mark.parametrize(("name", "highest"), [("inverting-gradients", {False}), ("dlg", {True})])
def test_the_caller_chooses_the_precision_of_all_but_line_searches(name, highest, victim):
    entry = registry.REGISTRY[name]
    solve = search.run(entry.build(victim.problem), num_steps=2)
    with jax.default_matmul_precision("default"):
        traced = jax.jit(solve).trace(jax.random.key(0), victim.observation)
    assert precisions(traced.lower(lowering_platforms=("cuda",))) == highest


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_a_job_has_its_precision_and_closed_forms_the_highest(precision):
    config = jobs.JobConfig.of(model="mlp", size=8, targets=1, restarts=1, steps=2, precision=precision)
    task = jobs.prepare(config)
    key, observations, traced = search_arguments(config, task.program, task.observations)
    stepwise = task.program.search()
    lanes = stepwise.form(key, observations, traced)
    assert precisions(stepwise._advance.lower(lanes, observations, traced, 0, 0)) == {precision == "highest"}
    closed_form = task.program.by_closed_form("dense-layer")
    assert precisions(closed_form.solve.lower(key, observations, {})) <= {True}
    clients = jobs.set_up(config).clients
    batch = jax.tree.map(lambda leaf: leaf[0], task.truth)
    sent = clients.send.lower(None, {}, observations.params, batch, key)
    assert precisions(sent) == {precision == "highest"}
