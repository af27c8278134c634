"""Long local training: matching one gradient between both models (SME), or simulating every local step?

Setting: clients train on 8 images in full batches with plain SGD, for 1 to 50 epochs; labels are known.
`surrogate-model` and `surrogate-curve` need neither the rate nor the steps. The others know both and differentiate
through all local steps, so their cost grows with the epochs; `seconds_run` and `steps_per_second` show it.

Command:  python -m experiments.long_training --data FILE.npz --json FILE.json   (one client, 400 steps)
Paper:    the same with --full
Smoke:    python -m experiments.long_training --smoke
Measured: see experiments/details/long-training.md
"""

from collections.abc import Sequence

from experiments import harness
from experiments.harness import Row

CLIENT = {"client": "fedavg", "local_lr": 0.01, "num_examples": 8, "targets": 4, "restarts": 1, "steps": 4800}
SCALED = {"targets": 1, "steps": 400}
LONG = 20
"""Epochs from which two of the attacks that simulate every step are left to `--full`: they take longest."""
ATTACKS = {
    "surrogate-model": 1e-3,
    "surrogate-curve": 1e-3,
    "fedleak": 1e-3,
    "fedavg-epochs": 1e-3,
    "inverting-gradients": 1e-3,
    "spectral": None,
}
"""Attacks and their weight of the total variation."""

ROWS = tuple(
    Row(
        f"{model}, {epochs} epochs, {attack}",
        {**CLIENT, "model": model, "local_epochs": epochs, "attack": attack, "tv": tv},
        None if epochs >= LONG and attack in ("fedleak", "fedavg-epochs") else SCALED,
    )
    for model in ("small-convnet", "lenet")
    for epochs in (1, 5, 20, 50)
    for attack, tv in ATTACKS.items()
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rows that are chosen."""
    harness.run_table("Long local training", ROWS, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
