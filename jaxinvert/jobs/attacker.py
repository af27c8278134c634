"""`Program`: the compiled attack, shared by all jobs that differ only in numeric fields."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxinvert import labels, models
from jaxinvert.attacks import objectives, registry
from jaxinvert.attacks.adaptive import adapt
from jaxinvert.attacks.problem import Problem
from jaxinvert.defenses.recipe import Parameters
from jaxinvert.jobs.automatic import AUTO, SharesFn, closed_form_job, search_for
from jaxinvert.jobs.checks import check_rule, check_task
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.deployment import Deployment, deployment_of
from jaxinvert.jobs.limits import check_lanes
from jaxinvert.nn import at_precision
from jaxinvert.parallel.devices import first_devices
from jaxinvert.priors.generators import load_prior
from jaxinvert.search import Stepwise, over_targets, split_shared
from jaxinvert.trees import explained_share
from jaxinvert.types import Array, Attack, Batch, Key, Observation, Reconstruction, Scalar, SolveFn


def compiled_form(config: JobConfig) -> JobConfig:
    """`config` without the numbers that are arguments of the program; jobs with equal forms share a program."""
    return config.replace(seed=0, steps=0, tv=None, lr=None, settings={}, defense_settings={})


class Traced(NamedTuple):
    """The numbers that a compiled attack takes as arguments.

    Attributes:
      hyperparameters: of the attack, by name.
      horizon: number of steps over which the learning rate decays.
      defense: the defense's parameters granted to an adaptive attacker, by full name; else empty.
    """

    hyperparameters: Mapping[str, Scalar]
    horizon: Scalar
    defense: Parameters


class Program:
    """The compiled functions of an attack, for all jobs with one `compiled_form`; each compiles at its first call.

    A program contains no private example, so the attacker's side may hold it.

    Args:
      config: any of the jobs.
      model: the clients' network, with the layers that their defense adds.
      told: changes the problem that the attack is built for; by default it is unchanged.
    """

    def __init__(
        self,
        config: JobConfig,
        model: models.Model,
        told: Callable[[Problem], Problem] = lambda problem: problem,
    ) -> None:
        check_task(config.attacker, model.task)
        self.config = compiled_form(config)
        self.model = model
        self._told = told
        self._deployment: Deployment = deployment_of(self.config, model)
        self.restore_labels: Callable[[Key, Observation], Array] = jax.jit(self._restore_labels)
        self._over_jobs: dict[int | None, Stepwise] = {}
        self._closed_forms: dict[str, Program] = {}

    @cached_property
    def problem(self) -> Problem:
        """The problem that the attack is built for: the attacker's simulation of the client, and the network."""
        config, deployment = self.config, self._deployment
        generator = config.attacker.generator_file
        return self._told(
            Problem(
                deployment.simulated_update(),
                self.model,
                config.num_private,
                joint_labels=config.attacker.labels == "joint",
                sent_statistics=deployment.simulated_statistics() if config.granted.batch_stats else None,
                gradient_chunk=config.client.gradient_chunk,
                one_epoch=deployment.simulated_epoch(),
                num_epochs=config.client.local_epochs,
                prior=generator and load_prior(generator, input_shape=self.model.input_shape),
            )
        )

    @property
    def num_traces(self) -> int:
        """The number of attack programs that were traced, which equals the number compiled."""
        return sum(search.num_traces for search in self._over_jobs.values())

    @cached_property
    def iterates(self) -> bool:
        """Whether the attack is iterative rather than a closed form."""
        config = self.config
        parameters = config.defense.parameters if config.attacker.adaptive else {}
        traced = Traced(config.attacker.hyperparameters, config.search.steps, parameters)
        return isinstance(self._build(traced), Attack)

    @cached_property
    def joins_jobs(self) -> bool:
        """Whether several jobs can be lanes of one search: no closed forms, not `auto`, no multiple devices."""
        return self.iterates and self.config.attacker.attack != AUTO and self.search().mesh is None

    def search(self, num_jobs: int | None = None) -> Stepwise:
        """The search over all targets and restarts, for one job or for `num_jobs` jobs as lanes."""
        if num_jobs not in self._over_jobs:
            job, settings = self.config, self.config.search
            targets = job.data.targets * (num_jobs or 1)
            devices = settings.devices or 1
            check_lanes(targets, settings.restarts, job.num_private, self.model.input_shape, devices=devices)
            self._over_jobs[num_jobs] = Stepwise(
                lambda traced: cast(Attack, self._build(traced)),
                num_restarts=settings.restarts,
                chunk_size=settings.chunk,
                devices=None if settings.devices in (None, 1) else first_devices(settings.devices),
                num_jobs=num_jobs,
            )
        return self._over_jobs[num_jobs]

    def by_closed_form(self, name: str) -> "Program":
        """The program of a closed form on the same clients, used by `auto`."""
        if name not in self._closed_forms:
            self._closed_forms[name] = Program(closed_form_job(self.config, name), self.model, self._told)
        return self._closed_forms[name]

    @cached_property
    def solve(self) -> jax.stages.Wrapped:
        """The closed form on all targets, `(key, observations, hyperparameters) -> reconstructions`."""

        def solve(key: Key, observations: Observation, hyperparameters: Mapping[str, Scalar]) -> Reconstruction:
            attack = cast(SolveFn, self._build(Traced(hyperparameters, self.config.search.steps, {})))
            return over_targets(attack)(key, observations)

        return jax.jit(solve)

    @cached_property
    def shares_explained(self) -> SharesFn:
        """`(observations, inputs [T, B, ...], labels [T, B] or None) -> [T]`: see `trees.explained_share`.

        The share of each update that the simulated client sends for the inputs. Without labels, the one class for all
        examples that explains the update best is taken.
        """

        def share(target: Observation, inputs: Array, labels: Array | None) -> Array:
            def with_labels(labels: Array) -> Array:
                return explained_share(
                    self.problem.client_update(target.params, Batch(inputs, labels)), target.update
                )

            if labels is not None:
                return with_labels(labels)
            of_one_class = jnp.tile(jnp.arange(self.model.num_classes, dtype=jnp.int32)[:, None], len(inputs))
            return jnp.max(jax.lax.map(with_labels, of_one_class))

        def shares(observations: Observation, inputs: Array, labels: Array | None) -> Array:
            shared, per_target = split_shared(observations)
            return jax.lax.map(lambda one: share(one[0]._replace(**shared), *one[1:]), (per_target, inputs, labels))

        return jax.jit(shares)

    def _build(self, traced: Traced) -> Attack | SolveFn:
        """Builds the attack; an adaptive attacker replaces the simulated client and the objective."""
        problem = self.problem
        if self.config.attacker.adaptive:
            simulated, objective = adapt(
                self._deployment.defenses,
                self._deployment.facts(),
                traced.defense,
                problem.client_update,
                problem.objective or objectives.cosine,
            )
            problem = problem._replace(client_update=simulated, objective=objective)
        attacker = self.config.attacker
        entry = registry.REGISTRY[search_for(self.config)] if attacker.attack == AUTO else attacker.entry
        built = entry.build(problem, traced.hyperparameters, traced.horizon)
        if not isinstance(built, Attack):
            return at_precision(built, "highest")
        precision, (init, step, decode) = self.config.search.precision, built
        return Attack(at_precision(init, precision), at_precision(step, precision), at_precision(decode, precision))

    def _restore_labels(self, key: Key, observations: Observation) -> Array:
        check_rule(self.config.chosen_label_rule, self.model.task)
        labels.check_head_is_sent(self.config.chosen_label_rule, self.model.calibration)
        if self.model.task == "multi-label":
            shared, per_target = split_shared(observations)
            return jax.lax.map(
                lambda target: labels.several_labels(target._replace(**shared), head=self.model.head), per_target
            )
        problem = labels.LabelProblem(
            self.model.apply, self.model.head, self.model.input_shape, key, self.model.calibration
        )
        rule = labels.rule_for(self.config.chosen_label_rule, problem)
        shared, per_target = split_shared(observations)

        def restore(target: Observation) -> Array:
            return labels.labels_from_counts(rule(target._replace(**shared)), self.config.num_private)

        return jax.lax.map(restore, per_target)
