"""Reads what an attacker sees of captured files, and checks at the door whether they are what they are said to be."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import jobs, models
from jaxinvert.jobs import JobConfig
from jaxinvert.labels import check_head_is_sent
from jaxinvert.labels.scale import estimated_rate
from jaxinvert.observation import captures, threat_models
from jaxinvert.observation.observe import FEDSGD
from jaxinvert.search import check_targets
from jaxinvert.trees import is_float, largest_entry, scaled
from jaxinvert.types import ArrayTree, Batch, Observation, Params, Update


class Capture(NamedTuple):
    """Files captured in one round: the parameters that the server sent and the updates that clients returned.

    Attributes:
      params: file of the parameters that all these clients started from.
      updates: one file for each client.
      kind: what an update file holds, see `captures.as_update`.
      truth: file of the true `inputs` and `labels`, concatenated over clients, if the auditor has them; or one file
        for each client.
      names: the clients' names, in the order of `updates`, if they have any.
      notes: sentences about what is assumed, for verdict and page.
      rate: learning rate by which the updates are divided, if they are of one local step of plain SGD.
    """

    params: Path
    updates: tuple[Path, ...]
    kind: captures.Kind = "pseudo-gradient"
    truth: Path | tuple[Path, ...] | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rate: float | None = None

    @property
    def truths(self) -> tuple[Path, ...]:
        """The files of true examples, none or more."""
        return () if self.truth is None else (self.truth,) if isinstance(self.truth, Path) else self.truth


class Seen(NamedTuple):
    """What was read of a capture.

    Attributes:
      observation: what the attacker sees, leading axis `T`.
      params: the parameters that the server sent, whether the attacker sees them or not.
      update: the updates as captured, leading axis `T`.
      notes: sentences about what was assumed or estimated.
    """

    observation: Observation
    params: Params
    update: Update
    notes: tuple[str, ...] = ()


def observe_capture(config: JobConfig, capture: Capture, model: models.Model) -> Observation:
    """Reads the attacker's observation of all captured clients, see `read_capture`."""
    return read_capture(config, capture, model).observation


def read_capture(config: JobConfig, capture: Capture, model: models.Model) -> Seen:
    """Reads all captured clients; the observation is limited to what the threat model grants.

    A delta, or weights, of a client whose learning rate is not given have an unknown scale, and so has a gradient
    whose size no loss explains. It is estimated from the labels, and updates are divided by it; if that is not
    possible, the attacker sees no `local_training`.

    Args:
      config: the job, with as many targets as there are updates.
      capture: the files; the truth is only read for labels that the job grants.
      model: the clients' network.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: for a file that does not fit the model or its kind, if labels are granted but no truth file is
        given, or if labels are to be restored by a rule that needs the scale and it cannot be estimated.
    """
    granted = config.granted
    threat_models.check_needs(granted, config.needs, attack=config.attacker.attack)
    chain = config.defense.chain
    if part := [name for name, recipe in zip(chain.names, chain.recipes) if recipe.changes_model]:
        raise ValueError(f"defense {part[0]!r} is a part of the network: name a model that includes it")
    labels = _granted_labels(config, capture, model) if granted.labels else None
    params = captures.load_for_model(capture.params, model, what="parameters")
    updates, statistics = [], []
    for path in capture.updates:
        tree = captures.load_for_model(path, model, partial=True)
        check_kind(tree, params, kind=capture.kind, path=path)
        updates.append(captures.as_update(tree, params, kind=capture.kind))
        statistics.append(captures.sent_statistics(tree, params, kind=capture.kind))
    update = _stacked(updates)
    if config.attacker.labels == "restored":
        check_head_is_sent(config.chosen_label_rule, model.calibration, update, head=model.head)
    seen = Observation(
        params=params,
        update=update,
        labels=labels,
        num_examples=config.data.num_examples,
        local_training=config.local_training,
        batch_stats=None if any(one is None for one in statistics) else _stacked(statistics),
        defense=config.defense.parameters,
    )
    notes: tuple[str, ...] = ()
    if capture.rate is not None:
        seen = seen._replace(update=scaled(update, 1 / capture.rate))
        notes = (f"Updates are divided by the learning rate {capture.rate:g} of their one local step.",)
    elif config.client.kind == "fedsgd" and (capture.kind != "pseudo-gradient" or _is_extreme(update)):
        seen, notes = _with_scale(config, seen, model)
    seen = seen._replace(**dict.fromkeys(granted.withheld))
    check_targets(seen)
    return Seen(seen, params, update, notes)


def check_kind(tree: ArrayTree, params: Params, *, kind: captures.Kind, path: Path) -> None:
    """Checks that weights are not taken for differences, or differences for weights.

    Weights after training are those before it plus something nearly at right angles to them: their part along the
    weights before has the size of these, however large the rest is. A gradient's part is nearly 0.

    Raises:
      ValueError: naming the file, the cosine, and the likely kind.
    """
    cosine, factor, spread = _along(params, tree)
    agrees = abs(factor - 1) < 0.1 + 3 * spread
    seen = f"{path} has a cosine of {cosine:.3f} with the parameters that were sent"
    if kind != "weights" and (cosine > _ALONG or (cosine > _ACROSS and agrees)):
        raise ValueError(
            f"{seen}: these look like weights after training, but the kind is {kind!r}; give the kind 'weights'"
        )
    if kind == "weights" and cosine < _ACROSS and not (agrees and factor > 4 * spread):
        raise ValueError(
            f"{seen}: these look like a gradient or a difference, but the kind is 'weights'; give the kind "
            "'pseudo-gradient' or 'delta'"
        )


