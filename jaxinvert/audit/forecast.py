"""How long an audit of simulated clients takes, from a few measured steps, rounds and examples of each setting.

Everything is compiled as the audit compiles it, so a forecast takes about as long as the audit's compilations. What
the audit's folder keeps takes no time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxinvert import jobs
from jaxinvert.audit.attack_free import Compiled, attack_free
from jaxinvert.audit.auditing import most_examples, name_of_figure
from jaxinvert.audit.kept import Store
from jaxinvert.audit.kept_training import name_of_report
from jaxinvert.audit.results import Scenario
from jaxinvert.audit.running import reason
from jaxinvert.audit.utility import train_under
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.automatic import AUTO, search_for

_MEASURED_ROUNDS = 5


class Part(NamedTuple):
    """One part of an audit, and its forecast in seconds, compilation included."""

    what: str
    seconds: float


def forecast(
    settings: Sequence[Scenario],
    *,
    accuracy_rounds: int = 0,
    leakage_rounds: int = 0,
    with_attack_free: bool = False,
    folder: Path | None = None,
) -> Iterator[Part]:
    """Measures one part of an audit after the other; see `audit` for the arguments.

    What an attack `auto` takes is that of its search. The attack without access to the update, whose result is shared
    by the settings, and scores are left out.

    Raises:
      ValueError: for an invalid scenario.
    """
    setup, store = jobs.set_up(next(iter(settings[0].attackers.values()))), folder and Store(folder)
    for setting in settings:
        runs, config, task, own = [], None, None, setup
        for attacker, config in setting.attackers.items():
            begin = time.perf_counter()
            own = jobs.adjusted(setup, config)
            task = jobs.prepare(config, own)
            seconds_prepare = time.perf_counter() - begin
            compiling, running = _attack_seconds(config, task)
            wanted = sum(not _is_kept(store, config, what) for what in ("attack", "random update"))
            runs.append(running)
            total = seconds_prepare + wanted * running + (compiling if wanted else 0.0)
            yield Part(f"{setting.name}, {attacker}: attack and random update", total)
        assert config is not None
        assert task is not None
        # Figure and training are kept as those of the attacker that was worst, which may be any of them.
        each, trained = [*setting.attackers.values()], name_of_report(accuracy_rounds, accuracy_rounds)
        if with_attack_free and not any(_is_kept(store, one, name_of_figure(one)) for one in each):
            yield _measured(f"{setting.name}: attack-free figure", _figure_seconds, config, task)
        if accuracy_rounds and not any(_is_kept(store, one, trained) for one in each):
            training = _measured(
                f"{setting.name}: training for the accuracy", _training_seconds, config, own, accuracy_rounds
            )
            yield training
            if leakage_rounds and training.seconds:
                yield Part(f"{setting.name}: attacks along the training", 2 * leakage_rounds * max(runs))


def _measured(what: str, seconds: Callable[..., float], *arguments: Any) -> Part:
    """A part of the audit, or why the audit will go on without it."""
    try:
        return Part(what, seconds(*arguments))
    except Exception as error:  # as in the audit
        return Part(f"{what}: none, as {reason(error)}", 0.0)


def _attack_seconds(config: JobConfig, task: jobs.Task) -> tuple[float, float]:
    """Seconds of compilation, and of one attack on all clients."""
    program = task.program
    if config.attacker.attack == AUTO:
        config = config.replace(attack=search_for(config))
        program = jobs.Program(config, task.model)
    first = jobs.execute(config.replace(steps=min(1, config.search.steps)), program, task.observations)
    if first.num_steps == 0:
        return first.seconds_compile, first.seconds_run
    few = min(config.search.steps, max(1, int(1 / max(first.seconds_run, 1e-3))))
    timed = jobs.execute(config.replace(steps=few), program, task.observations)
    return first.seconds_compile, timed.seconds_run * (config.search.steps + 1) / (few + 1)


def _figure_seconds(config: JobConfig, task: jobs.Task) -> float:
    """Seconds of the attack-free figure: of one client's first example, once with the compilation."""
    one_client = task._replace(truth=jax.tree.map(lambda leaf: leaf[:1], task.truth))
    compiled: Compiled = {}
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        attack_free(config, one_client, most_examples=1, compiled=compiled)
        seconds.append(time.perf_counter() - begin)
    examples = config.data.targets * min(most_examples(config), config.num_private)
    return seconds[0] + (examples - 1) * seconds[1]


def _training_seconds(config: JobConfig, setup: jobs.Setup, num_rounds: int) -> float:
    """Seconds of a training: of its first rounds, the first of which compiles."""
    times = [time.perf_counter()]
    for _ in train_under(config, setup, num_rounds=min(_MEASURED_ROUNDS, num_rounds)):
        times.append(time.perf_counter())
    measured, total = len(times) - 2, times[-1] - times[0]
    per_round = (times[-1] - times[2]) / max(1, measured - 1) if measured > 1 else 0.0
    return total + (num_rounds - measured) * per_round


def _is_kept(store: Store | None, config: JobConfig, what: str) -> bool:
    return store is not None and store.has(jobs.job_name(config), what)
