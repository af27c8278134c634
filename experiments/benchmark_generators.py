"""Restarts of a search with a generator, side by side in one program against a Python loop over them.

Setting: one image, untrained LeNet, the generator that comes with jaxinvert. Steps x restarts per second without
compilation, the fastest of several turns taken one after the other. "in turn" calls the compiled program of a single
restart from a Python loop. GI-z shares the generator's weights among restarts; GIAS has a copy for each image, whose
convolutions are matrix products under vmap (grouped ones do not finish).

Command:  python -m experiments.benchmark_generators --json FILE.json
Smoke:    python -m experiments.benchmark_generators --smoke
Measured: see experiments/details/generative-priors.md
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import tyro

from experiments import contenders, gias, harness
from jaxinvert.search import Stepwise


@dataclass(frozen=True)
class Config:
    """Setting of the benchmark.

    Attributes:
      attacks: of `contenders.NAMES`.
      model: of the client.
      restarts: `R`.
      steps: in each turn.
      turns: of each program.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    attacks: tuple[str, ...] = ("GI-z", "GIAS", "pixels, published")
    model: str = "lenet"
    restarts: int = 8
    steps: int = 40
    turns: int = 4
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Times every attack both ways."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, attacks=("pixels, published",), model="mlp-8", restarts=2, steps=1, turns=1)
    rows = []
    for name in config.attacks:
        rows.append(measure(config, name))
        harness.publish("Restarts with a generator, side by side and in turn", rows, json_file=config.json)


def measure(config: Config, name: str) -> dict:
    """Steps x restarts per second of one attack."""
    setting = gias.Config(model=config.model, images=1)
    truth, observations, arena = gias.clients_and_attacker(setting, gias.Case(1, gias.NONE_SENT))
    (entry,) = contenders.entered(arena, gias.priors_by_name(setting, truth.inputs.shape[2:]), [name]).values()
    make = entry()
    keys = jax.random.split(jax.random.key(1), config.restarts)

    def seconds(search: Stepwise, key: jax.Array) -> float:
        *_, last = search(key, observations, 1000.0, num_steps=config.steps, report_every=config.steps)
        return last.seconds

    together = Stepwise(make, num_restarts=config.restarts, chunk_size=config.restarts)
    alone = Stepwise(make)
    ways: dict[str, Callable[[], float]] = {
        "side_by_side": lambda: seconds(together, keys[0]),
        "in_turn": lambda: sum(seconds(alone, key) for key in keys),
    }
    fastest = dict.fromkeys(ways, float("inf"))
    for _ in range(config.turns):
        for way, run in ways.items():
            fastest[way] = min(fastest[way], run())
    rates = {way: config.restarts * (config.steps + 1) / found for way, found in fastest.items()}
    return {"attack": name, "restarts": config.restarts, **rates, "ratio": rates["side_by_side"] / rates["in_turn"]}


if __name__ == "__main__":
    main()
