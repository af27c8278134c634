"""Inverting Gradients, table 1: one image per client, two networks, untrained and trained, two attacks.

Setting: normalized CIFAR-10 images, labels known; cosine distance with signed Adam, 4,800 steps, TV 1e-2, against the
Euclidean distance with L-BFGS; PSNR on [0, 1], mean over 100 images, one restart, selected by attack loss.
Deviations: the trained networks are those of `experiments.train` on 5,000 images (the paper's saw 50,000), and the
untrained network of the L-BFGS row does not normalize its pixels, as in DLG. ConvNet-64 is the paper's figure
of a 32 x 32 photograph.

Command:  python -m experiments.inverting_gradients_single --data FILE.npz --json FILE.json
Paper:    the same with --full
Smoke:    python -m experiments.inverting_gradients_single --smoke
Measured: see experiments/details/inverting-gradients.md
"""

from collections.abc import Sequence
from pathlib import Path

from experiments import harness
from experiments.harness import Row

COSINE = {"attack": "inverting-gradients", "targets": 100, "restarts": 1, "steps": 4800, "tv": 1e-2}
EUCLIDEAN = {"attack": "idlg", "targets": 100, "restarts": 1, "steps": 4800, "chunk": 1}
LENET = {"model": "lenet"}
TRAINED_LENET = {"model": "lenet", "checkpoint": Path("runs/train/lenet/epoch-20.safetensors")}
RESNET = {"model": "resnet20-4"}
# Trained by `python -m experiments.train --model resnet20-4 --out runs/train/resnet20-4`, on an accelerator.
TRAINED_RESNET = {"model": "resnet20-4", "checkpoint": Path("runs/train/resnet20-4/epoch-20.safetensors")}
PHOTO = {"model": "convnet64", "targets": 1, "steps": 4000, "tv": 1e-6}

ROWS = (
    Row("LeNet untrained, cosine", {**LENET, **COSINE}, {}, 18.00),
    Row("LeNet untrained, cosine, 8 restarts", {**LENET, **COSINE, "restarts": 8}, {"targets": 20}),
    Row("LeNet trained, cosine", {**TRAINED_LENET, **COSINE}, {}, 18.08),
    Row("LeNet untrained, Euclidean", {**LENET, **EUCLIDEAN, "normalized": False}, {"targets": 20}, 46.25),
    Row("LeNet trained, Euclidean", {**TRAINED_LENET, **EUCLIDEAN}, {"targets": 20}, 13.24),
    Row("ResNet20-4 untrained, cosine", {**RESNET, **COSINE}, {"targets": 4, "steps": 1200}, 19.83),
    Row("ResNet20-4 trained, cosine", {**TRAINED_RESNET, **COSINE}, None, 13.95),
    Row("ConvNet-64 untrained, cosine", {**COSINE, **PHOTO}, {"targets": 4, "steps": 1000}, 28.1),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rows that are chosen and prints them beside the published ones."""
    harness.run_table("Inverting Gradients, single images", ROWS, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
