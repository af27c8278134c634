"""Updates captured in somebody's own training: what the attacker sees is read from files, the truth only if given.

With the true images the audit is the same as of simulated clients. Without them nobody can say whether a
reconstruction is right; what can be said is how much of the update it explains: the squared cosine between the
observed update and the one that the reconstruction would have caused, beside the same for random updates.
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
from jaxinvert.types import Array, Batch, Observation, Params, Update


class Capture(NamedTuple):
    """Files of one round: what the server sent, and what came back.

    Attributes:
      params: the parameters that all these clients trained on.
      updates: one for each client.
      kind: of the updates, see `captures.as_update`.
      truth: `inputs` and `labels` of all clients one after the other, if the auditor has them.
    """

    params: Path
    updates: tuple[Path, ...]
    kind: captures.Kind = "pseudo-gradient"
    truth: Path | None = None


class Explained(NamedTuple):
    """What can be said without the truth.

    Attributes:
      reconstruction: `[T, B, H, W, C]`.
      labels: `[T, B]` that it was made for, or `None`.
      share: `[T]` of each update's squared norm that the reconstruction explains, 0 ... 1.
      on_noise: `[T, B, H, W, C]` reconstructions of random updates.
      share_of_noise: `[T]` the same for these.
    """

    reconstruction: np.ndarray
    labels: np.ndarray | None
    share: np.ndarray
    on_noise: np.ndarray
    share_of_noise: np.ndarray


def observe_capture(config: JobConfig, capture: Capture, model: models.Model) -> Observation:
    """Reads what the attacker sees of all captured clients, as the threat model grants it.

    Args:
      config: the job; as many targets as there are updates.
      capture: the files; the truth is only read for labels that the job grants.
      model: the clients' network.

    Raises:
      FileNotFoundError: if a file is not there.
      ValueError: for a file that does not fit the model, or labels that are granted but not in a file of the truth.
    """
    granted = config.granted
    threat_models.check_needs(granted, config.needs, attack=config.attacker.attack)
    chain = config.defense.chain
    if part := [name for name, recipe in zip(chain.names, chain.recipes) if recipe.changes_model]:
        raise ValueError(f"defense {part[0]!r} is a part of the network: name a model that has it")
    like = jax.eval_shape(model.init, jax.random.key(0))
    params = captures.load_tree(capture.params, like, what="parameters")
    trees = [captures.load_tree(path, like, may_lack=("batch_stats",)) for path in capture.updates]
    updates = [captures.as_update(tree, params, kind=capture.kind) for tree in trees]
    labels = None
    if granted.labels:
        if capture.truth is None:
            raise ValueError(
                f"attack {config.attacker.attack!r} is granted the labels, which are in a file of the truth: give "
                "it, or labels='restored'"
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
      ValueError: if there are not `T x B`.
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
    """Audits captured updates whose true images the auditor has, as `audit` does those of simulated clients.

    Args:
      setting: jobs of `job_of_capture`.
      capture: the files, the truth among them.
      model: the clients' network.
      others: images of the same kind as further candidates; those that are among the true ones are left out.
      num_candidates: as in `audit`.
      with_lpips: as in `audit`.
      folder: keeps what was reconstructed.
      on_progress: called now and then.

    Raises:
      FileNotFoundError, ValueError: as `observe_capture`.
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
    """Attacks captured updates, and random ones of the same norms, and measures what the results explain.

    Args:
      config: the job, see `job_of_capture`.
      capture: the files.
      model: the clients' network.
      folder: keeps what was reconstructed.
      on_progress: called now and then.

    Raises:
      FileNotFoundError, ValueError: as `observe_capture`.
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
    """`[T]`: the squared cosine between observed updates and those of the reconstructions, 0 where it is negative.

    Args:
      program: whose clients are simulated, without a defense.
      seen: of all targets.
      inputs: `[T, B, H, W, C]`.
      labels: `[T, B]`; class 0 stands in where there are none.
    """

    def share(params: Params, update: Update, batch: Batch) -> Array:
        simulated = program.problem.client_update(params, batch)
        pairs = [*zip(jax.tree.leaves(simulated), jax.tree.leaves(update))]
        inner = sum(jnp.vdot(mine, theirs) for mine, theirs in pairs)
        mine, theirs = (sum(jnp.vdot(leaf, leaf) for leaf in side) for side in zip(*pairs))
        return jnp.square(jnp.maximum(inner, 0.0)) / jnp.maximum(mine * theirs, jnp.finfo(jnp.float32).tiny)

    classes = np.zeros(inputs.shape[:2], np.int32) if labels is None else labels
    batches = Batch(jnp.asarray(inputs), jnp.asarray(classes))
    return np.asarray(jax.jit(jax.vmap(share, in_axes=(None, 0, 0)))(seen.params, seen.update, batches))


def job_of_capture(config: JobConfig, capture: Capture) -> JobConfig:
    """The job with as many targets as there are captured updates, and labels restored where nobody grants them.

    Raises:
      ValueError: for a job that cannot be one of captured updates.
    """
    if config.model.checkpoint is not None:
        raise ValueError(f"checkpoint is {config.model.checkpoint}, but captured updates come with their parameters")
    if config.observation.rounds > 1 or config.model.batch_norm == "train":
        raise ValueError("a capture is one round, without running statistics: rounds=1 and batch_norm='eval'")
    unknown = config.granted.labels and config.attacker.labels == "known" and capture.truth is None
    return config.replace(targets=len(capture.updates), labels="restored" if unknown else config.attacker.labels)


def digest_of(capture: Capture) -> str:
    """Tells captures apart by what is in their files.

    Raises:
      ValueError: if one cannot be read.
    """
    files = [capture.params, *capture.updates, *([] if capture.truth is None else [capture.truth])]
    content = "".join(map(jobs.digest, files)) + capture.kind
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _ground(truth: Batch, others: data.Dataset | None, num_candidates: int) -> Ground:
    """True images first, then others that are not among them."""
    images = np.asarray(truth.inputs).reshape(-1, *truth.inputs.shape[2:])
    labels = np.ravel(truth.labels)
    if others is not None:
        own = {image.tobytes() for image in images}
        new = np.array([image.tobytes() not in own for image in others.images], bool)
        images = np.concatenate([images, others.images[new]])
        labels = np.concatenate([labels, others.labels[new]])
    return ground_truth(truth, images, labels, num_candidates=num_candidates)
