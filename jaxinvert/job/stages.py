"""The three stages of a job, and what passes between them.

`prepare` draws a model and simulates the clients; `execute` attacks what they sent, looking only at the
observations; `measure` is where truth and reconstruction meet, after the attack has ended. Jobs that differ only in
numbers share a `Setup`, and are executed side by side by `execute_jobs`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import data, metrics, models, threat_models
from jaxinvert.job import environment
from jaxinvert.job.config import JobConfig, assumptions, secret_order
from jaxinvert.job.program import Program
from jaxinvert.observe import check_batch, observe_targets
from jaxinvert.search import Progress, check_targets
from jaxinvert.types import Batch, ClientUpdateFn, Key, Observation, Params, Reconstruction, Update


class Setup(NamedTuple):
    """What jobs share that differ only in numbers (`compiled_form`).

    Attributes:
      dataset: the victims' images.
      facts: of the checkpoint; empty without.
      program: network and compiled functions.
    """

    dataset: data.Dataset
    facts: dict[str, Any]
    program: Program


class Task(NamedTuple):
    """A prepared job: what is compiled, what the server sees, and the truth, which no attack is handed.

    Attributes:
      program: the clients' network and what is compiled for it.
      observations: one per client, leading axis `T`.
      truth: the private batches, `inputs [T, B, H, W, C]`, `labels [T, B]`.
      class_names: of the labels.
    """

    program: Program
    observations: Observation
    truth: Batch
    class_names: tuple[str, ...]

    @property
    def model(self) -> models.Model:
        """The clients' network."""
        return self.program.model


class Outcome(NamedTuple):
    """What came out of a job.

    Attributes:
      summary: everything that is written to `summary.json`.
      truth: `[T x B, H, W, C]` float32 in [0, 1].
      reconstruction: the same shape, matched one-to-one to the truth within every batch.
      history: `step [N]` and `best_loss [N, T, R]` of the reports; empty for closed forms.
    """

    summary: dict[str, Any]
    truth: np.ndarray
    reconstruction: np.ndarray
    history: dict[str, np.ndarray]


class Execution(NamedTuple):
    """A finished or interrupted attack, before truth is looked at.

    Lanes were spread over `num_devices`, on each `chunk_size` side by side; a closed form has none.
    """

    reconstructions: Reconstruction
    num_steps: int
    seconds_compile: float
    seconds_run: float
    interrupted: bool
    history: dict[str, np.ndarray]
    num_devices: int = 1
    chunk_size: int | None = None


def set_up(config: JobConfig) -> Setup:
    """Loads the victims and chooses the network.

    Raises:
      ValueError: for unknown names, too few examples, or examples that do not fit the model.
    """
    threat_models.check_needs(config.granted, config.needs, attack=config.attack)
    threat_models.check_needs(config.granted, config.rule_needs, attack=f"label rule {config.chosen_label_rule}")
    dataset = data.load(config.data, split=config.split, size=config.size)
    if min(dataset.images.shape[1:3]) < metrics.SSIM_WINDOW:
        height, width = dataset.images.shape[1:3]
        raise ValueError(
            f"images of {height}x{width} pixels cannot be measured: SSIM needs at least {metrics.SSIM_WINDOW}"
        )
    wanted = config.targets * config.num_private
    if len(dataset.images) < wanted:
        raise ValueError(
            f"{config.targets} targets of {config.num_private} examples need {wanted} images, but {config.data!r} "
            f"split {config.split!r} has {len(dataset.images)}"
        )
    facts = {} if config.checkpoint is None else models.read_facts(config.checkpoint)
    return Setup(dataset, facts, Program(config, _network(config, dataset, facts)))


