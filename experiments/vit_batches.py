"""Batches behind a Vision Transformer: matching in equal processor time, beside null controls.

Setting: FedSGD clients with random test images, labels known, one restart, pre-norm networks with patches of 4 px.
Untrained, every client has a network of its own; trained ones have the parameters of `--trained` and
`--trained-fixed`. Position embeddings are learnable, or fixed waves. Every attack has the same processor seconds for
a client (`--seconds`, times the batch size): `steps` is what they allow, from the time of the first steps. A client's
images are those whose reconstructions are matched one to one; `identified` is the share picked among all test images
(`audit.retrieval`), of which `chance` is expected. `null` is the same attack on normal noise with the norms of the
update's tensors (`audit.controls.random_update`). `above_null` and `gain` are means over clients with 95 % intervals,
`gain` over `spectral` on the same update.

Command:  python -m experiments.train --data FILE.npz --split "train[:2000]" --model vit-pre-norm --epochs 5
            --out runs/train/vit
          (the same with vit-pre-norm-fixed and runs/train/vit-fixed)
          python -m experiments.vit_batches --data FILE.npz --json FILE.json
Smoke:    python -m experiments.vit_batches --smoke
Measured: see experiments/details/attention.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from experiments.gias import interval
from jaxinvert import data, metrics, models
from jaxinvert.attacks import Problem, registry
from jaxinvert.audit import controls, retrieval
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe
from jaxinvert.types import Array, Attack, Batch, Observation, Reconstruction

_WARM_UP = 3
"""Steps that are timed."""


class Case(NamedTuple):
    """Clients of one kind.

    Attributes:
      model: the network by name.
      trained: whether it has the parameters of a checkpoint.
      batch_size: images of every client.
      clients: number of clients.
    """

    model: str
    trained: bool
    batch_size: int
    clients: int


CLIENTS = {2: 4, 4: 3, 8: 2, 1: 2}
"""Clients by batch size."""
CASES = tuple(
    Case(model, trained, batch_size, clients)
    for model in ("vit-pre-norm", "vit-pre-norm-fixed")
    for batch_size, clients in CLIENTS.items()
    for trained in (False, True)
)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      cases: clients.
      attacks: by name; gains are over the first one.
      tv: weight of the total variation of `inverting-gradients`; by default the registry's.
      seconds: processor seconds for one image of one client.
      null: whether random updates are attacked, too.
      trained: parameters of the trained network with learnable positions.
      trained_fixed: those of the one with fixed positions.
      seed: of networks, images and starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, written after each case; cases that it holds are not run again.
    """

    data: str = "photos"
    cases: tuple[Case, ...] = CASES
    attacks: tuple[str, ...] = ("spectral", "inverting-gradients", "whitened")
    tv: float | None = None
    seconds: float = 2.0
    null: bool = True
    trained: Path = Path("runs/train/vit/epoch-5.safetensors")
    trained_fixed: Path = Path("runs/train/vit-fixed/epoch-5.safetensors")
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        case = Case("vit-pre-norm-16-16-1", False, 2, 2)
        config = replace(config, data="photos", cases=(case,), attacks=("inverting-gradients",), seconds=0.0)
    run(config)


def run(config: Config) -> None:
    """Attacks the clients of the cases that are missing in the file of rows, and prints all rows."""
    title = f"Batches behind a Vision Transformer, {Path(config.data).stem}"
    dataset = data.load(config.data, split="test")
    rows = harness.kept_rows(config.json)
    done = {tuple(row[name] for name in (*Case._fields, "seed", "budget")) for row in rows}
    for case in config.cases:
        if (*case, config.seed, config.seconds) not in done:
            print(case, flush=True)
            rows += measure(config, dataset, case)
            if config.json is not None:
                harness.save(config.json, title, rows)
    harness.publish(title, rows, json_file=config.json)


