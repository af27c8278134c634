"""Runs the attack of a job on images with its null controls, and scores them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit import controls
from jaxinvert.audit.kept import Store
from jaxinvert.audit.running import Show, attack, found_in
from jaxinvert.audit.scoring import Ground, Scores, score
from jaxinvert.defenses.registry import NONE
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.automatic import AUTO, search_for


def attack_and_score(
    config: JobConfig,
    task: jobs.Task,
    ground: Ground,
    *,
    blind: np.ndarray | None = None,
    with_lpips: bool = False,
    known: dict[tuple[str, bytes], Scores] | None = None,
    store: Store | None = None,
    on_progress: Show = lambda what, progress: None,
) -> tuple[JobConfig, dict[str, Any], Scores, dict[str, Scores]]:
    """Runs the attack of a job and its controls, and returns an entry of `found` in `judged`.

    Args:
      config: the job.
      task: the task prepared for this job.
      ground: truth and candidates.
      blind: `[T, B, H, W, C]` reconstructions of the attack without access to the update, see `blind_attack`.
      with_lpips: whether to measure LPIPS, too.
      known: cache of the scores of mean images by the labels used, for jobs that share `ground`; these are added.
      store: keeps the reconstructions.
      on_progress: called repeatedly with the current step.
    """
    scored, known = partial(score, ground=ground, with_lpips=with_lpips), {} if known is None else known
    key = jobs.stream(config.seed, jobs.Stream.NULL_UPDATES)
    execution = attack("attack", config, task.program, task.observations, store, on_progress)
    summary = jobs.measure(config, task, execution).summary
    found, used = found_in(execution)
    noise = controls.random_update(key, task.observations)
    on_noise, used_on_noise = found_in(attack("random update", config, task.program, noise, store, on_progress))

    def of_mean(name: str, mean: Callable[[Ground], np.ndarray]) -> Scores:
        named = (name, b"" if used is None else np.asarray(used).tobytes())
        if named not in known:
            known[named] = scored(mean(ground), used)
        return known[named]

    of_controls = {
        "mean image": of_mean("mean image", controls.mean_image),
        "random update": scored(on_noise, used_on_noise),
    }
    if config.granted.labels:
        of_controls["class mean"] = of_mean("class mean", controls.class_mean)
    if blind is not None:
        of_controls["prior only"] = scored(blind, used)
    if config.data.targets > 1:
        of_controls["other client"] = scored(controls.other_client(found), used)
    return config, summary, scored(found, used), of_controls


def blind_attack(
    config: JobConfig, task: jobs.Task, store: Store | None, on_progress: Show, known: dict[str, np.ndarray]
) -> np.ndarray | None:
    """Reconstructions of the attack without access to the update, that is, from its start and image prior alone.

    They are the same for all defenses, unless the attack restores labels first.

    Args:
      config: the job.
      task: the task prepared for this job.
      store: keeps the result.
      on_progress: called repeatedly with the current step.
      known: cache of results by job name; this result is added.

    Returns:
      `[T, B, H, W, C]`, or `None` for attacks that are not iterative or do not simulate clients.
    """
    if not task.program.iterates or not config.attacker.entry.traits.simulates:
        return None
    if config.attacker.attack == AUTO:  # a closed form would read the update
        config = config.replace(attack=search_for(config))
    if config.attacker.attack in ("spectral", "whitened"):
        # The weight of its prior is proportional to the mismatch with the update. Without an update only rounding
        # errors move the search, and Adam scales them up like any gradient: use the start as the prior's image.
        config = config.replace(steps=0)
    if config.granted.labels:
        config = config.replace(defense=NONE, defense_settings={}, adaptive=False)
    name = jobs.job_name(config)
    if name not in known:
        program = jobs.Program(config, task.model, told=controls.blind)
        known[name], _ = found_in(attack("prior only", config, program, task.observations, store, on_progress))
    return known[name]
