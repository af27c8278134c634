"""General Deep Leakage against GradInversion: duplicate labels, FedSGD and FedAvg, a wrong label, one class.

Setting: untrained small ConvNet without BatchNorm (width 16), normalized images, labels drawn with replacement and
unknown to the attacker. General Deep Leakage counts them without data, GradInversion takes the B smallest minima of
the last layer's columns (`labels.yin`), which needs distinct ones. "One wrong label" and "one class" run General
Deep Leakage on the same images with one label exchanged, and on images of a single class. PSNR after one-to-one
matching, mean over all images.

Command:  python -m experiments.general_deep_leakage --data FILE.npz --json FILE.json
Smoke:    python -m experiments.general_deep_leakage --smoke
Measured: see experiments/details/general-deep-leakage.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import harness
from jaxinvert import attacks, clients, data, labels, metrics, models, search
from jaxinvert.attacks import Problem
from jaxinvert.attacks.matching import with_restored_labels
from jaxinvert.observation.observe import FEDSGD, observe_targets
from jaxinvert.observation.threat_models import LADDER
from jaxinvert.types import Array, Attack, Batch, LocalTraining, Observation, RecoverLabels


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      width: of the small ConvNet.
      batch_sizes: examples per client.
      targets: clients of each size.
      steps: of both attacks.
      seeds: in GradInversion's group, each of which costs as much as General Deep Leakage.
      local_steps: of the FedAvg clients, over all their examples.
      local_lr: their learning rate.
      seed: of the network, the batches and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "cifar10"
    width: int = 16
    batch_sizes: tuple[int, ...] = (4, 8)
    targets: int = 3
    steps: int = 300
    seeds: int = 4
    local_steps: int = 3
    local_lr: float = 0.01
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


class Case(NamedTuple):
    """One line of the table."""

    attack: str
    local_steps: int
    labels: str = "uniform"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every case on every batch size and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", batch_sizes=(2,), targets=1, steps=1, seeds=1)
    cases = [Case(attack, steps) for steps in (1, config.local_steps) for attack in ("general", "gradinversion")]
    cases += [Case("general", 1, "one wrong label"), Case("general", 1, "one class")]
    rows = []
    for batch_size in config.batch_sizes:
        for case in cases[:2] if config.smoke else cases:
            rows.append(measure(config, case, batch_size))
            print(f"done: B = {batch_size}, {case}", flush=True)
    harness.publish(f"General Deep Leakage, {Path(config.data).stem}", rows, json_file=config.json)


def measure(config: Config, case: Case, batch_size: int) -> dict:
    """Attacks some clients of one kind."""
    victims = data.load(config.data, split="test")
    batches = draw_batches(config, victims, batch_size, one_class=case.labels == "one class")
    if config.smoke:
        model = models.create("mlp-8", like=victims)
    else:
        model = models.create("small-convnet", width=config.width, like=victims)
    params = jax.jit(model.init)(jax.random.key(config.seed))
    loss_fn = model.loss
    if case.local_steps == 1:
        client_update, local_training = clients.fedsgd(loss_fn), FEDSGD
    else:
        client_update = clients.fedavg(loss_fn, optimizer=optax.sgd(config.local_lr), num_epochs=case.local_steps)
        local_training = LocalTraining(config.local_lr, case.local_steps)
    observations = observe_targets(
        jax.jit(client_update), params, batches, threat_model=LADDER["C"], local_training=local_training
    )
    problem = Problem(client_update, model, batch_size)

    def attack(settings: dict[str, Any]) -> Attack:
        if case.attack == "gradinversion":
            group = attacks.see_through_gradients(problem, num_seeds=config.seeds, **settings)
            return with_restored_labels(group, labels.yin(head=model.head), batch_size=batch_size)
        dummies = labels.natural_noise(jax.random.key(0), input_shape=model.input_shape)
        rule = labels.zero_shot(model.apply, dummies=dummies, head=model.head)
        if case.labels == "one wrong label":
            rule = one_wrong(rule)
        return attacks.general_deep_leakage(problem, rule=rule, **settings)

    *_, last = search.Stepwise(attack)(
        jax.random.key(config.seed + 1), observations, {"horizon": config.steps}, num_steps=config.steps
    )
    found = last.reconstruct()
    psnr = [metrics.evaluate(np.asarray(f), np.asarray(t)).psnr_db for f, t in zip(found.inputs, batches.inputs)]
    assert found.labels is not None
    return {
        "batch_size": batch_size,
        "local_steps": case.local_steps,
        "labels": case.labels,
        "attack": case.attack,
        "targets": config.targets,
        "labels_exact": float(np.mean(np.all(np.sort(found.labels) == np.sort(batches.labels), axis=1))),
        "mean_psnr_db": float(np.mean(psnr)),
        "worst_image_db": float(np.min(psnr)),
        "best_image_db": float(np.max(psnr)),
        "seconds_run": last.seconds,
    }


def draw_batches(config: Config, victims: data.Dataset, batch_size: int, *, one_class: bool) -> Batch:
    """Private batches `[T, B, ...]`: images drawn without replacement, so that labels are with."""
    generator = np.random.default_rng(config.seed)
    chosen = []
    for target in range(config.targets):
        pool = np.arange(len(victims.labels))
        if one_class:
            pool = pool[victims.labels == target % victims.num_classes]
        chosen.append(generator.choice(pool, batch_size, replace=False))
    return Batch(jnp.asarray(victims.images[np.stack(chosen)]), jnp.asarray(victims.labels[np.stack(chosen)]))


def one_wrong(rule: RecoverLabels) -> RecoverLabels:
    """The rule with one example moved from the most frequent class to the rarest."""

    def recover(observation: Observation) -> Array:
        counts = rule(observation)
        return counts.at[jnp.argmax(counts)].add(-1).at[jnp.argmin(counts)].add(1)

    return recover


if __name__ == "__main__":
    main()
