"""Vision Transformers by hand, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxinvert import models
from jaxinvert.models.vit import from_patches, to_patches, waves

SHAPE = (4, 6, 2)


def normalized(x, layer):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * layer["scale"] + layer["bias"]


def affine(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def attended(tokens, layer, num_heads):
    """Head by head and query by query."""
    query, key, value = (affine(tokens, layer[name]) for name in ("query", "key", "value"))
    size = tokens.shape[1] // num_heads
    mixed = np.zeros_like(tokens)
    for head in range(num_heads):
        columns = slice(head * size, (head + 1) * size)
        for i in range(len(tokens)):
            weights = np.exp(key[:, columns] @ query[i, columns] / np.sqrt(size))
            mixed[i, columns] = weights @ value[:, columns] / weights.sum()
    return affine(mixed, layer["out"])


def perceptron(tokens, layer):
    hidden = affine(tokens, layer["dense_0"])
    return affine(hidden * special.ndtr(hidden), layer["dense_1"])


@pytest.mark.parametrize("kind", ["plain", "pre-norm"])
def test_by_hand(kind):
    model = models.vit(kind=kind, patch=2, width=4, num_heads=2, input_shape=SHAPE, num_classes=3)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * np.arange(leaf.size).reshape(leaf.shape) / leaf.size, params_of(model)
    )
    image = np.random.default_rng(0).random((1, *SHAPE)).astype(np.float32)
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    tokens = np.stack([image[0, r : r + 2, c : c + 2].ravel() for r in (0, 2) for c in (0, 2, 4)])
    tokens = affine(tokens, layers["patches"]) + layers["positions"]
    if kind == "plain":
        tokens = normalized(attended(tokens, layers["attention_0"], 2), layers["perceptron_norm_0"])
        tokens = perceptron(tokens, layers["perceptron_0"])
    else:
        tokens += attended(normalized(tokens, layers["attention_norm_0"]), layers["attention_0"], 2)
        tokens += perceptron(normalized(tokens, layers["perceptron_norm_0"]), layers["perceptron_0"])
    expected = affine(normalized(tokens, layers["norm"]).mean(0), layers["head"])
    np.testing.assert_allclose(model.apply(params, jnp.asarray(image))[0], expected, rtol=1e-4, atol=1e-5)


def params_of(model):
    return model.init(jax.random.key(0))


def test_patches_go_back_to_their_images():
    images = jnp.arange(2 * 4 * 6 * 2).reshape(2, 4, 6, 2)
    patches = to_patches(images, 2)
    assert patches.shape == (2, 6, 8)
    np.testing.assert_array_equal(from_patches(patches, SHAPE), images)


def test_fixed_positions_are_waves_and_no_parameters():
    place = np.stack(np.divmod(np.arange(6), 3)).astype(np.float64)
    angles = place[:, :, None] * np.array([1.0, 1e-2])
    expected = np.concatenate([np.sin(angles[0]), np.cos(angles[0]), np.sin(angles[1]), np.cos(angles[1])], axis=1)
    np.testing.assert_allclose(waves(2, 3, 8), expected, atol=1e-6)

    def of(positions):
        model = models.vit(kind="pre-norm", patch=2, width=8, positions=positions, input_shape=SHAPE, num_classes=3)
        return model, params_of(model)

    (fixed, params), (learnable, all_params) = of("fixed"), of("learnable")
    assert (fixed.name, learnable.name) == ("vit-pre-norm-fixed-2-8-1", "vit-pre-norm-2-8-1")
    assert "positions" not in params["params"]
    all_params = {"params": {**params["params"], "positions": waves(2, 3, 8)}}
    image = jax.random.uniform(jax.random.key(0), (1, *SHAPE))
    np.testing.assert_allclose(fixed.apply(params, image), learnable.apply(all_params, image), rtol=1e-5)


def test_positions_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"positions.*absent.*learnable"):
        models.vit(positions="absent")
    with pytest.raises(ValueError, match="a width that 4 divides, got 6"):
        models.vit(width=6, num_heads=2, positions="fixed")
