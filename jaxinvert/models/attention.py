"""Transformer layers: self-attention with separate query, key and value layers, which attacks read, and a perceptron.

    Q = z W_q + b_q,   K = z W_k + b_k,   V = z W_v + b_v,   softmax(Q K^T / sqrt(d / heads)) V W_o + b_o

for tokens `z [n, d]`, where each head uses its own `d / heads` columns (Vaswani et al.: Attention Is All You Need.
NeurIPS 2017, arXiv:1706.03762).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert.types import Array

dense = functools.partial(linen.Dense, kernel_init=linen.initializers.xavier_uniform())
"""Dense layer with the initialization of Vision Transformers: Glorot uniform kernels, zero biases."""

layer_norm = functools.partial(linen.LayerNorm, epsilon=1e-5, use_fast_variance=False)
"""LayerNorm with PyTorch's epsilon and a variance without cancellation in its derivatives."""


class SelfAttention(linen.Module):
    """Dense layers `query`, `key`, `value` and `out`, each `[d, d]` with a bias.

    Attributes:
      num_heads: divides the width `d`.
      causal: whether a token attends only to itself and earlier tokens.
    """

    num_heads: int
    causal: bool = False

    @linen.compact
    def __call__(self, tokens: Array) -> Array:
        """`[B, n, d]` to `[B, n, d]`."""
        batch_size, num_tokens, width = tokens.shape
        by_head = (batch_size, num_tokens, self.num_heads, width // self.num_heads)
        query, key, value = (dense(width, name=name)(tokens).reshape(by_head) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(by_head[-1])
        if self.causal:
            visible = jnp.tril(jnp.ones((num_tokens, num_tokens), bool))
            scores = jnp.where(visible[None, None], scores, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores), value)
        return dense(width, name="out")(mixed.reshape(tokens.shape))


class Perceptron(linen.Module):
    """Two dense layers with a GELU, `d -> 4 d -> d`, applied to every token."""

    @linen.compact
    def __call__(self, tokens: Array) -> Array:
        """`[B, n, d]` to `[B, n, d]`."""
        width = tokens.shape[-1]
        hidden = linen.gelu(dense(4 * width, name="dense_0")(tokens), approximate=False)
        return dense(width, name="dense_1")(hidden)
