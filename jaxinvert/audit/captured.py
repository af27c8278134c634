"""The audit of captured updates: parameters and updates of a real training, read from files.

With the true images, the audit is the same as for simulated clients. Without them, a reconstruction cannot be
verified, only the share of the update that it explains: the squared cosine between the observed update and the update
that the reconstruction would cause. The same share is computed for random updates.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import data, jobs, models
from jaxinvert.audit import controls
from jaxinvert.audit.auditing import Audited, Scenario, attack_and_score, blind_attack, judged
from jaxinvert.audit.running import Show, attack, found_in
from jaxinvert.audit.scoring import Ground, ground_truth
from jaxinvert.jobs import JobConfig
from jaxinvert.observation import captures, threat_models
from jaxinvert.search import check_targets
from jaxinvert.trees import of_what_was_sent
from jaxinvert.types import Array, Batch, Observation, Params, Update


class Capture(NamedTuple):
    """Files captured in one round: the parameters that the server sent and the updates that clients returned.

    Attributes:
      params: file of the parameters that all these clients started from.
      updates: one file for each client.
      kind: what an update file holds, see `captures.as_update`.
      truth: file of the true `inputs` and `labels`, concatenated over clients, if the auditor has them.
    """

    params: Path
    updates: tuple[Path, ...]
    kind: captures.Kind = "pseudo-gradient"
    truth: Path | None = None


class Explained(NamedTuple):
    """Results of an attack on captured updates whose truth is unknown.

    Attributes:
      reconstruction: `[T, B, H, W, C]`.
      labels: `[T, B]` labels used by the reconstruction, or `None`.
      share: `[T]` share of each update's squared norm that the reconstruction explains, 0 ... 1.
      on_noise: `[T, B, H, W, C]` reconstructions of random updates.
      share_of_noise: `[T]` share of each random update that its reconstruction explains, 0 ... 1.
    """

    reconstruction: np.ndarray
    labels: np.ndarray | None
    share: np.ndarray
    on_noise: np.ndarray
    share_of_noise: np.ndarray


def observe_capture(config: JobConfig, capture: Capture, model: models.Model) -> Observation:
    """Reads the attacker's observation of all captured clients, limited to what the threat model grants.

    Args:
      config: the job, with as many targets as there are updates.
      capture: the files; the truth is only read for labels that the job grants.
      model: the clients' network.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: for a file that does not fit the model, or if labels are granted but no truth file is given.
    """
    granted = config.granted
    threat_models.check_needs(granted, config.needs, attack=config.attacker.attack)
    chain = config.defense.chain
    if part := [name for name, recipe in zip(chain.names, chain.recipes) if recipe.changes_model]:
        raise ValueError(f"defense {part[0]!r} is a part of the network: name a model that includes it")
    like = jax.eval_shape(model.init, jax.random.key(0))
    params = captures.load_tree(capture.params, like, what="parameters")
    trees = [captures.load_tree(path, like, may_lack=("batch_stats",), partial=True) for path in capture.updates]
    updates = [captures.as_update(tree, params, kind=capture.kind) for tree in trees]
    labels = None
    if granted.labels:
        if capture.truth is None:
            raise ValueError(
                f"attack {config.attacker.attack!r} is granted the labels, which are read from the truth file: give "
                "truth, or labels='restored'"
            )
        labels = true_batches(config, capture.truth, model).labels
    seen = Observation(
        params=params,
        update=jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates),
        labels=labels,
        num_examples=config.data.num_examples,
        local_training=config.local_training,
        defense=config.defense.parameters,
    )
    seen = seen._replace(**dict.fromkeys(granted.withheld))
    check_targets(seen)
    return seen


def true_batches(config: JobConfig, file: Path, model: models.Model) -> Batch:
    """The true images of all captured clients: `inputs [T, B, H, W, C]`, `labels [T, B]`.

    Raises:
      ValueError: if the file does not hold `T x B` images.
    """
    batch = captures.load_batch(file, model.input_shape, model.num_classes)
    shape = (config.data.targets, config.num_private)
    if len(batch.labels) != shape[0] * shape[1]:
        raise ValueError(f"{file} holds {len(batch.labels)} examples, expected {shape[0]} clients of {shape[1]}")
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), batch)


def audit_capture(
    setting: Scenario,
    capture: Capture,
    model: models.Model,
    others: data.Dataset | None,
    *,
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
      num_candidates: see `audit`.
      with_lpips: see `audit`.
      folder: stores the reconstructions.
      on_progress: called repeatedly with the current step.

    Raises:
      FileNotFoundError, ValueError: see `observe_capture`.
    """
    assert capture.truth is not None
    found, ground, blind = {}, None, {}
    for attacker, config in setting.attackers.items():
        truth = true_batches(config, capture.truth, model)
        ground = _ground(truth, others, num_candidates)
        names = others.class_names if others else tuple(map(str, range(model.num_classes)))
        task = jobs.Task(jobs.Program(config, model), observe_capture(config, capture, model), truth, names)
        kept = folder and folder / digest_of(capture)
        seen = blind_attack(config, task, kept, on_progress, blind)
        options = {"with_lpips": with_lpips, "folder": kept, "on_progress": on_progress}
        found[attacker] = attack_and_score(config, task, ground, blind=seen, **options)
    assert ground is not None
    return judged(setting.name, ground, found)._replace(note=setting.note)


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
      FileNotFoundError, ValueError: see `observe_capture`.
    """
    program, seen = jobs.Program(config, model), observe_capture(config, capture, model)
    kept = folder and folder / digest_of(capture)
    found, used = found_in(attack("attack", config, program, seen, kept, on_progress))
    noise = controls.random_update(jobs.stream(config.seed, jobs.Stream.NULL_UPDATES), seen)
    on_noise, used_on_noise = found_in(attack("random update", config, program, noise, kept, on_progress))
    return Explained(
        found,
        used,
        explained(program, seen, found, used),
        on_noise,
        explained(program, noise, on_noise, used_on_noise),
    )


def explained(program: jobs.Program, seen: Observation, inputs: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """`[T]`: squared cosine between observed updates and updates of the reconstructions; 0 for a negative cosine.

    Args:
      program: simulates the clients, without a defense.
      seen: observations of all targets.
      inputs: `[T, B, H, W, C]` reconstructions.
      labels: `[T, B]` their labels; class 0 is used if there are none.
    """

    def share(params: Params, update: Update, batch: Batch) -> Array:
        simulated = of_what_was_sent(program.problem.client_update(params, batch), update)
        pairs = [*zip(jax.tree.leaves(simulated), jax.tree.leaves(update))]
        inner = sum(jnp.vdot(mine, theirs) for mine, theirs in pairs)
        mine, theirs = (sum(jnp.vdot(leaf, leaf) for leaf in side) for side in zip(*pairs))
        return jnp.square(jnp.maximum(inner, 0.0)) / jnp.maximum(mine * theirs, jnp.finfo(jnp.float32).tiny)

    classes = np.zeros(inputs.shape[:2], np.int32) if labels is None else labels
    batches = Batch(jnp.asarray(inputs), jnp.asarray(classes))
    return np.asarray(jax.jit(jax.vmap(share, in_axes=(None, 0, 0)))(seen.params, seen.update, batches))


def job_of_capture(config: JobConfig, capture: Capture) -> JobConfig:
    """The job with one target per captured update; labels are restored if they are not granted.

    Raises:
      ValueError: for a job that does not apply to captured updates.
    """
    if config.model.checkpoint is not None:
        raise ValueError(f"checkpoint is {config.model.checkpoint}, but captured updates come with their parameters")
    if config.observation.rounds > 1 or config.model.batch_norm == "train":
        raise ValueError("a capture is one round, without running statistics: rounds=1 and batch_norm='eval'")
    unknown = config.granted.labels and config.attacker.labels == "known" and capture.truth is None
    return config.replace(targets=len(capture.updates), labels="restored" if unknown else config.attacker.labels)


def digest_of(capture: Capture) -> str:
    """A digest of the contents of all files, which identifies the capture.

    Raises:
      ValueError: if a file cannot be read.
    """
    files = [capture.params, *capture.updates, *([] if capture.truth is None else [capture.truth])]
    content = "".join(map(jobs.digest, files)) + capture.kind
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _ground(truth: Batch, others: data.Dataset | None, num_candidates: int) -> Ground:
    """Truth and candidates: true images first, then others that are not copies of them."""
    images = np.asarray(truth.inputs).reshape(-1, *truth.inputs.shape[2:])
    labels = np.ravel(truth.labels)
    if others is not None:
        own = {image.tobytes() for image in images}
        new = np.array([image.tobytes() not in own for image in others.images], bool)
        images = np.concatenate([images, others.images[new]])
        labels = np.concatenate([labels, others.labels[new]])
    return ground_truth(truth, images, labels, num_candidates=num_candidates)
