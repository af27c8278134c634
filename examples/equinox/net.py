"""A network in Equinox. `make` is what `jaxinvert audit --model net:make` calls."""

import equinox as eqx
import jax


class Net(eqx.Module):
    """Two convolutions and a dense layer, for one normalized image [3, 32, 32]."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        first, second, third = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(3, 12, 5, stride=2, padding=2, key=first)
        self.conv2 = eqx.nn.Conv2d(12, 12, 5, stride=2, padding=2, key=second)
        self.head = eqx.nn.Linear(12 * 8 * 8, 10, key=third)

    def __call__(self, x: jax.Array) -> jax.Array:
        """An image to logits."""
        x = jax.nn.sigmoid(self.conv1(x))
        x = jax.nn.sigmoid(self.conv2(x))
        return self.head(x.reshape(-1))


def make() -> Net:
    """The network, with the same parameters every time."""
    return Net(jax.random.key(0))
