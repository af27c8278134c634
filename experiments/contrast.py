"""Contrast: spectral matching as it is, and with biases and norms left out, at a fixed share, or as they are sent.

Setting: untrained networks, single images, labels known, one start, two compilations per network. The objectives are
`kernel_cosine`, `balanced_cosine` (biases and norms have 0.3 of the kernels' norm), and `cosine`. `as it is` lets
biases count only where kernels do not tell contrast, and fits the contrast at the end (`attacks.contrast`).
`relu-2` has three convolutions and two classes, as Flax starts it: zero biases, so that kernels' gradients are the
same at every contrast up to a factor. `noise` is normal noise on the update with so many times its root mean square.
`gain_db` is the mean over images of the difference to kernels alone on the same update, with its 95 % interval;
`contrast` is the least-squares factor from true to found images around the mean color, averaged.

Command:  python -m experiments.contrast --json FILE.json
Smoke:    python -m experiments.contrast --smoke
Expected: on `relu-2` at least 55 dB as it is, more than with any other objective; elsewhere as with kernels alone.
Measured: see experiments/details/spectral.md
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen

from experiments import harness
from jaxinvert import attacks, data, metrics, models, nn, search, trees
from jaxinvert.attacks import Problem, objectives
from jaxinvert.attacks.initial_guess import regressed
from jaxinvert.audit.evidence import excess
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe_targets
from jaxinvert.types import Array, Batch, Key, Observation, Reconstruction, Update

TITLE = "Contrast, and the share of biases"
KERNELS, ALL, DEFAULT = "kernels alone", "all tensors", "as it is"
SHARES = {KERNELS: 0.0, "share 0.3": 0.3, ALL: -1.0, DEFAULT: None}
"""By name of the row; -1 stands for `cosine`, `None` for the attack as it is."""


class Setting(NamedTuple):
    """A network, how long the attack runs, how many images it has to find, and under which noises."""

    model: str
    steps: int
    images: int
    noises: tuple[float, ...] = (0.0, 1.0)


SETTINGS = (
    Setting("relu-2", 1000, 4),
    Setting("lenet", 480, 5),
    Setting("small-convnet", 125, 5),
    Setting("convnet16", 250, 4, (0.0,)),
)


@dataclass(frozen=True)
class Config:
    """Which networks are attacked.

    Attributes:
      data: data set by name, folder or npz.
      split: the images, one for each client.
      only: networks to run; all by default.
      seed: of networks and starts.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; those that it holds are not run again.
    """

    data: str = "photos"
    split: str = "test"
    only: tuple[str, ...] = ()
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


class ThreeConvolutions(linen.Module):
    """Three ReLU convolutions of 16 channels and a dense head; all biases start at zero, Flax's default."""

    num_classes: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        for i in range(3):
            conv = linen.Conv(16, (3, 3), conv_general_dilated=nn.conv_general_dilated, name=f"conv_{i}")
            x = linen.relu(conv(x))
        return linen.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every objective on every network, saving each row, and prints all."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    settings = [setting for setting in SETTINGS if not config.only or setting.model in config.only]
    if config.smoke:
        settings = [Setting("mlp-32", 4, 2, (1.0,))]
    rows = harness.kept_rows(config.json)
    for setting in settings:
        done = {(row["noise"], row["objective"]): row for row in rows if row["model"] == setting.model}
        missing = [(noise, name) for noise in setting.noises for name in SHARES if (noise, name) not in done]
        if not missing:
            continue
        problem, truth, observations = observed(config, setting)
        fixed, own = solver(problem, setting.steps), solver(problem, setting.steps, own_objective=True)
        for noise, name in missing:
            share = SHARES[name]
            attack = own if share is None else fixed
            found = attack(share or 0.0, noise, jax.random.key(config.seed + 1), observations)
            psnr = np.asarray(jax.vmap(metrics.psnr)(found.inputs[:, 0], truth[:, 0]))
            alone = psnr if name == KERNELS else np.array(done[noise, KERNELS]["psnr_db"])
            gain = excess(psnr, alone)
            done[noise, name] = {
                "model": setting.model,
                "steps": setting.steps,
                "noise": noise,
                "objective": name,
                "images": setting.images,
                "mean_psnr_db": float(psnr.mean()),
                "min_psnr_db": float(psnr.min()),
                "gain_db": gain.mean,
                "gain_low_db": gain.low,
                "gain_high_db": gain.high,
                "contrast": contrast(found.inputs, truth, problem),
                "psnr_db": psnr.tolist(),
            }
            rows.append(done[noise, name])
            print(f"{setting.model}, noise {noise:g}: {name} {psnr.mean():.1f} dB", flush=True)
            if config.json is not None:
                harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, [{key: row[key] for key in row if key != "psnr_db"} for row in rows])


