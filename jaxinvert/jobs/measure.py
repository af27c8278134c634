"""Measures a finished job: compares reconstructions with the truth and builds the summary."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinvert import metrics, models
from jaxinvert.escaping import visible
from jaxinvert.jobs import environment
from jaxinvert.jobs.assumptions import assumptions
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.execute import Execution
from jaxinvert.jobs.prepare import Task


class Outcome(NamedTuple):
    """The measured result of a job.

    Attributes:
      summary: the content of `summary.json`.
      truth: `[T x B, H, W, C]` float32 in [0, 1].
      reconstruction: same shape, matched one-to-one to the truth within every batch.
      history: `step [N]` and `best_loss [N, T, R]` at each report; empty for closed forms.
    """

    summary: dict[str, Any]
    truth: np.ndarray
    reconstruction: np.ndarray
    history: dict[str, np.ndarray]


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
            "label": true_labels[t, b].tolist(),
            "class_name": visible(models.label_in_words(true_labels[t, b], task.class_names)),
            "psnr_db": float(quality.psnr_db[t, b]),
            "ssim": float(quality.ssim[t, b]),
            "mse": float(quality.mse[t, b]),
        }
        for t in range(config.data.targets)
        for b in range(config.num_private)
    ]
    info = execution.reconstructions.info
    attack_losses = np.asarray(execution.reconstructions.attack_loss)
    targets = [
        {
            "attack_loss": float(attack_losses[t]),
            "failed": not np.isfinite(attack_losses[t]),
            **{name: np.asarray(info[name])[t].tolist() for name in execution.reported if name in info},
        }
        for t in range(config.data.targets)
    ]
    lanes = config.data.targets * (config.search.restarts if execution.history else 1)
    seconds = execution.seconds_run
    summary = {
        "config": config.flat
        | {"settings": config.attacker.hyperparameters, "defense_settings": config.defense.parameters},
        "images": images,
        "quality": {name: statistics[name]._asdict() for name in ("psnr_db", "ssim", "mse")},
        "targets": targets,
        "choice": execution.choice,
        "selected_by": "attack_loss" if execution.history else "closed form",
        "num_steps": execution.num_steps if execution.history else 0,
        "interrupted": execution.interrupted,
        "seconds_compile": execution.seconds_compile,
        "seconds_start": execution.seconds_start,
        "seconds_run": seconds,
        "steps_per_second": execution.num_steps * lanes / seconds if execution.history and seconds else None,
        "assumptions": assumptions(config, task.model, captured=task.captured),
        "labels": label_quality(config, execution.reconstructions.labels, true_labels),
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


def label_quality(config: JobConfig, used: jax.Array | None, truth: np.ndarray) -> dict[str, Any] | None:
    """Accuracy of labels that were not granted: `exact [T]`, and `recall`, the share of correct examples.

    `None` for true labels that are no classes, such as several per example: nothing is exact there.
    """
    if config.granted.labels or used is None or not np.issubdtype(truth.dtype, np.integer):
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