def measure(config: Config, dataset: data.Dataset, case: Case) -> list[dict[str, Any]]:
    """The rows of one case, one for each attack."""
    model = models.create(case.model, like=dataset)
    problem = Problem(fedsgd(model.loss), model, case.batch_size)
    chosen, observations = make_clients(config, dataset, case, problem)
    truth, psnr_of, rows, rival = dataset.images[chosen], {}, [], config.attacks[0]
    for name in config.attacks:
        settings = {} if config.tv is None or name != "inverting-gradients" else {"tv": config.tv}
        attack = Timed(name, settings, problem, observations[0], budget=config.seconds * case.batch_size)
        found, of_noise = [], []
        for number, observation in enumerate(observations):
            key = jax.random.key(number)
            found.append(np.asarray(attack.solve(key, observation).inputs))
            if config.null:
                of_noise.append(np.asarray(attack.solve(key, random_update(key, observation)).inputs))
        psnr = decibels(found, truth)
        null = decibels(of_noise, truth) if config.null else None
        psnr_of[name] = psnr
        rows.append(
            {
                **case._asdict(),
                "attack": name,
                "steps": attack.steps,
                "seconds": attack.seconds / (len(found) + len(of_noise)),
                "mean_db": float(psnr.mean()),
                "min_db": float(psnr.min()),
                "max_db": float(psnr.max()),
                "above_20_db": float(np.mean(psnr > 20)),
                "identified": identified(found, dataset, chosen),
                "chance": case.batch_size / len(dataset.images),
                "null_db": None if null is None else float(null.mean()),
                "null_identified": None if null is None else identified(of_noise, dataset, chosen),
                **interval("above_null", None if null is None else psnr - null),
                **interval("gain", psnr - psnr_of[rival] if name != rival else None),
                "seed": config.seed,
                "budget": config.seconds,
            }
        )
        print(f"  {name}: {rows[-1]['steps']} steps, {rows[-1]['mean_db']:.1f} dB", flush=True)
    return rows


def decibels(found: Sequence[np.ndarray], truth: np.ndarray) -> np.ndarray:
    """PSNR of every image, `[T, B]`."""
    return np.stack([metrics.evaluate(*pair).psnr_db for pair in zip(found, truth)])


def make_clients(
    config: Config, dataset: data.Dataset, case: Case, problem: Problem
) -> tuple[np.ndarray, list[Observation]]:
    """The images of every client, `[T, B]` indices, and what the server sees."""
    rng = np.random.default_rng((config.seed, case.batch_size))
    chosen = np.stack([rng.choice(len(dataset.images), case.batch_size, replace=False) for _ in range(case.clients)])
    client, init = jax.jit(problem.client_update), jax.jit(problem.model.init)
    observations = []
    for number, places in enumerate(chosen):
        params = init(jax.random.key(config.seed + number))
        if case.trained:
            fixed = "fixed" in case.model
            params = models.load_checkpoint(config.trained_fixed if fixed else config.trained, params)
        batch = Batch(jnp.asarray(dataset.images[places]), jnp.asarray(dataset.labels[places]))
        observations.append(observe(client, params, batch))
    return chosen, observations


class Timed:
    """An attack with as many steps as its first ones say that a budget of processor time allows.

    Attributes:
      steps: of every search.
      seconds: of the processor, for all searches so far.
    """

    def __init__(
        self, name: str, settings: dict[str, float], problem: Problem, observation: Observation, *, budget: float
    ) -> None:
        def built(horizon: Array) -> Attack:
            return registry.REGISTRY[name].build(problem, settings, horizon)  # type: ignore[return-value]

        self._init = jax.jit(lambda key, seen, horizon: built(horizon).init(key, seen))
        self._step = jax.jit(lambda key, state, seen, horizon: built(horizon).step(key, state, seen)[0])
        self._decode = jax.jit(lambda state, seen, horizon: built(horizon).decode(state, seen))
        self.steps, self.seconds = _WARM_UP, 0.0
        self.solve(jax.random.key(0), observation)  # compiles
        self.seconds = 0.0
        self.solve(jax.random.key(0), observation)
        self.steps = max(_WARM_UP, round(_WARM_UP * budget / self.seconds))
        self.seconds = 0.0

    def solve(self, key: Array, observation: Observation) -> Reconstruction:
        """One search."""
        horizon = jnp.float32(self.steps)
        state = jax.block_until_ready(self._init(key, observation, horizon))
        begin = time.process_time()
        for number in range(self.steps):
            state = self._step(jax.random.fold_in(key, number), state, observation, horizon)
        jax.block_until_ready(state)
        self.seconds += time.process_time() - begin
        return self._decode(state, observation, horizon)


def random_update(key: Array, observation: Observation) -> Observation:
    """`audit.controls.random_update` for one client."""
    targets = observation._replace(update=jax.tree.map(lambda leaf: leaf[None], observation.update))
    noise = controls.random_update(key, targets).update
    return observation._replace(update=jax.tree.map(lambda leaf: leaf[0], noise))


def identified(found: Sequence[np.ndarray], dataset: data.Dataset, chosen: np.ndarray) -> float:
    """The share of the clients' images that reconstructions pick among all images."""
    return float(np.mean(retrieval.identified_of_all(np.stack(found), dataset.images, chosen)))


if __name__ == "__main__":
    main()
