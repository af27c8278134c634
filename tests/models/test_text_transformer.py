"""What a token can see in a decoder and in an encoder, and the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.models.text_transformer import decoder, encoder
from jaxinvert.types import Batch

SIZES = {"vocabulary_size": 20, "length": 4, "width": 8, "num_heads": 2}
TOKENS = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]])


@pytest.mark.parametrize("model", [decoder(**SIZES), encoder(**SIZES)], ids=["decoder", "encoder"])
def test_what_each_attention_reads(model):
    """The first attention a token and its position; the second of a decoder what came before, of an encoder all."""
    params = model.init(jax.random.key(0))
    changed = TOKENS.at[0, 2].set(7)
    before, after = (np.asarray(model.attention_inputs(params, tokens)) for tokens in (TOKENS, changed))
    differs = np.any(before != after, axis=-1)
    assert before.shape == (2, 2, 4, 8)
    assert differs[0, 0].tolist() == [False, False, True, False]
    assert differs[1, 0].tolist() == ([False, False, True, True] if model.causal else [True] * 4)
    assert not differs[:, 1].any()


def test_losses_are_mean_cross_entropies():
    for model, labels in [(decoder(**SIZES), TOKENS[:, ::-1]), (encoder(**SIZES), jnp.array([4, 0]))]:
        params = model.init(jax.random.key(0))
        logits = np.asarray(model.apply(params, TOKENS), np.float64)
        likelihood = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        of_label = np.take_along_axis(likelihood, np.asarray(labels)[..., None], -1)
        np.testing.assert_allclose(model.loss_fn(params, Batch(TOKENS, labels)), -np.log(of_label).mean(), rtol=1e-5)
        head = params["params"]["head"]
        by_features = model.features(params, TOKENS) @ head["kernel"]
        np.testing.assert_allclose(by_features, logits, rtol=1e-4, atol=1e-5)  # biases start at zero


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        decoder(width=0)
    with pytest.raises(ValueError, match="width is 64, expected a multiple of the number of attention heads, 5"):
        encoder(num_heads=5)
    model = decoder(**SIZES)
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"expects tokens \[B, 4\], got \(2, 3\)"):
        jax.eval_shape(model.apply, params, TOKENS[:, :3])
    with pytest.raises(ValueError, match=r"expects labels \(2, 4\), got \(2,\)"):
        jax.eval_shape(model.loss_fn, params, Batch(TOKENS, jnp.array([0, 1])))
