"""Text behind a transformer, by the span of its tokens: which tokens, which sequences, and what is said of the rest.

Setting: FedSGD clients with sequences of random tokens, uniform or by Zipf's law (the share of the k-th token is
proportional to 1/k), each batch behind an untrained transformer of its own. A decoder predicts random tokens at every
position, an encoder one of five classes. Tokens are counted with their positions, over all batches, as the first span
check finds them; a batch is ambiguous if more are found than the span has dimensions, and exact if its sequences with
all their labels are. A certificate is false if its batch is not exact. The resolution is that of the update, the
tolerance that which the attack takes it for.

Command:  python -m experiments.dager --json FILE.json
Smoke:    python -m experiments.dager --smoke
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert.attacks import TextProblem
from jaxinvert.attacks.closed_form import span
from jaxinvert.attacks.closed_form.certificate import Status
from jaxinvert.attacks.closed_form.dager import dager
from jaxinvert.clients import fedsgd
from jaxinvert.jobs.text import TextConfig, draw_text, same_text
from jaxinvert.types import Batch, Observation


class Text(NamedTuple):
    """A row: network, sequences, tokens of each, width, law of the tokens, resolution and tolerance."""

    model: Literal["decoder", "encoder"]
    batch_size: int
    length: int
    width: int = 64
    law: Literal["uniform", "zipf"] = "uniform"
    resolution: str = "float32"
    tolerance: str = "float32"


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      settings: network, sequences, tokens of each, width, law of the tokens, resolution and tolerance of every row.
      vocabulary: tokens that there are.
      batches: of each row.
      seed: of the networks and the text.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; rows that it holds with the same setting are not run again.
    """

    settings: tuple[Text, ...] = (
        *(Text("decoder", batch_size, 8) for batch_size in (1, 2, 4, 6, 7)),
        Text("decoder", 3, 16),
        Text("decoder", 12, 5),
        Text("decoder", 7, 16, width=128),
        Text("encoder", 1, 8),
        Text("encoder", 1, 32),
        Text("encoder", 4, 6),
        Text("encoder", 6, 8),
        Text("decoder", 4, 8, law="zipf"),
        Text("decoder", 6, 8, law="zipf"),
        Text("decoder", 8, 8),
        Text("decoder", 12, 8),
        Text("encoder", 12, 8),
        Text("decoder", 6, 8, resolution="float64", tolerance="float64"),
        Text("decoder", 6, 8, resolution="float32", tolerance="float64"),
        Text("decoder", 6, 8, resolution="float16", tolerance="float16"),
    )
    vocabulary: int = 1000
    batches: int = 10
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the batches of every row that the file does not hold, and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, settings=(Text("encoder", 1, 3, width=16),), vocabulary=30, batches=1)
    harness.run_rows(
        f"Text of {config.vocabulary} tokens behind a transformer",
        config.settings,
        lambda text: measure(config, text),
        setting=f"vocabulary={config.vocabulary} batches={config.batches} seed={config.seed}",
        json_file=config.json,
    )


def measure(config: Config, text: Text) -> dict[str, Any]:
    """One row: many batches."""
    with jax.enable_x64(text.resolution == "float64"):
        outcomes = _outcomes(config, text)
    statuses = Counter(Status(outcome["status"]).name.lower().replace("_", " ") for outcome in outcomes)
    del statuses["certified"]
    certified, exact = (np.array([outcome[name] for outcome in outcomes]) for name in ("certified", "exact"))
    return {
        **text._asdict(),
        "batches": config.batches,
        **{name: sum(outcome[name] for outcome in outcomes) for name in ("tokens", "found", "false", "ambiguous")},
        "exact": int(exact.sum()),
        "certified": int(certified.sum()),
        "false_certificates": int(np.sum(certified & ~exact)),
        "otherwise": ", ".join(f"{name} {count}" for name, count in statuses.most_common()) or "-",
        "median_seconds": float(np.median([outcome["seconds"] for outcome in outcomes])),
    }


def _outcomes(config: Config, text: Text) -> list[dict[str, Any]]:
    """What came out for each batch."""
    setting = TextConfig(
        model=text.model,
        num_sequences=text.batch_size,
        length=text.length,
        vocabulary=config.vocabulary,
        width=text.width,
        distribution=text.law,
        seed=config.seed,
    )
    model = setting.network()
    client = jax.jit(fedsgd(model.loss_fn))
    tolerances = span.tolerances(float(jnp.finfo(text.tolerance).eps))
    solve = jax.jit(dager(TextProblem(client, model, text.batch_size), tolerances=tolerances))
    dtype = jnp.promote_types(text.resolution, jnp.float32)
    outcomes = []
    for number in range(config.batches):
        batch = draw_text(setting, number)
        truth = np.zeros((text.length, config.vocabulary), bool)
        truth[np.arange(text.length)[None], np.asarray(batch.inputs)] = True
        params = jax.jit(model.init)(jax.random.key(config.seed + number))
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        update = jax.tree.map(lambda leaf: leaf.astype(text.resolution), client(params, batch))
        begin = time.perf_counter()
        found = jax.block_until_ready(solve(jax.random.key(0), Observation(params, update)))
        seconds = time.perf_counter() - begin
        inside = np.asarray(found.info["found"])
        outcomes.append(
            {
                "tokens": int(truth.sum()),
                "found": int((inside & truth).sum()),
                "false": int((inside & ~truth).sum()),
                "ambiguous": int(inside.sum() > int(found.info["rank"])),
                "exact": same_text(Batch(found.inputs, jnp.asarray(found.labels)), batch),
                "certified": bool(found.info["certified"]),
                "status": int(found.info["status"]),
                "seconds": seconds,
            }
        )
    return outcomes


if __name__ == "__main__":
    main()
