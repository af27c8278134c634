"""What jobs that differ only in numbers share: one network, and every function of it compiled once."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import jax

from jaxinvert import labels, models
from jaxinvert.attacks import adaptive
from jaxinvert.attacks.recipe import Setting
from jaxinvert.defenses.registry import Numbers
from jaxinvert.jobs.automatic import AUTO, closed_form_job
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.deployment import client_update, defense_setting, sent_statistics, sent_update
from jaxinvert.parallel.devices import first_devices
from jaxinvert.priors.generators import load_prior
from jaxinvert.search import Stepwise, over_targets, split_shared
from jaxinvert.types import Array, ArrayTree, Attack, Batch, Key, Observation, Params, Reconstruction, Update


def compiled_form(config: JobConfig) -> JobConfig:
    """`config` without the numbers that a compiled program takes as arguments: equal for jobs that share one."""
    return replace(config, seed=0, steps=0, tv=None, lr=None, settings={}, defense_settings={})


class Program:
    """The functions behind jobs of one `compiled_form`; each compiles when first called, and then no more.

    It holds no private example: what the attacker's side is handed may hold it.

    Args:
      config: any of the jobs.
      model: the clients' network, with what their defense adds to it.
      attacker: changes what the attack is told; by default nothing.
    """

    def __init__(
        self,
        config: JobConfig,
        model: models.Model,
        attacker: Callable[[Setting], Setting] = lambda setting: setting,
    ) -> None:
        self.config = compiled_form(config)
        self._attacker = attacker
        self.model = model
        self.init: Callable[[Key], Params] = jax.jit(model.init)
        self.send: Callable[[Key | None, Numbers, Params, Batch, Key], Update] = jax.jit(
            lambda order_key, numbers, params, batch, key: sent_update(
                self.config, model, numbers, order_key=order_key
            )(params, batch, key)
        )
        self.sent_statistics: Callable[[Key | None, Params, Batch], ArrayTree] = jax.jit(
            lambda order_key, params, batch: sent_statistics(self.config, model, order_key=order_key)(params, batch)
        )
        self.restore_labels: Callable[[Key, Observation], Array] = jax.jit(self._restore_labels)
        self._over_jobs: dict[int | None, Stepwise] = {}
        self._closed_forms: dict[str, Program] = {}

    @cached_property
    def setting(self) -> Setting:
        """What the attack is told: the attacker's own simulation of the client, and the network."""
        told = Setting(
            client_update(self.config, self.model),
            self.model,
            self.config.num_private,
            joint_labels=self.config.labels == "joint",
            sent_statistics=sent_statistics(self.config, self.model) if self.config.granted.batch_stats else None,
            gradient_chunk=self.config.gradient_chunk,
            prior=load_prior(self.config.generator_file, input_shape=self.model.input_shape)
            if self.config.generator_file
            else None,
        )
        return self._attacker(told)

    @property
    def num_traces(self) -> int:
        """How many attack programs were traced, which is how many were compiled."""
        return sum(search.num_traces for search in self._over_jobs.values())

    @cached_property
    def iterates(self) -> bool:
        """Whether the attack takes steps, or is a closed form."""
        config = self.config
        numbers = config.defense_numbers() if config.adaptive else {}
        return isinstance(self._build(config.hyperparameters(), config.steps, numbers), Attack)

    @cached_property
    def joins_jobs(self) -> bool:
        """Whether several jobs can be lanes of one search: not closed forms, nor what may take one."""
        return self.iterates and self.config.attack != AUTO and self.search().mesh is None

    def search(self, num_jobs: int | None = None) -> Stepwise:
        """The attack on all targets from all starts, of one job or side by side for `num_jobs`."""
        if num_jobs not in self._over_jobs:
            self._over_jobs[num_jobs] = Stepwise(
                lambda traced: cast(Attack, self._build(**traced)),
                num_restarts=self.config.restarts,
                chunk_size=self.config.chunk,
                devices=None if self.config.devices in (None, 1) else first_devices(self.config.devices),
                num_jobs=num_jobs,
            )
        return self._over_jobs[num_jobs]

    def by_closed_form(self, name: str) -> "Program":
        """That of a closed form in place of the attack, on the same clients."""
        if name not in self._closed_forms:
            self._closed_forms[name] = Program(closed_form_job(self.config, name), self.model, self._attacker)
        return self._closed_forms[name]

    @cached_property
    def solve(self) -> jax.stages.Wrapped:
        """The closed form on all targets, `(key, observations, hyperparameters) -> reconstructions`."""

        def solve(key: Key, observations: Observation, hyperparameters: dict[str, Any]) -> Reconstruction:
            return over_targets(cast(Any, self._build(hyperparameters, self.config.steps, {})))(key, observations)

        return jax.jit(solve)

    def _build(self, hyperparameters: dict[str, Any], horizon: Any, defense: Numbers) -> Any:
        """The attack; where it adapts, `defense` holds the numbers that the attacker was granted."""
        setting, config = self.setting, self.config
        if config.adaptive:
            simulated, objective = adaptive.adapt(
                config.defense,
                defense_setting(config, self.model),
                defense,
                setting.client_update,
                setting.objective,
            )
            setting = setting._replace(client_update=simulated, objective=objective)
        return config.recipe.build(setting, hyperparameters, horizon)

    def _restore_labels(self, key: Key, observations: Observation) -> Array:
        rule_setting = labels.Setting(self.model.apply, self.model.head, self.model.input_shape, key)
        rule = labels.REGISTRY[self.config.chosen_label_rule].factory(rule_setting)
        shared, per_target = split_shared(observations)

        def restore(target: Observation) -> Array:
            return labels.labels_from_counts(rule(target._replace(**shared)), self.config.num_private)

        return jax.lax.map(restore, per_target)
