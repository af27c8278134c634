"""The audit of captured updates: parameters and updates of a real training, read from files.

With the true images, the audit is the same as for simulated clients. Without them, a reconstruction cannot be
verified, only the share of the update that it explains: the squared cosine between the observed update and the update
that the reconstruction would cause. The same share is computed for random updates.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxinvert import data, jobs, models
from jaxinvert.audit import controls
from jaxinvert.audit.attacking import attack_and_score, blind_attack
from jaxinvert.audit.diagnosis import likely_mistakes
from jaxinvert.audit.kept import Store
from jaxinvert.audit.plan import parse_defense
from jaxinvert.audit.reading import Capture, digest_of, read_capture, true_batches
from jaxinvert.audit.results import Audited, Scenario
from jaxinvert.audit.running import Show, attack, found_in
from jaxinvert.audit.scoring import Ground, ground_truth
from jaxinvert.audit.weighing import judged
from jaxinvert.defenses.registry import NONE, parse
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.groups import ClientConfig
from jaxinvert.types import Batch, Observation


class Explained(NamedTuple):
    """Results of an attack on captured updates whose truth is unknown.

    Attributes:
      reconstruction: `[T, B, H, W, C]`.
      labels: `[T, B]` labels used by the reconstruction, or `None`.
      share: `[T]` share of each update's squared norm that the reconstruction explains, 0 ... 1.
      on_noise: `[T, B, H, W, C]` reconstructions of random updates.
      share_of_noise: `[T]` share of each random update that its reconstruction explains, 0 ... 1.
      assumptions: what the attacker knows, see `jobs.assumptions`.
      notes: sentences about what was assumed or estimated.
      searched: whether the attack searched, instead of taking a closed form.
    """

    reconstruction: np.ndarray
    labels: np.ndarray | None
    share: np.ndarray
    on_noise: np.ndarray
    share_of_noise: np.ndarray
    assumptions: dict[str, Any]
    notes: tuple[str, ...] = ()
    searched: bool = True


def audit_capture(
    setting: Scenario,
    capture: Capture,
    model: models.Model,
    others: data.Dataset | None,
    *,
    other_mode: models.Model | None = None,
    num_candidates: int = 100,
    with_lpips: bool = False,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> Audited:
    """Audits captured updates whose true images are known. See `audit` for simulated clients.

    Args:
      setting: the scenario, with jobs from `job_of_capture`.
      capture: the files, including the truth.
      model: the clients' network.
      others: further candidates of the same kind; copies of the true images are left out.
      other_mode: the same network with BatchNorm in the other mode, if it has such layers, to name a wrong mode.
      num_candidates: see `audit`.
      with_lpips: see `audit`.
      folder: stores the reconstructions.
      on_progress: called repeatedly with the current step.

    Raises:
      FileNotFoundError, ValueError: see `read_capture`.
    """
    assert capture.truth is not None
    found, ground, blind, notes = {}, None, {}, dict.fromkeys(capture.notes)
    for attacker, config in setting.attackers.items():
        truth = true_batches(config, capture.truth, model)
        ground = _ground(truth, others, num_candidates)
        names = others.class_names if others else tuple(map(str, range(models.num_labels(model))))
        seen = read_capture(config, capture, model)
        task = jobs.Task(jobs.Program(config, model), seen.observation, truth, names, captured=True)
        notes |= dict.fromkeys([*seen.notes, *likely_mistakes(config, task.program, seen, truth, other_mode)])
        store = folder and _store(folder, capture, model)
        prior = blind_attack(config, task, store, on_progress, blind)
        options = {"with_lpips": with_lpips, "store": store, "on_progress": on_progress}
        found[attacker] = attack_and_score(config, task, ground, blind=prior, **options)
    assert ground is not None
    return _saying(judged(setting.name, ground, found)._replace(note=setting.note), [*notes])


def _store(folder: Path, capture: Capture, model: models.Model) -> Store:
    """Where results on a capture are kept: apart for other files, rates, and readings of them."""
    facts = (model.name, model.input_shape, model.num_classes, model.mean, model.std, model.task)
    content = json.dumps([digest_of(capture), capture.rate, *facts], default=str)
    return Store(folder, hashlib.sha256(content.encode()).hexdigest()[:16])


def _saying(one: Audited, notes: Sequence[str]) -> Audited:
    """The audited scenario, whose verdict also says what was assumed about the capture."""
    certainty = " ".join([one.verdict.certainty, *notes])
    return one._replace(verdict=one.verdict._replace(certainty=certainty))


def explain_capture(
    config: JobConfig,
    capture: Capture,
    model: models.Model,
    *,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> Explained:
    """Attacks captured updates and random updates of the same norms, and measures the shares explained.

    Args:
      config: the job, see `job_of_capture`.
      capture: the files.
      model: the clients' network.
      folder: stores the reconstructions.
      on_progress: called repeatedly with the current step.

    Raises:
      FileNotFoundError, ValueError: see `read_capture`.
    """
    program, read = jobs.Program(config, model), read_capture(config, capture, model)
    seen = read.observation
    store = folder and _store(folder, capture, model)
    execution = attack("attack", config, program, seen, store, on_progress)
    found, used = found_in(execution)
    noise = controls.random_update(jobs.stream(config.seed, jobs.Stream.NULL_UPDATES), seen)
    on_noise, used_on_noise = found_in(attack("random update", config, program, noise, store, on_progress))
    return Explained(
        found,
        used,
        explained(program, seen, found, used),
        on_noise,
        explained(program, noise, on_noise, used_on_noise),
        jobs.assumptions(config, model, captured=True),
        (*capture.notes, *read.notes),
        searched=bool(execution.history),
    )


def explained(program: jobs.Program, seen: Observation, inputs: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """`[T]`: squared cosine between observed updates and updates of the reconstructions; 0 for a negative cosine.

    Args:
      program: simulates the clients, without a defense.
      seen: observations of all targets.
      inputs: `[T, B, H, W, C]` reconstructions.
      labels: `[T, B]` their labels; class 0 is used if there are none.
    """
    classes = np.zeros(inputs.shape[:2], np.int32) if labels is None else labels
    return np.asarray(program.shares_explained(seen, jnp.asarray(inputs), jnp.asarray(classes)))


def job_of_capture(
    config: JobConfig, capture: Capture, *, defenses: Sequence[str] = (NONE,)
) -> tuple[JobConfig, Capture]:
    """The job with one target per captured update, and the capture as the job takes it.

    Labels are restored if they are not granted. One local step of plain SGD sends its gradient times the learning
    rate: updates are divided by the rate, and the clients are FedSGD clients. Not so where a defense has changed the
    difference: its numbers, such as a bound, are in units of what was sent.

    Args:
      config: the job without a defense.
      capture: the files.
      defenses: those of the clients, see `plan`.

    Raises:
      ValueError: for a job that does not apply to captured updates.
    """
    if config.model.checkpoint is not None:
        raise ValueError(f"checkpoint is {config.model.checkpoint}, but captured updates come with their parameters")
    if config.observation.rounds > 1:
        raise ValueError(f"rounds is {config.observation.rounds}, but a capture is one round")
    unknown = config.granted.labels and config.attacker.labels == "known" and capture.truth is None
    config = config.replace(targets=len(capture.updates), labels="restored" if unknown else config.attacker.labels)
    client = config.client
    plain = client.local_optimizer == "sgd" and not client.local_weight_decay
    chains = [parse(parse_defense(text)[0]) for text in defenses]
    of_gradients = all(recipe.one_step for chain in chains for recipe in chain.recipes)
    if client.kind == "fedavg" and plain and config.local_training.num_steps == 1 and of_gradients:
        capture = capture._replace(rate=client.local_lr)
        config = config.replace(client="fedsgd", **_NO_TRAINING)
        return config, capture
    unscaled = capture.kind != "pseudo-gradient" and client.kind == "fedsgd"
    by_default = config.attacker.labels == "restored" and config.attacker.label_rule is None
    if unscaled and by_default and config.num_private == 1:
        config = config.replace(label_rule="bias-sign")  # exact for one example at any scale
    return config, capture


_NO_TRAINING = {item.name: item.default for item in fields(ClientConfig) if item.name.startswith("local_")}
"""The fields of local training with their defaults."""


def same_kind(private: np.ndarray, images: np.ndarray) -> bool:
    """Whether a data set holds any of the private images, up to rounding to bytes.

    Args:
      private: `[T, B, H, W, C]` in [0, 1].
      images: `[N, H, W, C]` in [0, 1].
    """
    own = {image.tobytes() for image in _as_bytes(private.reshape(-1, *private.shape[2:]))}
    return any(image.tobytes() in own for image in _as_bytes(images))


def _as_bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(images) * 255).astype(np.uint8)


def _ground(truth: Batch, others: data.Dataset | None, num_candidates: int) -> Ground:
    """Truth and candidates: true images first, then others that are not copies of them."""
    images = np.asarray(truth.inputs).reshape(-1, *truth.inputs.shape[2:])
    labels = np.asarray(truth.labels).reshape(len(images), *truth.labels.shape[2:])
    if others is not None and others.labels.shape[1:] != labels.shape[1:]:
        others = others._replace(labels=np.full(len(others.labels), -1, np.int32))  # labels of another kind
        labels = models.label_ids(labels)
    if others is not None:
        own = {image.tobytes() for image in _as_bytes(images)}
        new = np.array([image.tobytes() not in own for image in _as_bytes(others.images)], bool)
        images = np.concatenate([images, others.images[new]])
        labels = np.concatenate([labels, others.labels[new]])
    return ground_truth(truth, images, labels, num_candidates=num_candidates)
