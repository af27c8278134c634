"""Inverts the gradient of one photograph and draws the reconstruction beside it.

    python examples/first_attack.py

One client computes the gradient of one embedded photograph; the server sees the gradient and the parameters. The
picture is `runs/first_attack/first_attack.png`: the original on the left, the reconstruction on the right.
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
    parser.add_argument("--out", type=Path, default=Path("runs/first_attack"))
    parser.add_argument("--steps", type=int, default=300, help="steps of the attack")
    options = parser.parse_args()

    # The client: a network, its parameters, and one private photograph.
    photos = ji.data.load("photos", split="test[:1]")
    model = ji.models.create("small-convnet", like=photos)
    client = ji.clients.fedsgd(model.loss)
    params = model.init(jax.random.key(0))

    # What the server sees: the gradient, the parameters, and (threat model "known labels") the label.
    observation = ji.observe(client, params, photos.batch())

    # The attacker knows the network and the batch size. It never reads `photos`.
    problem = ji.Problem(client, model, num_examples=1)
    found = ji.invert(
        ji.attacks.spectral, problem, observation, key=jax.random.key(1), num_steps=options.steps, num_restarts=2
    )

    # Truth and reconstruction meet only here.
    quality = ji.metrics.evaluate(found.inputs, photos.images)
    options.out.mkdir(parents=True, exist_ok=True)
    side_by_side = np.concatenate([photos.images[0], np.asarray(found.inputs[0])], axis=1)
    plt.imsave(options.out / "first_attack.png", np.clip(side_by_side, 0, 1))
    print(f"{quality.psnr_db[0]:.1f} dB PSNR, SSIM {quality.ssim[0]:.3f}: {options.out / 'first_attack.png'}")


if __name__ == "__main__":
    main()
