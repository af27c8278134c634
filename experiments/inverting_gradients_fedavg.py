"""Inverting Gradients, federated averaging: what several local steps leave of the leak.

Setting: untrained ConvNet-64, normalized CIFAR-10 images, labels known, local SGD with known rate and order, the
attack differentiates through all local steps. Published: one photograph in five steps ~25.1 dB (8,000 steps of the
attack), 8 images in five full-batch steps ~15.0 dB (24,000); one epoch over 4 images in mini-batches of 2 16.9 dB,
over 8 in mini-batches of 2 14.7 dB, over 8 at once 16.5 dB. Scaled: small-convnet, two clients and 500 steps.

Command:  python -m experiments.inverting_gradients_fedavg --data FILE.npz --json FILE.json
Paper:    the same with --full
Smoke:    python -m experiments.inverting_gradients_fedavg --smoke
Measured: see experiments/details/inverting-gradients.md
"""

from collections.abc import Sequence

from experiments import harness
from experiments.harness import Row

FEDAVG = {"model": "convnet64", "client": "fedavg", "local_lr": 1e-4, "restarts": 1, "steps": 8000, "tv": 1e-6}
SMALL = {"model": "small-convnet", "targets": 2, "steps": 500}


def clients(num_examples: int, epochs: int, batch_size: int) -> dict:
    """The local training of one row."""
    return {"num_examples": num_examples, "local_epochs": epochs, "local_batch_size": batch_size}


ROWS = (
    Row("1 image, 5 steps", {**FEDAVG, **clients(1, 5, 1), "targets": 10}, SMALL, 25.1),
    Row("8 images, 5 steps", {**FEDAVG, **clients(8, 5, 8), "targets": 10, "steps": 24_000}, SMALL, 15.0),
    Row("4 images, 1 epoch of 2", {**FEDAVG, **clients(4, 1, 2), "targets": 10}, SMALL, 16.9),
    Row("8 images, 1 epoch of 2", {**FEDAVG, **clients(8, 1, 2), "targets": 10}, SMALL, 14.7),
    Row("8 images, 1 epoch of 8", {**FEDAVG, **clients(8, 1, 8), "targets": 10}, SMALL, 16.5),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rows that are chosen and prints them beside the published ones."""
    harness.run_table("Inverting Gradients, federated averaging", ROWS, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
