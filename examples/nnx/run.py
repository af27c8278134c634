"""Trains one round of FedAvg in Flax NNX, and audits what the server saw of it.

    python examples/nnx/run.py

The page is `runs/nnx/audit/report.html`. Each client has one of the embedded photos. The lines with (1) to (3) write
the capture.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import jax
import net
import numpy as np
import optax
import photos
from flax import nnx

from jaxinvert.integrations import capture

MEAN, STD, RATE = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0.1


@nnx.jit
def step(model: net.Net, optimizer: nnx.Optimizer, inputs: jax.Array, labels: jax.Array) -> None:
    """One step of SGD."""

    def loss(model: net.Net) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def main() -> int:
    """Runs the example and returns the exit status of the audit."""
    options = photos.options(__doc__, "nnx")
    photos.save(options.out, options.clients)
    facts = {"input_shape": [32, 32, 3], "num_classes": 10, "local": {"learning_rate": RATE, "epochs": 1}}
    writer = capture.Writer(options.out / "round-0001", normalization=(MEAN, STD), facts=facts)
    server = net.make()
    writer.params(nnx.to_pure_dict(nnx.state(server)))  # (1)
    with np.load(options.out / "photos.npz") as images:
        for client, (image, label) in enumerate(zip(images["images"], images["labels"])):
            local = nnx.clone(server)
            inputs = (image[None] / 255 - np.float32(MEAN)) / np.float32(STD)
            step(local, nnx.Optimizer(local, optax.sgd(RATE), wrt=nnx.Param), inputs.astype(np.float32), label[None])
            writer.client(str(client), nnx.to_pure_dict(nnx.state(local)), num_examples=1)  # (2)
            writer.truth(str(client), image[None], label[None])  # (3)
    return photos.audit(options.out / "round-0001", HERE, options.out / "audit", options.steps)


if __name__ == "__main__":
    sys.exit(main())
