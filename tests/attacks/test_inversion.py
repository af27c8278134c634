"""`invert`, and what it takes to add an attack: one function, one line that registers it."""

import json
import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinvert import attacks, audit, cli, clients, jobs, models, observe, search, sweeps
from jaxinvert.attacks import Problem, declare, inversion, matching, objectives, registry
from jaxinvert.attacks.problem import is_declared
from jaxinvert.priors import generators
from jaxinvert.types import Attack, Scalar
from tests.conftest import SHAPE


@declare("labels", adapts=True)
def plain_matching(problem: Problem, *, learning_rate: Scalar = 0.05, horizon: Scalar = 100) -> Attack:
    """Cosine matching by Adam, as short as an attack can be. The second sentence is for those who read on."""
    return matching.gradient_matching(
        problem.client_update,
        objective=problem.objective or objectives.cosine,
        optimizer=optax.adam(learning_rate / jnp.sqrt(horizon)),
        parametrization=problem.pixels(),
        name="plain_matching",
    )


@pytest.fixture
def registered():
    registry.register(plain_matching)
    yield "plain-matching"
    del registry.REGISTRY["plain-matching"]


@pytest.fixture
def problem(victim):
    return Problem(victim.client_update, victim.model, 1)


def test_the_registry_reads_signature_docstring_and_declaration():
    entry = registry.entry_of(plain_matching)
    assert entry.name == "plain-matching"
    assert entry.summary == "Cosine matching by Adam, as short as an attack can be"
    assert entry.hyperparameters == {"learning_rate": 0.05}
    assert entry.takes_horizon
    assert entry.needs == ("params", "update", "num_examples", "labels")
    assert entry.traits.adapts
    assert not entry.traits.generates


def test_an_attack_must_take_a_problem_and_have_defaults():
    with pytest.raises(ValueError, match="attack\\(problem"):
        registry.entry_of(lambda: None)

    def without_default(problem: Problem, *, tv: Scalar) -> Attack: ...

    with pytest.raises(ValueError, match="hyperparameter tv needs a default"):
        registry.entry_of(without_default)

    def spectral(problem: Problem) -> Attack: ...

    with pytest.raises(ValueError, match="another attack is already registered as 'spectral'"):
        registry.register(spectral)


@pytest.mark.slow
def test_a_registered_attack_runs_by_name_everywhere(registered, tmp_path, capsys):
    small = ["--attack", registered, "--steps", "3", "--restarts", "1", "--model", "mlp-4", "--targets", "2"]
    assert cli.main(["invert", *small, "--lr", "0.1", "--out", str(tmp_path / "invert")]) == 0
    summary = json.loads((tmp_path / "invert" / "summary.json").read_text())
    assert summary["config"]["settings"] == {"learning_rate": 0.1}
    assert cli.main(["list"]) == 0
    assert "plain-matching" in capsys.readouterr().out

    file = tmp_path / "sweep.yaml"
    file.write_text(
        "{attack: plain-matching, steps: 3, restarts: 1, model: mlp-4, targets: 2, grid: {lr: [0.1, 0.2]}}"
    )
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "sweep")]) == 0
    rows = sweeps.summarize(tmp_path / "sweep")
    assert {row["settings.learning_rate"] for row in rows} == {0.1, 0.2}

    found = audit.audit(
        audit.settings_for(
            jobs.JobConfig.of(attack=registered, steps=3, restarts=1, model="mlp-4", targets=2), ["none", "gaussian"]
        ),
        num_candidates=4,
    )
    assert [[*one.attackers] for one in found] == [["naive"], ["naive", "adaptive"]]


@pytest.mark.slow
def test_it_is_the_search_that_it_stands_for(problem, victim):
    found = attacks.invert(
        attacks.inverting_gradients, problem, victim.observation, key=jax.random.key(1), num_steps=5, num_restarts=3
    )
    by_hand = search.best_of(
        search.run(attacks.inverting_gradients(problem, horizon=5), num_steps=5), num_restarts=3
    )(jax.random.key(1), victim.observation)
    np.testing.assert_allclose(found.info["restart_losses"], by_hand.info["restart_losses"], rtol=1e-4)
    assert found.inputs.shape == SHAPE
    assert found.info["attack_loss"].shape == (6,)


