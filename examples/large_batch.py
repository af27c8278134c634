"""Reconstructs a batch of sixteen images, whose labels nobody told, from one averaged gradient.

    python examples/large_batch.py

A wide dense layer behind convolutions mixes the features of the whole batch. The cocktail party attack unmixes them
and finds images that have these features; matching the whole gradient reaches less in the same time
(`experiments/results/cocktail_party_features.json`). The reconstructions come in an order of their own, so they are
matched one to one with the originals before they are measured.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxinvert as ji


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/large_batch"))
    parser.add_argument("--steps", type=int, default=300, help="steps of the attack")
    parser.add_argument("--images", type=int, default=16, help="images in the client's batch")
    options = parser.parse_args()

    photos = ji.data.load("photos", split=f"train[:{options.images}]")
    model = ji.models.create("wide-convnet", like=photos)
    # Gradients of eight examples at a time: the same mean, and memory that does not grow with the batch.
    chunk = next(size for size in (8, 4, 2, 1) if options.images % size == 0)
    client = ji.clients.fedsgd(model.loss, chunk_size=chunk)
    params = model.init(jax.random.key(0))
    granted = ji.ThreatModel(labels=False)
    observation = ji.observe(client, params, photos.batch(), threat_model=granted)
    problem = ji.Problem(client, model, num_examples=options.images, gradient_chunk=chunk)
    found = ji.invert(
        ji.attacks.cocktail_party_features, problem, observation, key=jax.random.key(1), num_steps=options.steps
    )

    order = ji.metrics.match_one_to_one(found.inputs, photos.images)
    quality = ji.metrics.evaluate(found.inputs[order], photos.images)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [np.concatenate(list(images), axis=1) for images in (photos.images, np.asarray(found.inputs[order]))]
    plt.imsave(options.out / "large_batch.png", np.clip(np.concatenate(rows), 0, 1))
    print(f"{np.mean(quality.psnr_db):.1f} dB on average, worst {np.min(quality.psnr_db):.1f} dB")


if __name__ == "__main__":
    main()
