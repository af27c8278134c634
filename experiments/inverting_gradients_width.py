"""Inverting Gradients, network width: wider layers betray more.

Setting: untrained ConvNet of the paper with base widths 8 to 64 (the paper's figure: 16, 64, 128), one normalized
CIFAR-10 image per client, label known, 4,000 steps, TV 1e-6. The paper shows pictures that get better with width,
except for ~28.1 dB at width 64 no numbers. Scaled: 1,000 steps.

Command:  python -m experiments.inverting_gradients_width --data FILE.npz --json FILE.json
Paper:    the same with --full
Smoke:    python -m experiments.inverting_gradients_width --smoke
Measured: see experiments/details/inverting-gradients.md
"""

from collections.abc import Sequence

from experiments import harness
from experiments.harness import Row

CONVNET = {"tv": 1e-6, "restarts": 1, "steps": 4000, "targets": 10}

ROWS = tuple(
    Row(
        f"width {width}",
        {**CONVNET, "model": f"convnet{width}"},
        {"targets": 4, "steps": 1000} if width <= 64 else None,
        28.1 if width == 64 else None,
    )
    for width in (8, 16, 32, 64, 128)
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rows that are chosen and prints them."""
    harness.run_table("Inverting Gradients, network width", ROWS, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