@pytest.mark.slow
def test_stacked_observations_are_attacked_one_by_one(problem, victims):
    _, observations = victims
    found = attacks.invert(attacks.spectral, problem, observations, key=jax.random.key(1), num_steps=3)
    assert found.inputs.shape == (3, *SHAPE)
    assert found.attack_loss.shape == (3,)
    alone = search.split_shared(observations)
    one = jax.tree.map(lambda leaf: leaf[2], alone[1])._replace(**alone[0])
    key = jax.random.split(jax.random.key(1), 3)[2]
    single = attacks.invert(attacks.spectral, problem, one, key=key, num_steps=3)
    np.testing.assert_allclose(single.attack_loss, found.attack_loss[2], rtol=1e-4)


def test_other_keys_observations_and_hyperparameters_do_not_compile_anew(problem, victims):
    _, observations = victims
    inversion._solve.clear_cache()
    for seed, tv in enumerate((1e-2, 1e-3, 0)):
        attacks.invert(
            attacks.inverting_gradients,
            problem,
            observations,
            key=jax.random.key(seed),
            num_steps=2,
            hyperparameters={"tv": tv},
        )
    assert inversion._solve._cache_size() == 1


def test_a_generator_is_an_argument_of_the_program_not_a_constant(problem, victim):
    generator = generators.convolutional(output_shape=SHAPE[1:], num_latents=4, width=8)
    inversion._solve.clear_cache()
    losses = []
    for seed in range(2):
        prior = generators.Prior(generator, generator.init(jax.random.key(seed)))
        found = attacks.invert(
            attacks.gias_latents,
            problem._replace(prior=prior),
            victim.observation,
            key=jax.random.key(0),
            num_steps=2,
        )
        losses.append(float(found.attack_loss))
    assert losses[0] != losses[1]
    assert inversion._solve._cache_size() == 1


def test_a_closed_form_takes_no_steps(victim):
    model = models.create("mlp-8", input_shape=SHAPE[1:], num_classes=3)
    client = clients.fedsgd(model.loss)
    observation = observe(client, model.init(jax.random.key(0)), victim.batch)
    problem = Problem(client, model, 1)
    found = attacks.invert(attacks.dense_layer, problem, observation, key=jax.random.key(0))
    np.testing.assert_allclose(found.inputs, victim.batch.inputs, atol=1e-4)
    with pytest.raises(ValueError, match="closed form and takes no steps, but num_steps is 3"):
        attacks.invert(attacks.dense_layer, problem, observation, key=jax.random.key(0), num_steps=3)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"num_steps": None}, "is iterative: it needs num_steps"),
        ({}, {"hyperparameters": {"tvv": 1.0}}, r"has no tvv; it has \['learning_rate', 'tv'\]"),
        ({"labels": None}, {}, "needs observation.labels"),
        ({"num_examples": 2}, {}, "the problem has 1 examples, but the update is of 2"),
        ({"update": {"first": 1.0}}, {}, "more axes than the parameters|lacks"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(problem, victim, change, options, message):
    observation = victim.observation._replace(**change)
    with pytest.raises(ValueError, match=message):
        attacks.invert(
            attacks.inverting_gradients, problem, observation, key=jax.random.key(0), **{"num_steps": 2, **options}
        )


def test_joint_labels_need_none(problem, victim):
    found = attacks.invert(
        attacks.inverting_gradients,
        problem._replace(joint_labels=True),
        victim.observation._replace(labels=None),
        key=jax.random.key(0),
        num_steps=2,
    )
    assert found.labels.shape == (1, 3)


def test_the_guide_for_contributors_runs_as_printed():
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(textwrap.dedent(code), "CONTRIBUTING.md", "exec"), {})
    assert registry.REGISTRY.pop("plain-matching").hyperparameters == {"learning_rate": 0.05}


def test_what_is_exported_and_declared_is_registered():
    exported = [getattr(attacks, name) for name in (*attacks.closed_form.__all__, *attacks.optimization.__all__)]
    declared = {one for one in exported if is_declared(one)} - {attacks.tableak}
    assert declared <= {entry.attack for entry in (*registry.REGISTRY.values(), *registry.TEXT.values())}
    assert set(registry.TEXT) == {"dager", "tag", "lamp", "tiger"}


def test_every_attack_names_itself_in_one_file():
    """A new attack is one file and one line: the registry holds no adapter and no retyped default."""
    text = Path(registry.__file__).read_text(encoding="utf-8")
    for entry in registry.REGISTRY.values():
        for name in entry.hyperparameters:
            assert f'"{name}"' not in text
