"""A network in Flax NNX. `make` is what `jaxinvert audit --model net:make` calls."""

import jax
from flax import nnx


class Net(nnx.Module):
    """Two convolutions and a dense layer, for normalized images [B, 32, 32, 3]."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 12, (5, 5), strides=(2, 2), rngs=rngs)
        self.conv2 = nnx.Conv(12, 12, (5, 5), strides=(2, 2), rngs=rngs)
        self.head = nnx.Linear(12 * 8 * 8, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images to logits."""
        x = nnx.sigmoid(self.conv1(x))
        x = nnx.sigmoid(self.conv2(x))
        return self.head(x.reshape(x.shape[0], -1))


def make() -> Net:
    """The network, with the same parameters every time."""
    return Net(nnx.Rngs(0))
