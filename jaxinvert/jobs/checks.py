"""Validation of configurations: combinations of fields of several groups that are not possible."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from jaxinvert import labels
from jaxinvert.attacks import adaptive
from jaxinvert.attacks.registry import Entry
from jaxinvert.jobs.groups import (
    AttackerConfig,
    ClientConfig,
    DefenseConfig,
    ModelConfig,
    ObservationConfig,
    attacks_that,
)
from jaxinvert.jobs.limits import MAX_LOCAL_STEPS

BatchNormMode = Literal["eval", "train"]


def check_batches(
    client: ClientConfig, num_examples: int, *, batch_norm: BatchNormMode = "eval", reads: Collection[str] = ()
) -> None:
    """Raises ValueError for local batches or chunks that do not fit the clients' network or the label rule.

    Args:
      client: how the clients train.
      num_examples: number of each client's examples.
      batch_norm: mode of the clients' BatchNorm layers.
      reads: the fields of an observation that the label rule reads.
    """
    if (steps := client.local_training(num_examples).num_steps) > MAX_LOCAL_STEPS:
        raise ValueError(f"local training takes {steps:,} steps, expected at most {MAX_LOCAL_STEPS:,}")
    uneven = num_examples % client.num_examples_per_step(num_examples)
    if uneven and "local_training" in reads:
        raise ValueError(
            f"{num_examples} examples in local batches of {client.local_batch_size} leave a last batch of {uneven}, "
            "whose gradient weighs each of them more, but the label rule assumes equal weights; the sign rules "
            "(bias-sign, idlg, llg, yin) do not"
        )
    if client.gradient_chunk is not None and batch_norm == "train":
        raise ValueError(
            f"gradient_chunk is {client.gradient_chunk}, but batch_norm='train' couples all examples of a batch"
        )


def check_attack(
    attacker: AttackerConfig,
    client: ClientConfig,
    observation: ObservationConfig,
    *,
    batch_norm: BatchNormMode,
    reads: Collection[str],
) -> None:
    """Raises ValueError for an attack that is not possible with these clients or this observation.

    Args:
      attacker: the attack and the attacker's knowledge.
      client: how the clients train.
      observation: what the server sees.
      batch_norm: mode of the clients' BatchNorm layers.
      reads: the fields of an observation that the label rule reads.
    """
    name, entry = attacker.attack, attacker.entry
    if "batch_stats" in entry.needs and batch_norm == "eval":
        raise ValueError(f"attack {name!r} needs clients in train mode: batch_norm='train'")
    if observation.rounds > 1 and not entry.traits.every_round:
        able = attacks_that(lambda entry: entry.traits.every_round)
        raise ValueError(f"rounds is {observation.rounds}, but attack {name!r} uses one round only; {able} use all")
    plain = client.local_optimizer == "sgd" and client.local_weight_decay == 0
    if not plain and ("local_training" in reads or entry.traits.restores_labels):
        raise ValueError(
            "the label rule assumes an update that is the sum of gradients times the learning rate, which requires "
            "plain sgd; the sign rules (bias-sign, idlg, llg, yin) do not"
        )


def check_task(attacker: AttackerConfig, task: str) -> None:
    """Raises ValueError for an attack or for labels that assume classes, if the network is for something else.

    Args:
      attacker: the attack and the attacker's knowledge.
      task: the network's, see `models.tasks`.
    """
    if task == "classes":
        return
    entry = attacker.entry
    if attacker.labels == "joint":
        raise ValueError(f"labels='joint' optimizes softmax labels of classes, but the network's task is {task}")
    if "labels" not in entry.needs and not entry.traits.any_loss:
        able = attacks_that(lambda entry: entry.traits.any_loss or "labels" in entry.needs)
        raise ValueError(
            f"attack {attacker.attack!r} assumes softmax cross-entropy, but the network's task is {task}; "
            f"{able} do not"
        )


def check_rule(rule: str, task: str) -> None:
    """Raises ValueError for a label rule that assumes another loss than that of the network's task."""
    for_tasks = labels.REGISTRY[rule].tasks
    if task not in for_tasks:
        others = [name for name, one in labels.REGISTRY.items() if task in one.tasks]
        hint = f"label rule {' or '.join(others)} does not" if others else "no rule restores such labels: grant them"
        raise ValueError(
            f"label rule {rule!r} is for the task {' or '.join(for_tasks)} and its loss, but the network's is "
            f"{task}; {hint}"
        )


def check_defense(
    defense: DefenseConfig,
    client: ClientConfig,
    num_examples: int,
    *,
    batch_norm: BatchNormMode = "eval",
    checkpoint: Path | None = None,
) -> None:
    """Raises ValueError for a defense that is not possible with these clients."""
    for name, recipe in zip(defense.chain.names, defense.chain.recipes):
        if recipe.single_examples and batch_norm == "train":
            raise ValueError(f"defense {name!r} processes single examples, which batch_norm='train' couples")
        if num_examples < recipe.least_examples:
            raise ValueError(
                f"defense {name!r} has no effect with num_examples {num_examples}, expected at least "
                f"{recipe.least_examples}"
            )
        if recipe.changes_model and checkpoint is not None:
            raise ValueError(f"defense {name!r} adds layers for which {checkpoint} has no parameters")
        if recipe.one_step and client.kind != "fedsgd":
            raise ValueError(f"defense {name!r} is defined for one gradient: it needs client='fedsgd'")


def check_dropout(model: ModelConfig, client: ClientConfig, defense: DefenseConfig) -> None:
    """Raises ValueError for random layers that draw together with what is not simulated for them."""
    if model.dropout == "eval":
        return
    if defense.chain.names:
        raise ValueError(f"dropout is 'train', but defense {defense.name!r} is only simulated with dropout='eval'")
    if client.gradient_chunk is not None:
        raise ValueError(
            f"dropout is 'train', but gradient_chunk is {client.gradient_chunk}: chunks would share draws"
        )


def check_adaptive(defense: DefenseConfig, entry: Entry, *, aggregate: int = 1) -> None:
    """Raises ValueError for an adaptive attacker without a defense, or with one that it cannot adapt to."""
    if not defense.chain.names:
        raise ValueError("adaptive is True, but there is no defense to adapt to")
    if aggregate > 1:
        raise ValueError(
            f"adaptive is True, but no adaptive attacker is known for the mean of {aggregate} defended updates"
        )
    adaptive.counter_summary(defense.chain)
    if not entry.traits.adapts:
        able = attacks_that(lambda entry: entry.traits.adapts)
        raise ValueError(f"attack {entry.name!r} does not adapt to defenses; {able} do")
