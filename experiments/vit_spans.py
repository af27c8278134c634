"""What the span of the first attention's gradients says about a batch's tokens: nothing from two images on.

Query, key and value layers read `B T` tokens, so the columns of their gradients span at most `B T` dimensions of the
width. But every token is `x W + b + e_t`, centered and scaled by a norm: all tokens of all images lie in the span of
the `p` rows of `W` and of the `T` vectors `b + e_t`. One image takes `T` of these `p + T` dimensions. Once
`T (B - 1) >= p`, differences of patches fill the rows of `W`, and the gradient's span holds any image's tokens.

Setting: untrained pre-norm networks of one block, random test images, gradients in float64. `rank` is that of the
three gradients together, with one dimension more for the bias; `own` and `other` are the largest distances of the
client's tokens, and of another image's, from the span, relative to the token. `share` is that of the first `B`
singular directions in the squared norm of the position embeddings' gradient.

Command:  python -m experiments.vit_spans --data FILE.npz --json FILE.json
Smoke:    python -m experiments.vit_spans --smoke
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert import data, models
from jaxinvert.attacks.closed_form import span
from jaxinvert.attacks.closed_form.april import PROJECTIONS
from jaxinvert.attacks.closed_form.april import VIT as LAYOUT
from jaxinvert.clients import fedsgd
from jaxinvert.models.vit import to_patches
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Array, Batch, Params


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      widths: of the networks.
      batch_sizes: images of a client.
      patch: side of a patch in pixels.
      seed: of networks and images.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    data: str = "photos"
    widths: tuple[int, ...] = (128, 192)
    batch_sizes: tuple[int, ...] = (1, 2)
    patch: int = 4
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the spans and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", widths=(8,), batch_sizes=(1,), patch=16)
    dataset = data.load(config.data, split="test")
    rows = [measure(config, dataset, width, size) for width in config.widths for size in config.batch_sizes]
    harness.publish("Spans of the first attention's gradients", rows, json_file=config.json)


def measure(config: Config, dataset: data.Dataset, width: int, batch_size: int) -> dict[str, Any]:
    """One client and one image of another one."""
    model = models.create(f"vit-pre-norm-{config.patch}-{width}-1", like=dataset)
    rng = np.random.default_rng((config.seed, batch_size))
    chosen = rng.choice(len(dataset.images), batch_size + 1, replace=False)
    params = jax.jit(model.init)(jax.random.key(config.seed))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        images, labels = jnp.asarray(dataset.images[chosen], jnp.float64), jnp.asarray(dataset.labels[chosen])

        @jax.jit
        def measured(params: Params, images: Array) -> tuple[Array, Array, Array]:
            update = leaves_by_path(fedsgd(model.loss)(params, Batch(images[:batch_size], labels[:batch_size])))
            layers = [f"{LAYOUT.attention}/{name}" for name in PROJECTIONS]
            found = span.column_span(span.read_gradient(update, layers), tolerance=1e-9)
            distances = span.distances(found, tokens_of(model, params, images, config.patch))
            return found.rank, distances, jnp.linalg.svd(update[LAYOUT.positions], compute_uv=False)

        rank, distances, sizes = jax.tree.map(np.asarray, measured(params, images))
    num_tokens, num_values = distances.shape[1], config.patch**2 * images.shape[-1]
    return {
        "width": width,
        "batch_size": batch_size,
        "tokens": batch_size * num_tokens,
        "values_and_positions": num_values + num_tokens,
        "rank": int(rank),
        "own": float(distances[:batch_size].max()),
        "other": float(distances[batch_size:].max()),
        "share": float(np.sum(sizes[:batch_size] ** 2) / np.sum(sizes**2)),
    }


def tokens_of(model: models.Model, params: Params, images: Array, patch: int) -> Array:
    """The tokens that enter the first attention, `[B, T, width]`."""
    leaves = leaves_by_path(params)
    normalized = (images - jnp.array(model.mean)[None, None, None]) / jnp.array(model.std)[None, None, None]
    patches = to_patches(normalized, patch)
    tokens = patches @ leaves[f"{LAYOUT.patches}/kernel"] + leaves[f"{LAYOUT.patches}/bias"][None, None]
    tokens += leaves[LAYOUT.positions][None]
    centered = tokens - jnp.mean(tokens, axis=-1, keepdims=True)
    scaled = centered / jnp.sqrt(jnp.var(tokens, axis=-1, keepdims=True) + 1e-5)
    return scaled * leaves[f"{LAYOUT.first_norm}/scale"][None, None] + leaves[f"{LAYOUT.first_norm}/bias"][None, None]


if __name__ == "__main__":
    main()
