"""Small transformers on text: a causal decoder and a classifying encoder, with integer tokens as inputs.

    h_s = table[t_s] + e_s    for the token at position s,    then `depth` pre-norm blocks, a norm and a head:
    y = h + attention(norm(h)),   y + perceptron(norm(y)).

A *decoder* attends to earlier positions and predicts a token at every position (Radford et al. 2019, GPT-2). An
*encoder* attends to all positions and classifies the mean of all tokens. They are no `models.Model`, whose inputs are
images.

References:
  Radford, Wu, Child, Luan, Amodei, Sutskever: Language Models are Unsupervised Multitask Learners. 2019.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert.models.attention import Perceptron, SelfAttention, dense, layer_norm
from jaxinvert.types import Array, Batch, Key, LossFn, Params

TABLE = "params/tokens"
"""Path of the token embeddings `[V, d]`."""


class TextModel(NamedTuple):
    """A transformer on text as pure functions and static facts.

    Attributes:
      name: "decoder" or "encoder".
      vocabulary_size: `V`; tokens are integers in [0, V).
      length: `n`, tokens of every sequence.
      depth: blocks; the attention of block `i` is at `params/attention_i`.
      causal: whether a position attends only to itself and earlier positions.
      head: path of the last dense layer in `params`.
      init: `key -> params`.
      apply: `(params, tokens [B, n]) -> logits`, `[B, n, V]` of a decoder, `[B, K]` of an encoder.
      attention_inputs: `(params, tokens [B, n]) -> [depth, B, n, d]`, the input of each attention's `query`, `key`
        and `value`.
      features: `(params, tokens [B, n]) -> [B, n, d]` or `[B, d]`, the input of the head.
      loss_fn: `(params, batch) -> []`, the mean cross-entropy of a batch of `inputs [B, n]` and integer `labels`,
        `[B, n]` the tokens to predict, or `[B]` classes. For searches, inputs may be embeddings `[B, n, d]`, and
        labels shares of every token or class.
      frozen: paths of the leaves that clients do not train.
      personal: paths of the leaves that clients train but do not send.
    """

    name: str
    vocabulary_size: int
    length: int
    depth: int
    causal: bool
    head: str
    init: Callable[[Key], Params]
    apply: Callable[[Params, Array], Array]
    attention_inputs: Callable[[Params, Array], Array]
    features: Callable[[Params, Array], Array]
    loss_fn: LossFn
    frozen: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()

    @property
    def loss(self) -> LossFn:
        """`loss_fn`, under the name that models of images have."""
        return self.loss_fn


class TextTransformer(linen.Module):
    """Layers `tokens`, `positions`, and for each block `attention_i`, `perceptron_i` and their norms; then `head`."""

    vocabulary_size: int
    num_outputs: int
    width: int
    depth: int
    num_heads: int
    causal: bool

    @linen.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array, Array]:
        """Tokens `[B, n]` or embeddings to logits, the head's inputs, and those of attentions `[depth, B, n, d]`."""
        table = self.param("tokens", linen.initializers.normal(0.02), (self.vocabulary_size, self.width))
        positions = self.param("positions", linen.initializers.normal(0.02), (tokens.shape[1], self.width))
        embedded = table[tokens] if jnp.issubdtype(tokens.dtype, jnp.integer) else tokens
        states, read = embedded + positions[None], []
        for i in range(self.depth):
            read.append(layer_norm(name=f"attention_norm_{i}")(states))
            states += SelfAttention(self.num_heads, self.causal, name=f"attention_{i}")(read[-1])
            states += Perceptron(name=f"perceptron_{i}")(layer_norm(name=f"perceptron_norm_{i}")(states))
        features = layer_norm(name="norm")(states)
        features = features if self.causal else jnp.mean(features, axis=1)
        return dense(self.num_outputs, name="head")(features), features, jnp.stack(read)


def decoder(
    *, vocabulary_size: int = 500, length: int = 8, width: int = 64, depth: int = 2, num_heads: int = 4
) -> TextModel:
    """A causal transformer that predicts a token at every position; embeddings N(0, 0.02^2), kernels Glorot uniform.

    Args:
      vocabulary_size: `V`.
      length: `n`, tokens per sequence.
      width: `d`, width of the tokens.
      depth: number of blocks.
      num_heads: heads of every attention; divides the width.

    Raises:
      ValueError: for a size below 1, or heads that do not divide the width.
    """
    return _text_model("decoder", vocabulary_size, vocabulary_size, length, width, depth, num_heads, causal=True)


def encoder(
    *,
    vocabulary_size: int = 500,
    num_classes: int = 5,
    length: int = 8,
    width: int = 64,
    depth: int = 2,
    num_heads: int = 4,
) -> TextModel:
    """A transformer with full attention that classifies the mean of all tokens; initialized like `decoder`.

    Args:
      vocabulary_size: `V`.
      num_classes: `K`.
      length: `n`, tokens per sequence.
      width: `d`, width of the tokens.
      depth: number of blocks.
      num_heads: heads of every attention; divides the width.

    Raises:
      ValueError: see `decoder`.
    """
    return _text_model("encoder", vocabulary_size, num_classes, length, width, depth, num_heads, causal=False)


def _text_model(
    name: str,
    vocabulary_size: int,
    num_outputs: int,
    length: int,
    width: int,
    depth: int,
    num_heads: int,
    *,
    causal: bool,
) -> TextModel:
    sizes = {
        "vocabulary_size": vocabulary_size,
        "num_classes": num_outputs,
        "length": length,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
    }
    for size_name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{size_name} must be at least 1, got {size}")
    if width % num_heads:
        raise ValueError(f"width is {width}, expected a multiple of the number of attention heads, {num_heads}")
    module = TextTransformer(vocabulary_size, num_outputs, width, depth, num_heads, causal)

    def run(params: Params, tokens: Array) -> tuple[Array, Array, Array]:
        is_embedded = jnp.issubdtype(tokens.dtype, jnp.floating) and tokens.shape[2:] == (width,)
        if tokens.ndim != 2 + is_embedded or tokens.shape[1] != length:
            raise ValueError(f"the {name} expects tokens [B, {length}], got {tokens.shape}")
        return cast(tuple[Array, Array, Array], module.apply(params, tokens))

    def loss_fn(params: Params, batch: Batch) -> Array:
        logits, _, _ = run(params, batch.inputs)
        if batch.labels.shape == logits.shape and jnp.issubdtype(batch.labels.dtype, jnp.floating):
            return -jnp.mean(jnp.sum(batch.labels * jax.nn.log_softmax(logits), axis=-1))
        if batch.labels.shape != logits.shape[:-1]:
            raise ValueError(f"the {name} expects labels {logits.shape[:-1]}, got {batch.labels.shape}")
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[..., None], axis=-1))

    return TextModel(
        name=name,
        vocabulary_size=vocabulary_size,
        length=length,
        depth=depth,
        causal=causal,
        head="params/head",
        init=lambda key: module.lazy_init(key, jax.ShapeDtypeStruct((1, length), jnp.int32)),
        apply=lambda params, tokens: run(params, tokens)[0],
        attention_inputs=lambda params, tokens: run(params, tokens)[2],
        features=lambda params, tokens: run(params, tokens)[1],
        loss_fn=loss_fn,
    )
