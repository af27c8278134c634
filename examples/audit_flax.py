"""Audits a Flax network of one's own, with and without noise on the updates.

    python examples/audit_flax.py

Nine simulated clients compute the gradient of one embedded photograph each. `jaxinvert audit` attacks each of them,
by an attacker who ignores the defense and by one who adapts to it, and sets the result beside null controls. The page
is `runs/audit_flax/report.html`.
"""

import argparse
import sys
from pathlib import Path

import jax
from flax import linen as nn

from jaxinvert.cli import main as jaxinvert


class Net(nn.Module):
    """Two convolutions and a dense layer, for images [B, 32, 32, 3]; returns logits [B, 10]."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalized images to logits."""
        x = nn.sigmoid(nn.Conv(12, (5, 5), strides=2)(inputs))
        x = nn.sigmoid(nn.Conv(12, (5, 5), strides=2)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def make() -> Net:
    """The network: what `--model audit_flax:make` calls."""
    return Net()


def main() -> int:
    """Runs the audit and returns its exit status, which does not depend on the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/audit_flax"))
    parser.add_argument("--clients", type=int, default=9, help="as many as the page names (usually 9), for a verdict")
    parser.add_argument("--steps", type=int, default=200, help="steps of the attack")
    parser.add_argument("--defenses", nargs="+", default=["none", "gaussian:scale=0.1"])
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    network = ["--model", "audit_flax:make", "--targets", str(options.clients)]
    search = ["--attack", "inverting-gradients", "--restarts", "1", "--steps", str(options.steps)]
    return jaxinvert(["audit", *network, *search, "--defenses", *options.defenses, "--out", str(options.out)])


if __name__ == "__main__":
    sys.exit(main())
