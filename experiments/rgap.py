"""R-GAP: one image read layer by layer through LeNet's convolutions, without a search.

Setting: normalized CIFAR-10 images, one per client, FedSGD, float32 gradients; labels are neither known nor needed.
The paper's networks are others, so there is no published figure to compare with. Training saturates sigmoids, whose
inverse the recursion needs, and shrinks the gradient that it divides by.

Command:  python -m experiments.rgap --data FILE.npz --json FILE.json
Smoke:    python -m experiments.rgap --smoke
Expected: at least 60 dB for every image of the untrained network.
Measured: see experiments/details/rgap.md
"""

from collections.abc import Sequence
from pathlib import Path

from experiments import harness
from experiments.harness import Row

LENET = {"attack": "rgap", "model": "lenet", "targets": 20, "restarts": 1}
SMALL = {"targets": 1, "size": 12}

ROWS = (
    Row("LeNet untrained", LENET, {}, smoke=SMALL),
    *(
        Row(
            f"LeNet after {epochs} epochs",
            {**LENET, "checkpoint": Path(f"runs/train/lenet/epoch-{epochs}.safetensors")},
            {},
        )
        for epochs in (1, 20)
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rows that are chosen and prints them."""
    harness.run_table("R-GAP", ROWS, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
