"""Writes a new attack, registers it, and compares it with a published one on the same updates.

    python examples/new_attack.py

The attack matches the update by the layerwise cosine distance, with a weak total variation. Registered, it has a name
and defaults read off its signature: `jaxinvert list`, sweeps and audits of this process know it, too. The picture is
`runs/new_attack/new_attack.png`: the originals, then what each attack reconstructs of them.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxinvert as ji
from jaxinvert.attacks import matching, objectives
from jaxinvert.priors import regularizers


@ji.declare("labels")
def layerwise_matching(
    problem: ji.Problem, *, tv: ji.types.Scalar = 1e-5, learning_rate: ji.types.Scalar = 0.1
) -> ji.Attack:
    """Layerwise cosine matching by Adam, with total variation."""
    return matching.gradient_matching(
        problem.client_update,
        objective=objectives.layerwise_cosine,
        optimizer=optax.adam(learning_rate),
        parametrization=problem.pixels(),
        regularizer=lambda inputs: tv * regularizers.total_variation(inputs),
        name="layerwise_matching",
    )


ji.register(layerwise_matching)


def main() -> None:
    """Runs both attacks on the same clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/new_attack"))
    parser.add_argument("--steps", type=int, default=300, help="steps of the attacks")
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()

    photos = ji.data.load("photos", split=f"private[:{options.clients}]")
    model = ji.models.create("small-convnet", like=photos)
    client = ji.clients.fedsgd(model.loss)
    params = model.init(jax.random.key(0))
    batches = jax.tree.map(lambda leaf: leaf[:, None], photos.batch())  # [T, 1, ...]: one image for each client
    observations = ji.observe_targets(client, params, batches)
    problem = ji.Problem(client, model, num_examples=1)
    rows = [photos.images]
    for attack in (layerwise_matching, ji.attacks.inverting_gradients):
        found = ji.invert(attack, problem, observations, key=jax.random.key(1), num_steps=options.steps)
        quality = ji.metrics.evaluate(found.inputs[:, 0], photos.images)
        print(f"{attack.__name__:20} {quality.psnr_db.mean():.1f} dB")
        rows.append(np.asarray(found.inputs[:, 0]))
    options.out.mkdir(parents=True, exist_ok=True)
    picture = np.concatenate([np.concatenate(list(images), axis=1) for images in rows])
    plt.imsave(options.out / "new_attack.png", np.clip(picture, 0, 1))


if __name__ == "__main__":
    main()
