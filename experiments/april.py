"""One image behind a Vision Transformer's position embeddings, in closed form: through attention, and around it.

Setting: FedSGD clients with one image each and an untrained network of their own, labels unknown, server of threat
model C, float32 gradients. Exact is 60 dB; a certificate is false if the image is not exact.

Command:  python -m experiments.april --data FILE.npz --json FILE.json
Smoke:    python -m experiments.april --smoke
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert import data, metrics, models
from jaxinvert.attacks import Problem, registry
from jaxinvert.clients import fedsgd
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, SolveFn

EXACT_DB = 60.0


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      settings: attack and network of every row.
      images: of each row, the first of the split `test`.
      seed: of the networks.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "photos"
    settings: tuple[tuple[str, str], ...] = (
        ("april", "vit-plain"),
        ("april", "vit-plain-4-128-2"),
        ("patch-embedding", "vit-plain"),
        ("patch-embedding", "vit-pre-norm"),
        ("patch-embedding", "vit-pre-norm-4-128-2"),
    )
    images: int = 64
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks every row's images and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", settings=(("april", "vit-plain-8-192-1"),), images=1)
    dataset = data.load(config.data, split=f"test[:{config.images}]")
    rows = []
    for setting in config.settings:
        rows.append(measure(config, dataset, *setting))
        print(f"done: {rows[-1]['attack']} on {rows[-1]['model']}", flush=True)
    title = f"One image behind position embeddings, {Path(config.data).stem}"
    harness.publish(title, rows, json_file=config.json)


def measure(config: Config, dataset: data.Dataset, attack: str, name: str) -> dict[str, Any]:
    """One row: many images, each behind a network of its own."""
    model = models.create(name, like=dataset)
    client = jax.jit(fedsgd(model.loss))
    solve = jax.jit(cast(SolveFn, registry.REGISTRY[attack].build(Problem(client, model, 1))))
    infos, psnr, labels, seconds = [], [], [], []
    for number, (image, label) in enumerate(zip(dataset.images, dataset.labels)):
        batch = Batch(jnp.asarray(image[None]), jnp.asarray(label[None]))
        params = jax.jit(model.init)(jax.random.key(config.seed + number))
        observation = observe(client, params, batch, threat_model=threat_models.LADDER["C"])
        begin = time.perf_counter()
        found = jax.block_until_ready(solve(jax.random.key(0), observation))
        seconds.append(time.perf_counter() - begin)
        psnr.append(float(metrics.evaluate(np.asarray(found.inputs), np.asarray(batch.inputs)).psnr_db[0]))
        labels.append(found.labels is not None and bool(found.labels[0] == label))
        infos.append(found.info)
    exact, certified = np.array(psnr) >= EXACT_DB, np.array([bool(info["certified"]) for info in infos])
    return {
        "attack": attack,
        "model": model.name,
        "images": len(psnr),
        "exact": int(exact.sum()),
        "certified": int(certified.sum()),
        "false_certificates": int(np.sum(certified & ~exact)),
        "labels_exact": int(np.sum(labels)),
        "worst_db": float(np.min(psnr)),
        "median_db": float(np.median(psnr)),
        "worst_conditioning": float(min(info["conditioning"] for info in infos)),
        "median_seconds": float(np.median(seconds)),
    }


if __name__ == "__main__":
    main()
