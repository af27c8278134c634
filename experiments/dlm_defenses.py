"""DLM+ against the number of local steps, and against the two defenses of its paper on the weights that are sent.

Setting: an MLP with 32 ReLU units, one image per client, SGD with rate 0.01; the attacker sees two models and knows
neither rate nor steps. Row noise has the paper's bound 0.2 on the rows and scales 1e-5 ... 1, sparsification zeroes
the smallest 10 ... 90 % of every tensor. "leaked" is the share of images above 20 dB, of the best of several
restarts by attack loss. The paper prints curves: success falls with local steps and with noise; no number is
comparable. The same on DLM with the best scale, whose labels come from signs, and on the closed form behind the
first dense layer.

Command:  python -m experiments.dlm_defenses --data FILE.npz --json FILE.json
Smoke:    python -m experiments.dlm_defenses --smoke
Measured: see experiments/details/dlm.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import harness
from jaxinvert import attacks, clients, data, defenses, metrics, models, search
from jaxinvert.attacks import Problem
from jaxinvert.observation.observe import observe_targets
from jaxinvert.observation.threat_models import LADDER
from jaxinvert.types import Batch, Defense, SolveFn


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      num_images: clients.
      restarts: of each attack.
      steps: of Adam.
      local_steps: numbers of them to try.
      noise: scales of the row noise.
      zeroed: shares of the weights that are zeroed.
      learning_rate: the clients'.
      seed: of the network, the starts and the noise.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "cifar10"
    num_images: int = 10
    restarts: int = 4
    steps: int = 1500
    local_steps: tuple[int, ...] = (1, 20, 40, 60, 80, 100)
    noise: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    zeroed: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    learning_rate: float = 0.01
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all attacks on every setting and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(
            config, data="photos", num_images=1, restarts=1, steps=2, local_steps=(2,), noise=(0.1,), zeroed=(0.5,)
        )
    victims = data.load(config.data, split="test")
    batches = Batch(
        jnp.asarray(victims.images[: config.num_images])[:, None],
        jnp.asarray(victims.labels[: config.num_images])[:, None],
    )
    model = models.create(
        "mlp", input_shape=victims.images.shape[1:], num_classes=victims.num_classes, features=(32,)
    )
    params = jax.jit(model.init)(jax.random.key(config.seed))
    solvers = {name: jax.jit(search.over_targets(solve)) for name, solve in attacks_on(config, model).items()}
    settings: list[tuple[str, float, int, Defense | None]] = [
        *(("local steps", steps, steps, None) for steps in config.local_steps),
        *(("row noise", scale, 1, defenses.row_noise(params, scale)) for scale in config.noise),
        *(("zeroed weights", share, 1, defenses.smallest_weights_zeroed(params, share)) for share in config.zeroed),
    ]
    rows = []
    for what, strength, num_steps, defense in settings:
        client = clients.fedavg(model.loss, optimizer=optax.sgd(config.learning_rate), num_epochs=num_steps)

        seen = observe_targets(
            jax.jit(client),
            params,
            batches,
            threat_model=LADDER["C"]._replace(local_training=False),
            defense=defense,
            key=jax.random.key(config.seed + 1),
        )
        for name, solve in solvers.items():
            found = solve(jax.random.key(config.seed + 2), seen)
            psnr = np.asarray(metrics.psnr(found.inputs[:, 0], batches.inputs[:, 0]))
            rows.append(
                {
                    "setting": what,
                    "strength": strength,
                    "attack": name,
                    "images": config.num_images,
                    "leaked": float(np.mean(psnr > 20)),
                    "median_psnr_db": float(np.median(psnr)),
                }
            )
        print(f"done: {what} {strength:g}", flush=True)
    harness.publish(f"DLM+ and its defenses, MLP, {Path(config.data).stem}", rows, json_file=config.json)


def attacks_on(config: Config, model: models.Model) -> dict[str, SolveFn]:
    """The attacks by name; none knows how the client trained."""
    problem = Problem(clients.fedsgd(model.loss), model, num_examples=1)
    searches = {"dlm-plus": attacks.dlm_plus(problem), "dlm-best-scale": attacks.dlm_best_scale(problem)}
    solvers = {
        name: search.best_of(search.run(attack, num_steps=config.steps), num_restarts=config.restarts)
        for name, attack in searches.items()
    }
    return {**solvers, "closed-form": attacks.dense_layer(problem)}


if __name__ == "__main__":
    main()
