"""Multi-layer perceptrons: dense layers with ReLU, the target of the closed-form dense-layer attacks.

For one example and any unit i with dL/db_i != 0, the layer's input is `(dL/dW_i) / (dL/db_i)`, Proposition
3.1 of Geiping, Bauermeister, Droege, Moeller: Inverting Gradients. NeurIPS 2020, arXiv:2003.14053.
"""

from collections.abc import Sequence

from flax import linen

from jaxinvert.models.layers import dense_like_torch
from jaxinvert.models.model import Model, from_linen
from jaxinvert.types import Array


class MLP(linen.Module):
    """Flattened inputs, hidden layers `dense_0`, `dense_1`, ... with ReLU, then the head."""

    num_classes: int
    features: tuple[int, ...]
    hidden_bias: bool

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate(self.features):
            layer = dense_like_torch(features, x.shape[-1], name=f"dense_{i}", use_bias=self.hidden_bias)
            x = linen.relu(layer(x))
        return dense_like_torch(self.num_classes, x.shape[-1], name="head")(x)


def mlp(
    *,
    features: Sequence[int] = (256,),
    hidden_bias: bool = True,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """A perceptron with the given hidden widths and PyTorch's default initialization.

    Args:
      features: widths of the hidden layers; empty = softmax regression.
      hidden_bias: whether the hidden layers have biases, which reveal their inputs; the head always has one.
      input_shape: `(H, W, C)` of one example, flattened in that order.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.

    Returns:
      The model "mlp", or "mlp-unbiased", with the hidden widths appended unless they are (256,).

    Raises:
      ValueError: for a hidden width below 1.
    """
    features = tuple(features)
    if any(width < 1 for width in features):
        raise ValueError(f"features must be positive widths, got {features}")
    kind = "mlp" if hidden_bias else "mlp-unbiased"
    return from_linen(
        MLP(num_classes, features, hidden_bias),
        name=kind if features == (256,) else "-".join([kind, *map(str, features)]),
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )
