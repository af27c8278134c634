"""GradInversion, its ladder of terms: gradient alone, + fidelity, + group consistency, + registration.

Setting: a group of eight seeds, Adam with warm-up, cosine decay and Langevin noise; fidelity is total variation, l2
norm and BatchNorm statistics (here against the running ones). Published: ImageNet, ResNet-50, batch of 8, 20,000
steps: 10.75, 12.06, 12.52 and 12.93 dB. Labels are known (the paper restores them at 99.6 %). Scaled: CIFAR-10,
ResNet20 of the original width after five epochs of `experiments.train`, one batch of 4, 400 steps. `--full` needs
`--data` with 224 px photographs.

Command:  python -m experiments.see_through_gradients_ladder --data FILE.npz --json FILE.json
Paper:    the same with --full
Smoke:    python -m experiments.see_through_gradients_ladder --smoke
Measured: see experiments/details/see-through-gradients.md
"""

from collections.abc import Sequence
from pathlib import Path

from experiments import harness
from experiments.harness import Row

PAPER = {
    "attack": "see-through-gradients",
    "model": "resnet50",
    "num_examples": 8,
    "targets": 4,
    "restarts": 1,
    "steps": 20_000,
}
SCALED = {
    "model": "resnet20-1",
    "checkpoint": Path("runs/train/resnet20-1/epoch-5.safetensors"),
    "num_examples": 4,
    "targets": 1,
    "steps": 400,
}
ALONE = {"tv": 0.0, "l2": 0.0, "batch_norm": 0.0, "group": 0.0}
LADDER = (
    ("gradient alone", ALONE, 10.75),
    ("+ fidelity", {"group": 0.0}, 12.06),
    ("+ group", {"registration": 0.0}, 12.52),
    ("+ registration", {}, 12.93),
)
ROWS = tuple(Row(name, {**PAPER, "settings": terms}, SCALED, published) for name, terms, published in LADDER)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rungs that are chosen and prints them beside the published ones."""
    harness.run_table("GradInversion, the ladder", ROWS, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
