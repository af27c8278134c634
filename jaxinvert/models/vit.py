"""Small Vision Transformers: patches, position embeddings, self-attention, the mean of all tokens, a head.

    z_s = x_s W + b + e_s    for patch s of an image,    then `depth` blocks, a norm, the mean over s, and the head.

There are two kinds of blocks, which determine the attacks on attention that apply:

| kind     | block                                           | tokens enter the first attention |
|----------|-------------------------------------------------|----------------------------------|
| plain    | `perceptron(norm(attention(z)))`                | unnormalized, without a skip     |
| pre-norm | `y = z + attention(norm(z))`, `y + perceptron(norm(y))` | normalized, with a skip  |

The closed form of APRIL needs the plain kind: there the derivative with respect to `z`, which equals that of the
position embeddings, comes from the attention alone. Pre-norm is the usual kind. Both average the tokens instead of
using a class token. With a class token and one block, the gradient of the position embeddings would have rank 2 per
head, too low to be inverted. The gradient of the mean passes through every token's perceptron and has full rank.

Position embeddings `e_s` are learnable, or fixed waves along rows and columns, which have no gradient.

References:
  Dosovitskiy et al.: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. ICLR 2021,
  arXiv:2010.11929.
  Lu, Zhang, Zhao, He, Cheng: APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers. CVPR 2022,
  arXiv:2112.14087: the plain kind is their architecture (A), the other their (B).
  Beyer, Zhai, Kolesnikov: Better plain ViT baselines for ImageNet-1k. 2022, arXiv:2205.01580: the fixed embeddings.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen

from jaxinvert.models.attention import Perceptron, SelfAttention, dense, layer_norm
from jaxinvert.models.layers import unknown_value
from jaxinvert.models.model import Model, from_linen
from jaxinvert.types import Array

_KINDS = ("plain", "pre-norm")
_POSITIONS = ("learnable", "fixed")
_SIZES = (4, 128, 1)


class VisionTransformer(linen.Module):
    """Layers `patches`, `positions`, for each block `attention_i`, `perceptron_i` and their norms; then `head`."""

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int
    plain: bool
    fixed: bool = False

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        tokens = dense(self.width, name="patches")(to_patches(x, self.patch))
        if self.fixed:
            tokens += waves(x.shape[1] // self.patch, x.shape[2] // self.patch, self.width)[None].astype(tokens.dtype)
        else:
            tokens += self.param("positions", linen.initializers.normal(0.02), tokens.shape[1:])[None]
        for i in range(self.depth):
            attention = SelfAttention(self.num_heads, name=f"attention_{i}")
            perceptron = Perceptron(name=f"perceptron_{i}")
            if self.plain:
                tokens = perceptron(layer_norm(name=f"perceptron_norm_{i}")(attention(tokens)))
            else:
                tokens += attention(layer_norm(name=f"attention_norm_{i}")(tokens))
                tokens += perceptron(layer_norm(name=f"perceptron_norm_{i}")(tokens))
        return dense(self.num_classes, name="head")(jnp.mean(layer_norm(name="norm")(tokens), axis=1))


def vit(
    *,
    kind: str = "plain",
    patch: int = 4,
    width: int = 128,
    depth: int = 1,
    num_heads: int = 8,
    positions: str = "learnable",
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """A Vision Transformer of one of two kinds; kernels Glorot uniform, position embeddings N(0, 0.02^2).

    Args:
      kind: "plain" or "pre-norm", see the module docstring.
      patch: side of a patch in pixels; divides both sides of the images.
      width: `d`, width of the tokens.
      depth: number of blocks.
      num_heads: heads of every attention; divides the width.
      positions: "learnable" or "fixed", see `waves`.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.

    Returns:
      The model "vit-plain" or "vit-pre-norm", with `fixed` appended for fixed positions, and `patch-width-depth`
      unless they are 4-128-1.

    Raises:
      ValueError: for an unknown kind, a size below 1, or a size that violates a divisibility condition above.
    """
    if kind not in _KINDS:
        raise unknown_value("kind", kind, _KINDS)
    if positions not in _POSITIONS:
        raise unknown_value("positions", positions, _POSITIONS)
    if positions == "fixed" and width % 4:
        raise ValueError(f"fixed positions need a width that 4 divides, got {width}")
    for name, size in {"patch": patch, "width": width, "depth": depth, "num_heads": num_heads}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if width % num_heads:
        raise ValueError(f"num_heads must divide the width {width}, got {num_heads}")
    if any(side % patch for side in input_shape[:2]):
        raise ValueError(f"patch must divide the sides of images {tuple(input_shape)}, got {patch}")
    sizes, fixed = (patch, width, depth), positions == "fixed"
    return from_linen(
        VisionTransformer(num_classes, *sizes, num_heads, plain=kind == "plain", fixed=fixed),
        name="-".join(["vit", kind, *(["fixed"] if fixed else []), *(map(str, sizes) if sizes != _SIZES else ())]),
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )


def waves(rows: int, columns: int, width: int) -> Array:
    """Fixed position embeddings `[rows * columns, width]`: sines and cosines of the row, then of the column.

    The `width / 4` frequencies fall geometrically from 1 to nearly 1e-4 radians per patch, as in Beyer et al. (2022).
    """
    frequencies = 1e4 ** -(jnp.arange(width // 4) / (width // 4))
    row, column = jnp.divmod(jnp.arange(rows * columns), columns)
    angles = [place[:, None] * frequencies[None] for place in (row, column)]
    return jnp.concatenate([wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)], axis=1)


def to_patches(images: Array, patch: int) -> Array:
    """`[B, H, W, C]` to `[B, n, patch * patch * C]`: patches in row-major order, each flattened like an image."""
    batch_size, height, width, channels = images.shape
    grid = images.reshape(batch_size, height // patch, patch, width // patch, patch, channels)
    return jnp.swapaxes(grid, 2, 3).reshape(batch_size, -1, patch * patch * channels)


def from_patches(patches: Array, image_shape: Sequence[int]) -> Array:
    """The inverse of `to_patches`: `[B, n, patch * patch * C]` to `[B, H, W, C]`."""
    height, width, channels = image_shape
    patch = round((patches.shape[-1] // channels) ** 0.5)
    grid = patches.reshape(-1, height // patch, width // patch, patch, patch, channels)
    return jnp.swapaxes(grid, 2, 3).reshape(-1, height, width, channels)
