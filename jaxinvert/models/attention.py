"""Self-attention of transformers, with the three projections that attacks on attention read as layers of their own.

    Q = z W_q + b_q,   K = z W_k + b_k,   V = z W_v + b_v,   softmax(Q K^T / sqrt(d / heads)) V W_o + b_o

for tokens `z [n, d]`, each head on its own `d / heads` columns (Vaswani et al.: Attention Is All You Need. NeurIPS
2017, arXiv:1706.03762).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert.types import Array

dense = functools.partial(linen.Dense, kernel_init=linen.initializers.xavier_uniform())
"""The start of Vision Transformers: kernels of Glorot and Bengio's uniform law, biases zero."""

layer_norm = functools.partial(linen.LayerNorm, epsilon=1e-5, use_fast_variance=False)
"""PyTorch's epsilon, and a variance whose derivatives do not cancel."""


class SelfAttention(linen.Module):
    """Dense layers `query`, `key`, `value` and `out`, each `[d, d]` with a bias.

    Attributes:
      num_heads: divides the width `d`.
      causal: whether a token sees none of those behind it.
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
    """Two dense layers with a GELU, `d -> 4 d -> d`, on every token."""

    @linen.compact
    def __call__(self, tokens: Array) -> Array:
        """`[B, n, d]` to `[B, n, d]`."""
        width = tokens.shape[-1]
        hidden = linen.gelu(dense(4 * width, name="dense_0")(tokens), approximate=False)
        return dense(width, name="dense_1")(hidden)