def observed(config: Config, setting: Setting) -> tuple[Problem, Array, Observation]:
    """What the attacker knows, true images `[T, 1, H, W, C]`, and what the server sees of them."""
    dataset = data.load(config.data, split=config.split, size=8 if config.smoke else None)
    if len(dataset.images) < setting.images:
        raise SystemExit(f"{config.split} has {len(dataset.images)} images, {setting.model} needs {setting.images}")
    images, labels = dataset.images[: setting.images, None], dataset.labels[: setting.images, None]
    if setting.model == "relu-2":
        labels = labels % 2
        shape = dataset.images.shape[1:]
        model = models.from_linen(
            ThreeConvolutions(2), name="relu-2", input_shape=shape, num_classes=2, mean=dataset.mean, std=dataset.std
        )
    else:
        model = models.create(setting.model, like=dataset)
    client = fedsgd(model.loss)
    params = jax.jit(model.init)(jax.random.key(config.seed))
    observations = observe_targets(jax.jit(client), params, Batch(jnp.asarray(images), jnp.asarray(labels)))
    return Problem(client, model, num_examples=1), jnp.asarray(images), observations


def solver(problem: Problem, num_steps: int, *, own_objective: bool = False) -> Callable[..., Any]:
    """`(share, noise, key, observations) -> reconstructions`, compiled once for all shares and noises.

    With `own_objective` the share is not read.
    """

    def solve(share: Array, noise: Array, key: Key, observations: Observation) -> Reconstruction:
        def objective(simulated: Update, sent: Update) -> Array:
            balanced = objectives.balanced_cosine(simulated, sent, share=share)
            return jnp.where(share < 0, objectives.cosine(simulated, sent), balanced)

        def one(key: Key, observation: Observation) -> Reconstruction:
            noise_key, key = jax.random.split(key)
            noisy = observation._replace(update=disturbed(noise_key, observation.update, noise))
            known = problem if own_objective else problem._replace(objective=objective)
            attack = attacks.spectral(known, horizon=num_steps, guess=regressed)
            return search.run(attack, num_steps=num_steps)(key, noisy)

        return search.over_targets(one)(key, observations)

    return jax.jit(solve)


def disturbed(key: Key, update: Update, noise: Array) -> Update:
    """The update plus normal noise of `noise` times its root mean square."""
    leaves, structure = jax.tree.flatten(update)
    spread = noise * trees.tree_norm(update) / sum(leaf.size for leaf in leaves) ** 0.5
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([g + spread * jax.random.normal(k, g.shape) for g, k in zip(leaves, keys)])


def contrast(found: Array, truth: Array, problem: Problem) -> float:
    """The factor by which found images differ from true ones around the mean color, averaged over images."""
    center = jnp.reshape(problem.mean_image, (1,) * (found.ndim - 1) + (-1,))
    found, truth = found - center, truth - center
    axes = tuple(range(1, truth.ndim))
    return float(jnp.mean(jnp.sum(found * truth, axis=axes) / jnp.sum(jnp.square(truth), axis=axes)))


if __name__ == "__main__":
    main()