_ALONG, _ACROSS = 0.9, 0.3


def _along(params: Params, tree: ArrayTree) -> tuple[float, float, float]:
    """What of a tree lies along the parameters: its cosine, its size in their units, and how far chance moves that.

    Tensors that were not sent are left out; NaN if nothing is left. A rest of random direction has a part of
    `|rest| / sqrt(entries)`.
    """
    pairs = [
        (np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel())
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(tree))
        if is_float(b) and jnp.any(b != 0)
    ]
    before, sent = (np.concatenate([np.zeros(0), *parts]) for parts in ([a for a, _ in pairs], [b for _, b in pairs]))
    size, length, inner = np.linalg.norm(before), np.linalg.norm(sent), before @ sent
    if size == 0 or length == 0:
        return np.nan, np.nan, np.nan
    rest = np.sqrt(max(length**2 - (inner / size) ** 2, 0.0))
    return float(inner / (size * length)), float(inner / size**2), float(rest / (size * np.sqrt(len(before))))


def true_batches(config: JobConfig, file: Path | tuple[Path, ...], model: models.Model) -> Batch:
    """The true images of all captured clients: `inputs [T, B, H, W, C]`, `labels [T, B]`.

    Args:
      config: the job.
      file: one file, concatenated over clients, or one file per client.
      model: the clients' network.

    Raises:
      ValueError: if the files do not hold `T x B` images.
    """
    shape = (config.data.targets, config.num_private)
    files = (file,) if isinstance(file, Path) else file
    batches = [
        captures.load_batch(one, model.input_shape, models.num_labels(model), task=model.task) for one in files
    ]
    for one, batch in zip(files, batches):
        wanted = shape[0] * shape[1] // len(files)
        if len(batch.labels) != wanted:
            clients = f"{shape[0] // len(files)} clients of {shape[1]}" if len(files) == 1 else f"{shape[1]}"
            raise ValueError(f"{one} holds {len(batch.labels)} examples, expected {clients}")
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), joined)


def digest_of(capture: Capture) -> str:
    """A digest of the contents of all files, which identifies the capture.

    Raises:
      ValueError: if a file cannot be read.
    """
    files = [capture.params, *capture.updates, *capture.truths]
    content = "".join(map(jobs.digest, files)) + capture.kind
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _granted_labels(config: JobConfig, capture: Capture, model: models.Model) -> jax.Array:
    if capture.truth is None:
        raise ValueError(
            f"attack {config.attacker.attack!r} is granted the labels, which are read from the truth file: give "
            "truth, or labels='restored'"
        )
    return true_batches(config, capture.truth, model).labels


def _with_scale(config: JobConfig, seen: Observation, model: models.Model) -> tuple[Observation, tuple[str, ...]]:
    """The observation with updates divided by the estimated learning rate, or without any training known."""
    unit = _unit(seen.update)
    seen = seen._replace(update=scaled(seen.update, 1 / unit))
    loss = model.calibration
    if (
        model.task != "classes"
        or config.defense.chain.names
        or loss.refusal
        or loss.unsent
        or loss.smoothing
        or loss.tempered
    ):
        of_what = "updates with a defense" if config.defense.chain.names else f"this loss of the task {model.task}"
        told = f"it is not estimated for {of_what}"
        if "local_training" in (*config.needs, *config.rule_needs):
            raise ValueError(
                f"the clients' learning rate is not given, and {told}: give local_lr with client='fedavg'"
            )
        return seen._replace(local_training=None), (f"The scale of the updates is unknown: {told}.",)
    try:
        rate = estimated_rate(
            seen.params,
            seen.update,
            apply=model.apply,
            head=model.head,
            input_shape=model.input_shape,
            num_examples=config.num_private,
            key=jobs.stream(config.seed, jobs.Stream.LABEL_DUMMIES),
            labels=None if seen.labels is None else np.asarray(seen.labels),
        )
    except ValueError as error:
        if "local_training" in (*config.needs, *config.rule_needs):
            raise
        return seen._replace(local_training=None), (f"The scale of the updates is unknown: {error}.",)
    rate /= loss.factor * (config.num_private if loss.summed else 1)
    return seen._replace(update=scaled(seen.update, 1 / rate), local_training=FEDSGD), (
        f"The clients' learning rate is not given; {rate * unit:.3g} is estimated from the labels, for one local "
        "step.",
    )


def _is_extreme(update: ArrayTree) -> bool:
    """Whether the squares of an update leave float32's range, which a gradient at its own scale never does."""
    largest = float(largest_entry(update))
    return 0 < largest < np.inf and not 1e-12 < largest < 1e12


def _unit(update: ArrayTree) -> float:
    """A power of two that brings an update of extreme size near 1, by division, without rounding; else 1."""
    return float(2.0 ** np.round(np.log2(float(largest_entry(update))))) if _is_extreme(update) else 1.0


def _stacked(trees: list) -> ArrayTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