def prepare(config: JobConfig, setup: Setup | None = None) -> Task:
    """Draws the parameters and runs the clients.

    Args:
      config: the job.
      setup: of a job with the same `compiled_form`; by default its own.

    Raises:
      ValueError: as `set_up`, or for updates that are not finite.
    """
    dataset, _, program = setup or set_up(config)
    model, wanted = program.model, config.targets * config.num_private
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    if config.checkpoint is None:
        params = program.init(key)
    else:
        params = models.load_checkpoint(config.checkpoint, jax.eval_shape(model.init, key))
    flat = Batch(jnp.asarray(dataset.images[:wanted]), jnp.asarray(dataset.labels[:wanted]))
    check_batch(flat, input_shape=model.input_shape, num_classes=model.num_classes)
    truth = jax.tree.map(lambda leaf: leaf.reshape(config.targets, config.num_private, *leaf.shape[1:]), flat)
    client = partial(program.client, secret_order(config))
    earlier_params, earlier_updates, params = _earlier_rounds(config, client, params, truth)
    observations = observe_targets(
        client,
        params,
        truth,
        threat_model=config.granted,
        local_training=config.local_training,
        running_statistics=partial(program.sent_statistics, secret_order(config))
        if config.granted.batch_stats
        else None,
        surrogate=_surrogate(config) if "surrogate" in (*config.needs, *config.rule_needs) else None,
        earlier_params=earlier_params,
        earlier_updates=earlier_updates,
    )
    check_targets(observations)
    return Task(program, observations, truth, dataset.class_names)


def _earlier_rounds(
    config: JobConfig, client: ClientUpdateFn, params: Params, batches: Batch
) -> tuple[Params | None, Update | None, Params]:
    """Parameters `[N, ...]` and updates `[T, N, ...]` of all rounds but the last, whose parameters follow."""
    if config.rounds == 1:
        return None, None, params
    sent, received = [], []
    for _ in range(config.rounds - 1):
        updates = jax.vmap(client, in_axes=(None, 0))(params, batches)
        sent.append(params)
        received.append(updates)
        params = jax.tree.map(lambda p, u: p - config.server_rate * u.mean(axis=0), params, updates)
    earlier_params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)
    earlier_updates = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *received)
    return earlier_params, earlier_updates, params


_MAX_SURROGATES = 2048


def _surrogate(config: JobConfig) -> jax.Array:
    """The attacker's public images: the beginning of the split "train" of the victims' data set."""
    if "train" in config.split or config.split == "all":
        raise ValueError(f"split {config.split!r} may hold the surrogate images, which come from 'train'")
    try:
        return jnp.asarray(data.load(config.data, split="train", size=config.size).images[:_MAX_SURROGATES])
    except ValueError as error:
        raise ValueError(f"threat model {config.threat_model} grants surrogate images: {error}") from error


def _network(config: JobConfig, dataset: data.Dataset, facts: dict[str, Any]) -> models.Model:
    """The clients' network; a checkpoint's facts bring the normalization it was trained with."""
    if (trained := facts.get("model", config.model)) != config.model:
        raise ValueError(f"{config.checkpoint} holds a {trained}, not a {config.model}: name it as the model")
    if not config.normalized and "mean" in facts:
        raise ValueError(f"normalized is False, but {config.checkpoint} was trained on normalized images")
    architecture: dict[str, Any] = {} if config.batch_norm == "eval" else {"batch_norm": config.batch_norm}
    return models.create(
        config.model,
        input_shape=dataset.images.shape[1:],
        num_classes=facts.get("num_classes", dataset.num_classes),
        mean=facts.get("mean", dataset.mean if config.normalized else None),
        std=facts.get("std", dataset.std if config.normalized else None),
        **architecture,
    )


