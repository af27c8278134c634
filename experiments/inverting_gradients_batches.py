"""Inverting Gradients, batches of 8 and of 100 images: a mean gradient does not hide all of them.

Setting: untrained networks, normalized images, labels known, PSNR after one-to-one matching. Published: a batch of
100 CIFAR-100 images on ResNet32-10, 24,000 steps, TV 5e-4: mean 11.20 dB, best image 16.8. Scaled: CIFAR-10 on LeNet
(TV 1e-2) and a narrow ConvNet, for which there is no published number.

Command:  python -m experiments.inverting_gradients_batches --data FILE.npz --json FILE.json
Paper:    the same with --full --data cifar100
Smoke:    python -m experiments.inverting_gradients_batches --smoke
Measured: see experiments/details/inverting-gradients.md
"""

from collections.abc import Sequence

from experiments import harness
from experiments.harness import Row

BATCH = {"restarts": 1, "targets": 1, "steps": 24_000, "tv": 5e-4}
LENET = {"model": "lenet", "tv": 1e-2}
CONVNET = {"model": "convnet16"}

ROWS = (
    Row("8 images, LeNet", {**BATCH, **LENET, "num_examples": 8, "targets": 10}, {"targets": 4, "steps": 4800}),
    Row("100 images, LeNet", {**BATCH, **LENET, "num_examples": 100}, {"steps": 4800}),
    Row(
        "8 images, ConvNet-16", {**BATCH, **CONVNET, "num_examples": 8, "targets": 10}, {"targets": 2, "steps": 1000}
    ),
    Row("100 images, ResNet32-10", {**BATCH, "model": "resnet32-10", "num_examples": 100}, None, 11.20),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rows that are chosen and prints them beside the published ones."""
    harness.run_table("Inverting Gradients, batches", ROWS, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
