"""Generators: the pyramid's map and likelihood against independent computations, shapes, files and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from jaxinvert import models
from jaxinvert.priors import generators, parametrizations
from jaxinvert.priors.generators import Prior

SHAPE = (8, 12, 3)
PLAIN = {"conv_general_dilated": jax.lax.conv_general_dilated}  # compiles faster


@pytest.fixture(scope="module")
def network():
    return generators.pyramid(output_shape=SHAPE, width=4, **PLAIN)


@pytest.fixture(scope="module")
def params(network):
    """Larger than at the start, so that details do depend on the coarse image."""
    start = jax.jit(network.generator.init)(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), start)


def test_the_likelihood_is_the_change_of_variables(network, params):
    """Exactly: for x = G(z), -log p(x) = |z|^2/2 + log |det dG/dz| + constant.

    The loss leaves out what the base contributes and the constants of the orthogonal Haar and color transforms, so
    differences between two images of the same base latents must agree.
    """
    generator = network.generator

    def flat(latents):
        return generator.apply(params, latents).ravel()

    def nats(latents):
        jacobian = jax.jacfwd(flat)(latents)
        matrix = jnp.concatenate([leaf.reshape(generator.num_latents, -1) for leaf in jacobian], axis=1)
        square = sum(jnp.sum(jnp.square(level)) for level in latents[1:])
        return 0.5 * square + jnp.linalg.slogdet(matrix)[1]

    coarse, *fine = generators.draw_latents(jax.random.key(2), generator, 1)
    pair = [(coarse, *(scale * level for level in fine)) for scale in (1.0, 0.3)]
    exact = [float(jax.jit(nats)(latents)) for latents in pair]
    loss_fn = jax.jit(lambda latents: network.loss(params, generator.apply(params, latents)))
    loss = [float(loss_fn(latents)) * generator.num_latents for latents in pair]
    np.testing.assert_allclose(loss[0] - loss[1], exact[0] - exact[1], rtol=1e-3)
    assert abs(exact[0] - exact[1]) > 10


def test_the_base_has_the_images_mean_and_covariance():
    """Of gray images of 8 x 12 pixels the coarsest ones are means of 2 x 2."""
    images = jax.random.uniform(jax.random.key(3), (400, 8, 12, 1)) * jnp.linspace(0.2, 1.0, 12)[None, None, :, None]
    base = generators.pyramid(output_shape=(8, 12, 1), width=4, **PLAIN).fit_base({}, images)["base"]
    blocks = np.asarray(images).reshape(400, 4, 2, 6, 2).mean(axis=(2, 4)).reshape(400, -1)
    np.testing.assert_allclose(base["mean"] + 0.5, blocks.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(base["root"].T @ base["root"], np.cov(blocks.T), atol=1e-5)


def test_modulation_equals_kernels_of_ones_own():
    """Against the paper's form: every image's kernel, modulated and brought to unit norm, made and convolved with."""
    keys = jax.random.split(jax.random.key(4), 3)
    inputs, kernel = jax.random.normal(keys[0], (3, 5, 4, 6)), jax.random.normal(keys[1], (3, 3, 6, 2))
    style = 1 + jax.random.normal(keys[2], (3, 6))
    found = generators.modulated_convolution(inputs, kernel, style)
    for image, scales, one in zip(inputs, style, found):
        own = kernel * scales[None, None, :, None]
        own /= jnp.sqrt(jnp.sum(jnp.square(own), axis=(0, 1, 2), keepdims=True))
        expected = jax.lax.conv_general_dilated(
            image[None], own, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(one, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_style_has_weights_for_every_image_without_grouped_convolutions():
    """GI-w maps over the weights: same images, one product for all, and every latent reaches the pixels."""
    generator = generators.style(output_shape=(8, 8, 1), num_latents=4, width=2)
    start = jax.jit(generator.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1, start)  # noise has no strength before training
    latents = generators.draw_latents(jax.random.key(1), generator, 2)
    searched = parametrizations.generator_weights(Prior(generator, params), batch_size=2, start=latents)
    decode, apply = jax.jit(searched.decode), jax.jit(generator.apply)
    variables = searched.init(jax.random.key(2))
    images = apply(params, latents)
    np.testing.assert_allclose(decode(variables), images, rtol=1e-4, atol=1e-5)
    program = decode.lower(variables).as_text()
    assert "dot_general" in program
    assert "convolution" not in program
    for level in range(len(latents)):
        moved = apply(params, tuple(map_ + (i == level) for i, map_ in enumerate(latents)))
        assert float(jnp.max(jnp.abs(moved - images))) > 1e-3
    doubled = apply(params, (2 * latents[0], *latents[1:]))  # only the direction of z counts
    np.testing.assert_allclose(doubled, images, atol=1e-4)


@pytest.mark.parametrize("name", generators.REGISTRY)
def test_every_generator_makes_its_shape_image_by_image(name):
    """The second image does not depend on the first. Of 32 and 64 px only the shapes are looked at."""
    generator = generators.REGISTRY[name](output_shape=(10, 10, 1), width=8, **PLAIN)
    params = jax.jit(generator.init)(jax.random.key(0))
    apply = jax.jit(generator.apply)
    latents = generators.draw_latents(jax.random.key(1), generator, 2)
    images = apply(params, latents)
    assert images.shape == (2, 10, 10, 1)
    assert generator.num_latents == sum(level[0].size for level in latents)
    changed = apply(params, tuple(level.at[0].add(1.0) for level in latents))
    np.testing.assert_array_equal(changed[1], images[1])
    assert bool(jnp.any(changed[0] != images[0]))
    for side in (32, 64):
        large = generators.REGISTRY[name](output_shape=(side, side, 3))
        drawn = jax.eval_shape(lambda key, large=large: generators.draw_latents(key, large, 2), jax.random.key(0))
        weights = jax.eval_shape(large.init, jax.random.key(0))
        assert jax.eval_shape(large.apply, weights, drawn).shape == (2, side, side, 3)


@pytest.mark.parametrize("shape", [(9, 8, 3), (3, 3, 1)])
@pytest.mark.parametrize("name", generators.REGISTRY)
def test_sides_that_do_not_halve_are_refused(name, shape):
    with pytest.raises(ValueError, match="expected sides that halve"):
        generators.REGISTRY[name](output_shape=shape)


def test_the_generator_of_the_package_fits_small_images():
    prior = generators.load_prior(input_shape=(32, 32, 3))
    assert generators.DEFAULT.stat().st_size < 1.5e6
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(prior.params))


def test_files_come_back_and_bad_ones_are_refused(tmp_path, network, params):
    prior, file = Prior(network.generator, params), tmp_path / "generator.safetensors"
    generators.save_prior(file, prior, options={"width": 4}, facts={"data": "photos"})
    loaded = generators.load_prior(file, input_shape=SHAPE)
    for found, expected in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
        assert found.dtype == jnp.float32
    with pytest.raises(ValueError, match=r"makes images of shape \(8, 12, 3\), but the model reads \(32, 32, 3\)"):
        generators.load_prior(file, input_shape=(32, 32, 3))

    facts, bad = models.read_facts(file), tmp_path / "bad.safetensors"

    def refused(match, *, without="", **changed):
        tensors = safetensors_numpy.load_file(file)
        tensors.pop(without, None)
        tree = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
        models.save_checkpoint(bad, tree, {**facts, **changed})
        with pytest.raises(ValueError, match=match) as caught:
            generators.load_prior(bad)
        return str(caught.value)

    refused("lacks base/mean", without="base/mean")
    refused("holds no generator", generator=None)
    refused("unknown generator 'pyramids'.*did you mean 'pyramid'", generator="pyramids")
    refused("its output_shape is 'wide'", output_shape="wide")
    refused("its options are {'width': 99999999}", options={"width": 99999999})
    refused("unexpected keyword argument 'depth'", options={"depth": 3})
    refused("has shape", options={"width": 5})
    for changed in ({"output_shape": [1] * 5000}, {"options": {"width": [1] * 5000}}, {"generator": "x" * 5000}):
        assert len(refused("generator|options", **changed)) < 1000
    assert len(refused("unexpected keyword", options={"\x1b[2J" + "x" * 5000: 1})) < 3000
    assert refused("unexpected keyword", options={"\x1b[2J": 1}).isprintable()
    with pytest.raises(ValueError, match="exceed the range of float16"):
        generators.save_prior(bad, prior._replace(params={"kernel": jnp.full(1, 1e6)}), options={}, facts={})
