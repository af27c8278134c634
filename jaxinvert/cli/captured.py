"""The part of `jaxinvert audit` about captured updates: what a captured round says, and which flags change it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinvert import audit as audits
from jaxinvert import data, jobs, manifest, models
from jaxinvert.audit.captured import same_kind
from jaxinvert.cli.fields import build, said, with_file
from jaxinvert.cli.unused import refuse_for_captured, refuse_for_simulated
from jaxinvert.manifest import Local, Manifest
from jaxinvert.observation import captures

_ARGUMENTS = ("update", "params", "truth")


class _Chosen(NamedTuple):
    """The clients of a round that are audited, their number of examples each, and sentences about the others."""

    names: tuple[str, ...]
    num_examples: int
    notes: tuple[str, ...]


def with_round(command: Any, command_line: str) -> Any:
    """The command `Audit` with its YAML file and its captured round; flags come before the file, both before facts.

    Args:
      command: as parsed from the flags.
      command_line: the command line itself, which tells the flags that were given.

    Raises:
      FileNotFoundError, ValueError: for a folder that is no captured round, or facts that do not fit the flags.
    """
    given = said(command, command_line)
    if given.get("capture") is None:
        complete = with_file(command, command_line)
        if not complete.update:
            refuse_for_simulated(complete, given)
        elif given.get("clients"):
            raise ValueError("clients names clients of a captured round: give capture, too")
        else:
            refuse_for_captured(given)
        return complete
    refuse_for_captured(given)
    if own := [name for name in _ARGUMENTS if given.get(name)]:
        raise ValueError(f"{own[0]} is a file of its own, but capture {given['capture']} has its own files")
    captured = captures.open_round(given["capture"])
    chosen = _chosen(captured, given.get("clients", ()), given.get("num_examples"))
    return build(command, {**fields_of(captured.facts, chosen.num_examples), **given})


def capture_of(command: Any) -> audits.Capture | None:
    """The captured files, or `None` if clients are to be simulated.

    Raises:
      FileNotFoundError, ValueError: if a required file is missing, or if training is requested, which needs simulated
        clients.
    """
    if command.capture is None and not command.update:
        return None
    for name in ("accuracy_rounds", "leakage_rounds"):
        if getattr(command, name):
            raise ValueError(
                f"{name} is {getattr(command, name)}, but captured clients cannot be trained: leave it out"
            )
    given = {"input_shape": command.input_shape and [*command.input_shape], "num_classes": command.num_classes}
    manifest.checked({"format": manifest.FORMAT, "kind": command.update_kind, "clients": {}, **given})
    if (command.mean is None) != (command.std is None):
        raise ValueError("mean and std belong together: give both")
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        if any(not least < value < math.inf for value in getattr(command, name) or ()):
            what = "finite numbers" if name == "mean" else "positive numbers"
            raise ValueError(f"{name} is {getattr(command, name)}, expected {what}, one per channel")
    notes = () if command.mean is not None or _says_none(command) else (_UNKNOWN,)
    if command.capture is None:
        if command.params is None:
            raise ValueError("captured updates need the parameters that the server sent to the clients: give params")
        return audits.Capture(command.params, command.update, command.update_kind, command.truth, notes=notes)
    captured = captures.open_round(command.capture)
    notes += assumed(captured.facts, command)
    chosen = _chosen(captured, command.clients, command.data.num_examples)
    names = chosen.names
    truth = tuple(captured.truths[name] for name in names) if names[0] in captured.truths else None
    listed = f"Clients 0 to {len(names) - 1} are, in this order, {', '.join(names[:12])}{' ...' * (len(names) > 12)}."
    return audits.Capture(
        captured.params,
        tuple(captured.updates[name] for name in names),
        command.update_kind,
        truth,
        names,
        (*notes, *chosen.notes, listed),
    )


_UNKNOWN = (
    "How the clients normalize their inputs is not known: the network is taken to read pixels in [0, 1] as they are "
    "(mean and std say otherwise)."
)


def assumed(facts: Manifest, command: Any) -> tuple[str, ...]:
    """A sentence on what neither capture nor command say of the clients' training, and what is assumed, or none."""
    if facts.local.learning_rate is None:  # how far such updates went is estimated, or said to be unknown
        return ()
    client = command.client
    defaults = {
        "epochs": (client.local_epochs == 1, "one pass"),
        "batch_size": (client.local_batch_size is None, "all examples in each step"),
        "optimizer": (client.local_optimizer == "sgd", "plain SGD"),
        "weight_decay": (not client.local_weight_decay, "no weight decay"),
        "batch_norm": (
            command.model.batch_norm == "eval",
            "running statistics in BatchNorm layers, if any",
        ),
    }
    unsaid = {
        name: words
        for name, (by_default, words) in defaults.items()
        if by_default and getattr(facts.local, name) is None
    }
    notes = ()
    if unsaid:
        notes += (f"The capture does not say {', '.join(unsaid)}; assumed: {', '.join(unsaid.values())}.",)
    if client.local_weight_decay and client.local_optimizer != "sgd":
        notes += ("Weight decay is simulated apart from the gradient, as by AdamW; Adam of PyTorch adds it to it.",)
    return notes