def execute(
    config: JobConfig,
    program: Program,
    observations: Observation,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Execution:
    """Attacks the observations, after restoring labels if that was asked for.

    An interrupt ends the search and keeps the best so far.

    Args:
      config: the job.
      program: for it.
      observations: all that the attacker sees; truth is not an argument.
      on_progress: called about once a second.
    """
    observations = _with_restored_labels(config, program, observations)
    if not program.iterates:
        return _solve(config, program, observations)
    search = program.search()
    steps, losses, progress, interrupted = [], [], None, False
    try:
        for progress in search(_key(config), observations, _traced(config), num_steps=config.steps):
            steps.append(progress.step)
            losses.append(progress.best_loss)
            on_progress(progress)
    except KeyboardInterrupt:
        if progress is None:  # nothing was computed yet
            raise
        interrupted = True
    assert progress is not None
    with environment.uninterruptible():
        reconstructions = jax.block_until_ready(progress.reconstruct())
    return Execution(
        reconstructions=reconstructions,
        num_steps=progress.step,
        seconds_compile=search.seconds_compile,
        seconds_run=progress.seconds,
        interrupted=interrupted,
        history={"step": np.array(steps), "best_loss": np.stack(losses)},
        num_devices=config.devices or 1,
        chunk_size=search.lanes_side_by_side(observations),
    )


def execute_jobs(
    configs: Sequence[JobConfig],
    program: Program,
    observations: Sequence[Observation],
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Execution]:
    """Attacks the observations of jobs that share a program and a number of steps, as lanes of one compiled call.

    Losses are reported at fixed steps, so that executions repeat bit for bit. An interrupt is passed on.

    Args:
      configs: `J` jobs.
      program: for all of them.
      observations: one of each job.
      on_progress: called after every report.
    """
    if not program.iterates or program.search().mesh is not None:
        return [execute(config, program, seen) for config, seen in zip(configs, observations)]
    num_steps = configs[0].steps
    search, steps, losses, progress = program.search(len(configs)), [], [], None
    reports = {"num_steps": num_steps, "report_every": max(1, -(-num_steps // _REPORTS_PER_JOB))}
    for progress in search(*_side_by_side(configs, program, observations), **reports):
        steps.append(progress.step)
        losses.append(progress.best_loss)
        on_progress(progress)
    assert progress is not None
    reconstructions = jax.block_until_ready(progress.reconstruct())
    return [
        Execution(
            reconstructions=jax.tree.map(lambda leaf, j=j: leaf[j], reconstructions),
            num_steps=progress.step,
            seconds_compile=search.seconds_compile / len(configs),
            seconds_run=progress.seconds / len(configs),
            interrupted=False,
            history={"step": np.array(steps), "best_loss": np.stack(losses)[:, j]},
        )
        for j in range(len(configs))
    ]


def peak_bytes(configs: Sequence[JobConfig], program: Program, observations: Sequence[Observation]) -> int:
    """Memory of the program behind `execute_jobs` at its peak, in bytes; 0 for closed forms. Compiles."""
    if not program.iterates:
        return 0
    return program.search(len(configs)).peak_bytes(*_side_by_side(configs, program, observations))


_REPORTS_PER_JOB = 20


def _side_by_side(
    configs: Sequence[JobConfig], program: Program, observations: Sequence[Observation]
) -> tuple[Key, Observation, dict[str, Any]]:
    """Keys, observations and numbers of jobs, stacked."""
    ready = [_with_restored_labels(config, program, seen) for config, seen in zip(configs, observations)]
    if "surrogate" not in program.config.needs:  # it was for the label rule: too large to hand on for every job
        ready = [seen._replace(surrogate=None) for seen in ready]
    jobs = [(_key(config), seen, _traced(config)) for config, seen in zip(configs, ready)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *jobs)


def _key(config: JobConfig) -> Key:
    """What the attack draws its starts from."""
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def _traced(config: JobConfig) -> dict[str, Any]:
    """The numbers that the compiled attack takes as arguments."""
    return {"hyperparameters": config.hyperparameters(), "horizon": config.steps}


def _with_restored_labels(config: JobConfig, program: Program, observations: Observation) -> Observation:
    """Puts labels that are read off the updates in place of the withheld ones, if asked for; ascending per batch."""
    if config.labels != "restored":
        return observations
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    return observations._replace(labels=program.restore_labels(key, observations))


def measure(config: JobConfig, task: Task, execution: Execution) -> Outcome:
    """Compares the reconstructions with the truth, one-to-one within every batch."""
    found = np.asarray(execution.reconstructions.inputs)
    true_inputs, true_labels = np.asarray(task.truth.inputs), np.asarray(task.truth.labels)
    quality = jax.tree.map(lambda *leaves: np.stack(leaves), *map(metrics.evaluate, found, true_inputs))
    statistics = metrics.summarize(quality)._asdict()
    matched = np.take_along_axis(found, quality.permutation[:, :, None, None, None], axis=1)
    images = [
        {
            "target": t,
            "example": b,
            "label": int(true_labels[t, b]),
            "class_name": task.class_names[int(true_labels[t, b])],
            "psnr_db": float(quality.psnr_db[t, b]),
            "ssim": float(quality.ssim[t, b]),
            "mse": float(quality.mse[t, b]),
        }
        for t in range(config.targets)
        for b in range(config.num_private)
    ]
    info = execution.reconstructions.info
    attack_losses = np.asarray(execution.reconstructions.attack_loss)
    targets = [
        {
            "attack_loss": float(attack_losses[t]),
            "failed": not np.isfinite(attack_losses[t]),
            **{
                name: np.asarray(info[name])[t].tolist()
                for name in ("winner", "restart_losses", "valid", "num_units", "scale")
                if name in info
            },
        }
        for t in range(config.targets)
    ]
    lanes = config.targets * (config.restarts if execution.history else 1)
    seconds = execution.seconds_run
    summary = {
        "config": {field.name: getattr(config, field.name) for field in fields(JobConfig)}
        | {"settings": config.hyperparameters()},
        "images": images,
        "quality": {name: statistics[name]._asdict() for name in ("psnr_db", "ssim", "mse")},
        "targets": targets,
        "selected_by": "attack_loss" if execution.history else "closed form",
        "num_steps": execution.num_steps if execution.history else 0,
        "interrupted": execution.interrupted,
        "seconds_compile": execution.seconds_compile,
        "seconds_run": seconds,
        "steps_per_second": execution.num_steps * lanes / seconds if execution.history and seconds else None,
        "assumptions": assumptions(config),
        "labels": _label_quality(config, execution.reconstructions.labels, true_labels),
        "versions": environment.versions(),
        "device": environment.device_name(),
        "num_devices": execution.num_devices,
        "chunk_size": execution.chunk_size,
    }
    flat = (-1, *true_inputs.shape[2:])
    return Outcome(
        summary=summary,
        truth=true_inputs.reshape(flat).astype(np.float32),
        reconstruction=matched.reshape(flat).astype(np.float32),
        history=execution.history,
    )


def _label_quality(config: JobConfig, used: jax.Array | None, truth: np.ndarray) -> dict[str, Any] | None:
    """How well the labels were found, if they were not granted: `exact [T]`, and the share of examples `recall`."""
    if config.granted.labels or used is None:
        return None
    found = np.asarray(used)
    if found.ndim > truth.ndim:  # soft labels
        found = found.argmax(axis=-1)
    num_classes = max(found.max(), truth.max()) + 1
    counts, true_counts = (
        np.stack([np.bincount(row, minlength=num_classes) for row in rows]) for rows in (found, truth)
    )
    hits = np.minimum(counts, true_counts).sum(axis=1)
    return {
        "found": found,
        "exact": hits == truth.shape[1],
        "recall": float(hits.mean() / truth.shape[1]),
    }


def _solve(config: JobConfig, program: Program, observations: Observation) -> Execution:
    arguments = (_key(config), observations, config.hyperparameters())
    begin = time.perf_counter()
    jax.block_until_ready(program.solve(*arguments))  # compiles
    seconds_compile = time.perf_counter() - begin
    begin = time.perf_counter()
    reconstructions = jax.block_until_ready(program.solve(*arguments))
    seconds_run = time.perf_counter() - begin
    return Execution(reconstructions, 0, seconds_compile, seconds_run, interrupted=False, history={})
