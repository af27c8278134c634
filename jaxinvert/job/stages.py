"""The three stages of a job, and what passes between them.

`prepare` draws a model and simulates the clients; `execute` attacks what they sent, looking only at the
observations; `measure` is where truth and reconstruction meet, after the attack has ended.
"""

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import data, labels, metrics, models, threat_models
from jaxinvert.attacks import registry
from jaxinvert.devices import first_devices
from jaxinvert.job import environment
from jaxinvert.job.config import JobConfig, assumptions, client_update, secret_order, sent_statistics
from jaxinvert.observe import check_batch, observe_targets
from jaxinvert.search import Progress, Stepwise, check_targets, over_targets, split_shared
from jaxinvert.types import Attack, Batch, ClientUpdateFn, Observation, Params, Reconstruction, Update


class Task(NamedTuple):
    """A prepared job: the model, what the server sees, and the truth, which no attack is handed.

    Attributes:
      model: the clients' network.
      observations: one per client, leading axis `T`.
      truth: the private batches, `inputs [T, B, H, W, C]`, `labels [T, B]`.
      class_names: of the labels.
    """

    model: models.Model
    observations: Observation
    truth: Batch
    class_names: tuple[str, ...]


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


def prepare(config: JobConfig) -> Task:
    """Loads the victims, initializes the model and runs the clients.

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
    model, params = _network(config, dataset)
    flat = Batch(jnp.asarray(dataset.images[:wanted]), jnp.asarray(dataset.labels[:wanted]))
    check_batch(flat, input_shape=model.input_shape, num_classes=model.num_classes)
    truth = jax.tree.map(lambda leaf: leaf.reshape(config.targets, config.num_private, *leaf.shape[1:]), flat)
    client = jax.jit(client_update(config, model, order_key=secret_order(config)))
    earlier_params, earlier_updates, params = _earlier_rounds(config, client, params, truth)
    observations = observe_targets(
        client,
        params,
        truth,
        threat_model=config.granted,
        local_training=config.local_training,
        running_statistics=jax.jit(sent_statistics(config, model, order_key=secret_order(config)))
        if config.granted.batch_stats
        else None,
        surrogate=_surrogate(config) if "surrogate" in (*config.needs, *config.rule_needs) else None,
        earlier_params=earlier_params,
        earlier_updates=earlier_updates,
    )
    check_targets(observations)
    return Task(model, observations, truth, dataset.class_names)


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


def _network(config: JobConfig, dataset: data.Dataset) -> tuple[models.Model, Params]:
    """The clients' network with fresh or trained parameters; trained ones bring their normalization."""
    facts = {} if config.checkpoint is None else models.read_facts(config.checkpoint)
    if (trained := facts.get("model", config.model)) != config.model:
        raise ValueError(f"{config.checkpoint} holds a {trained}, not a {config.model}: name it as the model")
    if not config.normalized and "mean" in facts:
        raise ValueError(f"normalized is False, but {config.checkpoint} was trained on normalized images")
    architecture: dict[str, Any] = {} if config.batch_norm == "eval" else {"batch_norm": config.batch_norm}
    model = models.create(
        config.model,
        input_shape=dataset.images.shape[1:],
        num_classes=facts.get("num_classes", dataset.num_classes),
        mean=facts.get("mean", dataset.mean if config.normalized else None),
        std=facts.get("std", dataset.std if config.normalized else None),
        **architecture,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    if config.checkpoint is None:
        return model, jax.jit(model.init)(key)
    return model, models.load_checkpoint(config.checkpoint, jax.eval_shape(model.init, key))


def execute(
    config: JobConfig,
    model: models.Model,
    observations: Observation,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Execution:
    """Attacks the observations, after restoring labels if that was asked for.

    An interrupt ends the search and keeps the best so far.

    Args:
      config: the job.
      model: the clients' network.
      observations: all that the attacker sees; truth is not an argument.
      on_progress: called about once a second.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    setting = registry.Setting(
        client_update(config, model),
        model,
        config.num_private,
        joint_labels=config.labels == "joint",
        sent_statistics=sent_statistics(config, model) if config.granted.batch_stats else None,
        gradient_chunk=config.gradient_chunk,
    )
    if config.labels == "restored":
        observations = restore_labels(config, model, observations)
    recipe = config.recipe
    hyperparameters = config.hyperparameters()
    attack = recipe.build(setting, hyperparameters, config.steps)
    if not isinstance(attack, Attack):
        return _execute_closed_form(over_targets(attack), key, observations)

    search = Stepwise(
        lambda traced: cast(Attack, recipe.build(setting, traced["hyperparameters"], traced["horizon"])),
        num_restarts=config.restarts,
        chunk_size=config.chunk,
        devices=None if config.devices in (None, 1) else first_devices(config.devices),
    )
    traced = {"hyperparameters": hyperparameters, "horizon": config.steps}
    steps, losses, progress, interrupted = [], [], None, False
    try:
        for progress in search(key, observations, traced, num_steps=config.steps):
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


def restore_labels(config: JobConfig, model: models.Model, observations: Observation) -> Observation:
    """Puts labels that are read off the updates in place of the withheld ones; ascending in every batch."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    rule_setting = labels.Setting(model.apply, model.head, model.input_shape, key)
    rule = labels.REGISTRY[config.chosen_label_rule].factory(rule_setting)
    shared, per_target = split_shared(observations)

    def restore(target: Observation) -> jax.Array:
        return labels.labels_from_counts(rule(target._replace(**shared)), config.num_private)

    return observations._replace(labels=jax.jit(lambda targets: jax.lax.map(restore, targets))(per_target))


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


def _execute_closed_form(solve: Callable, key: jax.Array, observations: Observation) -> Execution:
    begin = time.perf_counter()
    compiled = jax.jit(solve).lower(key, observations).compile()
    seconds_compile = time.perf_counter() - begin
    begin = time.perf_counter()
    reconstructions = jax.block_until_ready(compiled(key, observations))
    seconds_run = time.perf_counter() - begin
    return Execution(reconstructions, 0, seconds_compile, seconds_run, interrupted=False, history={})
