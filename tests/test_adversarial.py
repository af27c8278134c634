"""Training of generators: what the discriminator sees, who wins against whom, and an interruption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import adversarial, train_generator
from jaxinvert.priors import generators

pytestmark = pytest.mark.slow

SHAPE = (4, 4, 1)
PLAIN = {"conv_general_dilated": jax.lax.conv_general_dilated}  # compiles faster


def test_the_difference_in_a_group():
    """Of eight images in two groups, 0 2 4 6 and 1 3 5 7: constants 0 ... 3 times a spread, and all alike."""
    spread = np.array([1.0, 3.0])
    images = jnp.asarray([spread[i % 2] * (i // 2) for i in range(8)])[:, None, None, None] * jnp.ones((1, 2, 2, 3))
    feature = adversarial.difference_in_group(images)
    assert feature.shape == (8, 2, 2, 1)
    expected = np.std(np.arange(4)) * spread[np.arange(8) % 2]
    np.testing.assert_allclose(feature[:, 0, 0, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(adversarial.difference_in_group(jnp.ones((3, 2, 2, 3))), 0, atol=1e-3)


def test_the_generator_follows_what_is_real():
    """Bright images are real: a generator of medium gray becomes brighter, and its average follows."""
    generator = generators.style(output_shape=SHAPE, num_latents=4, width=2, **PLAIN)
    discriminator = adversarial.Discriminator(2)
    optimizers = (optax.adam(2e-2, b1=0.0), optax.adam(2e-2, b1=0.0))
    game = adversarial.start(jax.random.key(0), generator, discriminator, optimizers)
    step = jax.jit(adversarial.make_step(generator, discriminator, optimizers, averaging=0.9))
    draw = jax.jit(lambda params: jnp.mean(generator.apply(params, latents)))
    latents = generators.draw_latents(jax.random.key(1), generator, 16)
    before = float(draw(game.average))
    real = 0.8 + 0.05 * jax.random.normal(jax.random.key(2), (100, 8, *SHAPE))
    for i, images in enumerate(real):
        game, losses = step(jax.random.fold_in(jax.random.key(3), i), game, images)
    assert int(game.num_steps) == 100
    assert set(losses) == {"discriminator_loss", "generator_loss"}
    assert abs(float(draw(game.average)) - 0.8) < 0.5 * abs(before - 0.8)


def test_an_interrupted_training_ends_with_the_same_generator(tmp_path, monkeypatch):
    """Two epochs at once, and two of which the first attempt only sees one."""
    config = train_generator.Config(
        network="convolutional", split="test", size=8, width=8, epochs=2, batch_size=32, out=tmp_path / "whole"
    )
    whole = train_generator.train(config)
    save, calls = generators.save_prior, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*arguments, **options)

    monkeypatch.setattr(generators, "save_prior", interrupted)
    config = dataclasses.replace(config, out=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train_generator.train(config)
    rows = train_generator.train(config)

    def figures(rows):
        return [{name: row[name] for name in row if name != "seconds_per_epoch"} for row in rows]

    assert figures(rows) == figures(whole)
    written = [(tmp_path / folder / "generator.safetensors").read_bytes() for folder in ("whole", "parts")]
    assert written[0] == written[1]
    with pytest.raises(SystemExit, match="another setting"):
        train_generator.train(dataclasses.replace(config, network="style"))
