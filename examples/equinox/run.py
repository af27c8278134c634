"""Trains one round of FedAvg in Equinox, and audits what the server saw of it.

    python examples/equinox/run.py                     # needs pip install 'jaxinvert[equinox]'

The page is `runs/equinox/audit/report.html`. Each client has one of the embedded photos. The lines with (1) to (3)
write the capture.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import equinox as eqx
import jax
import net
import numpy as np
import optax
import photos

from jaxinvert.integrations import capture

MEAN, STD, RATE = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0.1


@eqx.filter_jit
def step(model: net.Net, inputs: jax.Array, labels: jax.Array) -> net.Net:
    """One step of SGD."""

    def loss(model: net.Net) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(inputs), labels).mean()

    return eqx.apply_updates(model, jax.tree.map(lambda g: -RATE * g, eqx.filter_grad(loss)(model)))


def arrays(model: net.Net) -> dict[str, jax.Array]:
    """The arrays by attribute, such as "conv1.weight"."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def main() -> int:
    """Runs the example and returns the exit status of the audit."""
    options = photos.options(__doc__, "equinox")
    photos.save(options.out, options.clients)
    facts = {"input_shape": [32, 32, 3], "num_classes": 10, "local": {"learning_rate": RATE, "epochs": 1}}
    writer = capture.Writer(options.out / "round-0001", normalization=(MEAN, STD), facts=facts)
    server = net.make()
    writer.params(arrays(server))  # (1)
    with np.load(options.out / "photos.npz") as images:
        for client, (image, label) in enumerate(zip(images["images"], images["labels"])):
            inputs = (image[None] / 255 - np.float32(MEAN)) / np.float32(STD)
            local = step(server, inputs.astype(np.float32).transpose(0, 3, 1, 2), label[None])
            writer.client(str(client), arrays(local), num_examples=1)  # (2)
            writer.truth(str(client), image[None], label[None])  # (3)
    return photos.audit(options.out / "round-0001", HERE, options.out / "audit", options.steps)


if __name__ == "__main__":
    sys.exit(main())