def _says_none(command: Any) -> bool:
    """Whether the captured round says that inputs are not normalized."""
    return command.capture is not None and captures.open_round(command.capture).facts.normalization is not None


def fields_of(facts: Manifest, num_examples: int) -> dict[str, Any]:
    """The facts of a captured round as fields of the command, by flat names; unknown facts keep their defaults.

    Args:
      facts: of the round.
      num_examples: of each audited client.

    Raises:
      ValueError: if the clients took several steps at an unknown learning rate.
    """
    normalization = facts.normalization
    fields = {
        "update_kind": facts.kind,
        "num_examples": num_examples,
        "input_shape": facts.input_shape,
        "num_classes": facts.num_classes,
        "mean": normalization and normalization.mean,
        "std": normalization and normalization.std,
        "batch_norm": facts.local.batch_norm,
        "defenses": (facts.defense,),
        "aggregate": facts.aggregate,
        **_training(facts, num_examples),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _training(facts: Manifest, num_examples: int) -> dict[str, Any]:
    local: Local = facts.local
    batch_size = min(local.batch_size or num_examples, num_examples)
    num_steps = (local.epochs or 1) * -(-num_examples // batch_size)
    if local.learning_rate is None:
        if num_steps > 1:
            raise ValueError(f"the clients took {num_steps} local steps, but their learning rate is not given")
        return {}
    optimizer, momentum = local.optimizer or "sgd", local.momentum or 0.0
    fields: dict[str, Any] = {"client": "fedavg", "local_lr": local.learning_rate}
    if optimizer == "adam":
        fields["local_optimizer"] = "adam"
    elif momentum and num_steps > 1:  # the first step has no momentum
        fields |= {"local_optimizer": "momentum", "local_momentum": momentum}
    if local.weight_decay:
        fields["local_weight_decay"] = local.weight_decay
    if num_steps > 1:
        fields |= {"local_epochs": local.epochs or 1, "local_batch_size": batch_size}
        fields["local_order"] = "known" if local.shuffled is False else "unknown"
    return fields


def _chosen(captured: captures.Round, wanted: Sequence[str], num_examples: int | None) -> _Chosen:
    """The clients to audit: those named, or the largest group with one number of examples, with truth if any has it.

    Raises:
      ValueError: if a named client is missing, or if numbers of examples are unknown or differ.
    """
    if unknown := sorted(set(wanted) - captured.updates.keys()):
        raise ValueError(f"there is no client {unknown[0]!r} in {captured.folder}: {', '.join(captured.updates)}")
    names = [name for name in captured.updates if not wanted or name in wanted]
    notes = []
    if missing := captures.without_update(captured):
        notes.append(
            f"The capture names {len(missing)} more clients whose update is missing: {', '.join(missing[:6])}."
        )
    without = [name for name in names if name not in captured.truths]
    if 0 < len(without) < len(names):
        notes.append(f"Without true images and left out: {', '.join(without[:6])}.")
        names = [name for name in names if name in captured.truths]
    by_size: dict[int, list[str]] = {}
    for name in names:
        size = _size_of(captured, name) or num_examples
        if size is None:
            raise ValueError(f"the number of examples of client {name!r} is not known: give num_examples")
        by_size.setdefault(size, []).append(name)
    chosen = num_examples or max(by_size, key=lambda size: (len(by_size[size]), -size))
    if chosen not in by_size:
        raise ValueError(f"no client in {captured.folder} has {chosen} examples")
    if others := [f"{len(group)} of {size}" for size, group in sorted(by_size.items()) if size != chosen]:
        notes.append(
            f"Clients of {chosen} examples are audited; left out are clients of other sizes ({', '.join(others)}), "
            "which --clients names."
        )
    return _Chosen(tuple(by_size[chosen]), chosen, tuple(notes))


def _size_of(captured: captures.Round, name: str) -> int | None:
    """A client's number of examples: as counted by its server, or that of its true labels."""
    if (said := captured.facts.clients.get(name)) is not None:
        return said
    return captures.num_labels(captured.truths[name]) if name in captured.truths else None


def judge_capture(
    command: Any, setting: audits.Scenario, capture: audits.Capture, show: audits.Show
) -> list[audits.Audited] | dict[str, tuple[jobs.JobConfig, audits.Explained]]:
    """Judges captured updates if their truth is known, else measures the shares of the updates explained.

    Raises:
      FileNotFoundError, ValueError: for files that do not fit the model.
    """
    dataset = data.load(command.data.name, split=command.data.split, size=command.data.size)
    shape = tuple(command.input_shape or dataset.images.shape[1:])
    own = models.is_external(command.model.name) and command.capture is not None  # has as many logits as it has
    num_classes = command.num_classes or (None if own else dataset.num_classes)
    model, other_mode = _networks(command, shape, num_classes)
    model = _for_labels(model, capture)
    other_mode = other_mode and _for_labels(other_mode, capture)
    setting = setting._replace(attackers={name: _with_rule(one, model) for name, one in setting.attackers.items()})
    if capture.truth is None:
        return {
            name: (config, audits.explain_capture(config, capture, model, folder=command.out, on_progress=show))
            for name, config in setting.attackers.items()
        }
    options = {
        "other_mode": other_mode,
        "num_candidates": command.candidates,
        "with_lpips": command.lpips,
        "folder": command.out,
        "on_progress": show,
    }
    truth = audits.true_batches(next(iter(setting.attackers.values())), capture.truth, model)
    others = dataset if _are_candidates(command, dataset, np.asarray(truth.inputs)) else None
    return [audits.audit_capture(setting, capture, model, others, **options)]


def _for_labels(model: models.Model, capture: audits.Capture) -> models.Model:
    """The model for the task that the true labels tell; without them, one logit is taken to be for two classes."""
    if capture.truth is not None:
        labels = [captures.load_labels(path) for path in capture.truths]
        if len({one.shape[1:] for one in labels} | {one.dtype for one in labels}) > 2:
            raise ValueError("the clients' true labels are of different forms")
        return models.with_task(model, np.concatenate(labels))
    return models.with_task(model, np.array([0, 1])) if model.num_classes == 1 else model


def _with_rule(config: jobs.JobConfig, model: models.Model) -> jobs.JobConfig:
    """The job, whose labels are restored by the rule for the network's task unless one is named."""
    restores = config.attacker.labels == "restored" and config.attacker.label_rule is None
    return config.replace(label_rule="sigmoid") if restores and model.task in ("binary", "multi-label") else config


def _are_candidates(command: Any, dataset: data.Dataset, private: np.ndarray) -> bool:
    """Whether the data set's images compete with the private ones: if it was named, or holds some of them."""
    if dataset.images.shape[1:] != private.shape[2:]:
        return False
    named = command.data.name != type(command)().data.name or command.input_shape is None
    return named or same_kind(private, dataset.images)


def _networks(
    command: Any, shape: tuple[int, ...], num_classes: int | None
) -> tuple[models.Model, models.Model | None]:
    """The clients' network, and the same with BatchNorm in the other mode, if it has such layers and a choice."""
    given = command.model
    facts: dict[str, Any] = {
        "input_shape": shape,
        "num_classes": num_classes,
        "mean": command.mean,
        "std": command.std,
    }
    external = models.is_external(given.name)

    def made(mode: str) -> models.Model:
        make = models.import_model if external else models.create
        return given.with_roles(make(given.name, **facts, **replace(given, batch_norm=mode).options))

    model = made(given.batch_norm)
    if external and given.batch_norm == "eval":
        models.check_eval_mode(model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    if not isinstance(params, Mapping) or not params.get("batch_stats"):
        return model, None
    try:
        return model, made("train" if given.batch_norm == "eval" else "eval")
    except ValueError:  # the network decides its mode itself
        return model, None
