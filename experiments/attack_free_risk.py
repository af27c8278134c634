"""Does the attack-free figure foresee what attacks reach? Rank correlations over clients, seconds, exactness.

Four parts, each a kind of row:

* `clients`: the figure of every client of a case, beside the bound of the inversion influence function (Zhang et al.
  2023). The cases on CIFAR-10 are those of `experiments.spectral`, whose file has the PSNR of attacks of full length
  on the same clients; LeNet with noise is attacked here, by spectral matching that knows the noise.
* `correlation`: Spearman's rank correlation of figure and PSNR, within a network over its clients and across
  networks, initializations, batches and noise. 95 % interval by Fisher's transformation with the standard error of
  Bonett and Wright (2000); clients of one network are taken as independent.
* `seconds`: one client of four networks, compilation included; wall-clock time, and that of all threads.
* `exact`: the figure beside the exact value from the whole Jacobian, at 16 pixels.

Command:  python -m experiments.attack_free_risk --data FILE.npz --json FILE.json
Smoke:    python -m experiments.attack_free_risk --smoke
Measured: see experiments/details/attack-free.md
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy import stats

from experiments import harness
from experiments.spectral import CASES
from jaxinvert import audit, jobs
from jaxinvert.audit.linearization import Bidiagonals, bidiagonals, influence_db, residual_scale
from jaxinvert.priors.parametrizations import amplitude_of_photographs, spectrum
from jaxinvert.trees import tree_squared_norm
from jaxinvert.types import Array, Batch, Key, Params, Update

TITLE = "Attack-free figure and attacks"
SEEDS = {"LeNet untrained": (0, 1, 2), "ConvNet-16": (0, 1), "ResNet20-4": (0, 1)}
"""Networks and starts of a case that `experiments.spectral` has run; of all others, only 0."""
NETWORKS = ("lenet", "small-convnet", "resnet20-4", "vit-pre-norm")
NOISE = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Standard deviation of the noise, relative to the root mean square of the clients' updates."""
NOISY = "LeNet with noise"
FIGURES = ("estimate_db", "low_db", "influence_db")


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      data: slice of CIFAR-10 that the file of attacks was measured on.
      attacks: file of `experiments.spectral`.
      cases: cases of that file; by default all but those whose checkpoint is missing.
      noise: levels of noise for the attacks that are run here.
      clients: number of clients for these, tiles of the embedded photos.
      steps: steps of these attacks.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; those that it holds are not measured again.
    """

    data: str = "cifar10"
    attacks: Path = Path(__file__).parent / "results" / "spectral.json"
    cases: tuple[str, ...] = tuple(CASES)
    noise: tuple[float, ...] = NOISE
    clients: int = 48
    steps: int = 300
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, saving each row, and prints all."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    networks, exact = NETWORKS, {"lenet": 4, "small-convnet8": 4}
    if config.smoke:
        config = replace(config, cases=(), noise=(1.0,), clients=4, steps=2)
        networks, exact = ("mlp-8",), {"mlp-8": 1}
    rows = harness.kept_rows(config.json)
    done = {(row["kind"], row["case"], row["seed"], row["noise"]) for row in rows}

    def add(kind: str, case: str, measure, *, seed: int = 0, noise: float = 0.0) -> None:
        if (kind, case, seed, noise) not in done:
            print(f"{kind}: {case}, seed {seed}, noise {noise:g}", flush=True)
            rows.append({"kind": kind, "case": case, "seed": seed, "noise": noise, **measure()})
            if config.json is not None:
                harness.save(config.json, TITLE, rows)

    for model in networks:
        add("seconds", model, lambda model=model: seconds(model))
    for model, count in exact.items():
        add("exact", model, lambda model=model, count=count: against_exact(model, count))
    small = {"model": "mlp-8"} if config.smoke else {"model": "lenet"}
    for noise in config.noise:
        add("clients", NOISY, lambda noise=noise: attacked(small, noise, config), noise=noise)
    for case in config.cases:
        client = CASES[case].client
        if not client.get("checkpoint", config.attacks).exists():
            print(f"{case}: no file {client['checkpoint']}", flush=True)
            continue
        for seed in SEEDS.get(case, (0,)):
            settings = jobs.JobConfig.of(**{"data": config.data, "seed": seed, **client})
            add("clients", case, lambda settings=settings: figures(settings), seed=seed)
    published = json.loads(config.attacks.read_text())["rows"]
    rows = [row for row in rows if row["kind"] != "correlation"]
    rows += correlations(rows, [row for row in published if row["data"] == Path(config.data).stem])
    if config.json is not None:
        harness.save(config.json, TITLE, rows)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        shown = [row for row in rows if row["kind"] == kind]
        harness.publish(kind, [{k: v for k, v in row.items() if not isinstance(v, list)} for row in shown])


def figures(settings: jobs.JobConfig, task: jobs.Task | None = None) -> dict[str, Any]:
    """The attack-free figure and the influence bound of every client, means over its examples."""
    task = task or jobs.prepare(settings)
    start = time.perf_counter()
    found = audit.attack_free(settings, task)
    assert found.psnr_db is not None
    assert found.low_db is not None
    assert found.high_db is not None
    elapsed = time.perf_counter() - start
    bounds = {"low_db": found.low_db, "high_db": found.high_db, "unbiased_db": found.unbiased_db}
    return {
        "clients": len(found.psnr_db),
        "mean_db": float(found.psnr_db.mean()),
        "spread_db": float(found.psnr_db.mean(axis=1).std()),
        "seconds_all": elapsed,
        "estimate_db": found.psnr_db.mean(axis=1).tolist(),
        **{name: None if one is None else one.mean(axis=1).tolist() for name, one in bounds.items()},
        "influence_db": influence(settings, task),
        "device": jobs.device_name(),
        "jax": jax.__version__,
    }


def influence(settings: jobs.JobConfig, task: jobs.Task) -> list[float]:
    """The bound of the inversion influence function for each client, with the noise of the attack-free figure."""
    client, scale = task.program.problem.client_update, settings.defense.parameters.get("gaussian.scale", 0.0)

    @jax.jit
    def measure(params: Params, batch: Batch, key: Key) -> Bidiagonals:
        def noise(update: Update) -> Update:
            rest = residual_scale(update, audit.RESIDUAL)
            return jax.tree.map(lambda leaf: jnp.sqrt(rest**2 + scale**2), update)

        return bidiagonals(client, params, batch, noise, key, num_steps=8, num_probes=1, amplitude=jnp.ones(()))

    pixels = math.prod(task.truth.inputs.shape[2:])
    keys = jax.random.split(jax.random.key(settings.seed), len(task.truth.inputs))
    return [
        influence_db(jax.device_get(measure(task.observations.params, Batch(*one), key)), num_pixels=pixels)
        for *one, key in zip(*task.truth, keys)
    ]


def attacked(client: Mapping[str, Any], noise: float, config: Config) -> dict[str, Any]:
    """Figures of clients with Gaussian noise, and the PSNR of an attack that knows it."""
    size = {"targets": config.clients, "restarts": 1, "steps": config.steps}
    settings = jobs.JobConfig.of(**{"data": "photos", "split": "train", "attack": "spectral", **size, **client})
    task = jobs.prepare(settings)
    if noise:
        squares = jax.vmap(tree_squared_norm)(task.observations.update)
        entries = sum(leaf[0].size for leaf in jax.tree.leaves(task.observations.update))
        scale = noise * float(jnp.sqrt(jnp.mean(squares) / entries))
        settings = settings.replace(defense="gaussian", defense_settings={"scale": scale}, adaptive=True)
        task = jobs.prepare(settings)
    execution = jobs.execute(settings, task.program, task.observations)
    if execution.interrupted:  # half a row is none
        raise KeyboardInterrupt
    psnr = [image["psnr_db"] for image in jobs.measure(settings, task, execution).summary["images"]]
    return {
        **figures(settings, task),
        "attack_steps": config.steps,
        "attack_mean_db": float(np.mean(psnr)),
        "attack_db": psnr,
    }


def seconds(model: str) -> dict[str, Any]:
    """Time for one client of a network, compilation included."""
    settings = jobs.JobConfig.of(model=model, targets=1)
    task = jobs.prepare(settings)
    start, start_cpu = time.perf_counter(), time.process_time()
    found = audit.attack_free(settings, task)
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    assert found.psnr_db is not None
    entries = sum(leaf[0].size for leaf in jax.tree.leaves(task.observations.update))
    return {
        "parameters": entries,
        "estimate": float(found.psnr_db[0, 0]),
        "seconds": wall,
        "cpu_seconds": cpu,
        "device": jobs.device_name(),
        "jax": jax.__version__,
    }


def against_exact(model: str, count: int) -> dict[str, Any]:
    """The figure beside the exact one, whose Jacobian of all pixels is formed, at 16 pixels."""
    settings = jobs.JobConfig.of(data="photos", model=model, size=16, targets=count)
    task = jobs.prepare(settings)
    found = audit.attack_free(settings, task)
    assert found.psnr_db is not None
    assert found.low_db is not None
    assert found.high_db is not None
    exact = [
        exact_db(task.program.problem.client_update, task.observations.params, Batch(*one))
        for one in zip(*task.truth)
    ]
    error = found.psnr_db[:, 0] - np.array(exact)
    return {
        "clients": count,
        "exact_mean": float(np.mean(exact)),
        "estimate_mean": float(found.psnr_db.mean()),
        "largest_error": float(np.abs(error).max()),
        "below": float(found.low_db.mean()),
        "above": float(found.high_db.mean()),
        "exact_db": exact,
    }


def exact_db(client_update, params: Params, batch: Batch, *, residual: float = audit.RESIDUAL) -> float:
    """PSNR of the best linearized estimate of one image, from the eigenvalues of the whole Fisher information."""
    shape = batch.inputs.shape
    images, amplitude = spectrum(shape, fall=1.0), amplitude_of_photographs(shape, 1.0)

    @jax.jit
    def jacobian(inputs: Array) -> tuple[Array, Array]:
        def of_variables(variables: Array) -> Array:
            update = client_update(params, batch._replace(inputs=inputs + images.decode(variables) - 0.5))
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(update)])

        sent, forward = jax.linearize(of_variables, jnp.zeros(shape))
        ones = jnp.eye(inputs.size).reshape(-1, *shape)
        return jax.lax.map(forward, ones, batch_size=32), residual_scale(sent, residual)

    columns, scale = jacobian(batch.inputs)
    whitened = np.asarray(columns, np.float64) / float(scale)
    sizes, vectors = np.linalg.eigh(whitened @ whitened.T)
    variances = np.square(np.broadcast_to(amplitude, shape).ravel().astype(np.float64)) @ np.square(vectors)
    return float(-10 * np.log10(np.mean(variances / (np.maximum(sizes, 0) + 1))))


def correlations(rows: Sequence[Mapping[str, Any]], attacks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rank correlations within networks and across them."""
    found = {(row["case"], row["seed"]): row for row in rows if row["kind"] == "clients" and row["case"] != NOISY}
    within: dict[tuple, list[tuple]] = {}
    across: dict[str, list[tuple]] = {}
    for row in attacks:
        if (figure := found.get((row["case"], row["seed"]))) is None or row["clients"] != figure["clients"]:
            continue
        pair = (row["psnr_db"], *(figure[name] for name in FIGURES))
        if row["clients"] >= 40:
            within[row["case"], row["seed"], row["attack"], row["steps"]] = [pair]
        longest = max(r["steps"] for r in attacks if (r["case"], r["attack"]) == (row["case"], row["attack"]))
        if row["steps"] == longest and row["attack"] in ("spectral", "inverting-gradients"):
            across.setdefault(row["attack"], []).append(pair)
            if row["case"] == "LeNet untrained":
                across.setdefault(f"{row['attack']} on LeNet", []).append(pair)
    results = [correlated(pairs, *names) for names, pairs in within.items()]
    for name, pairs in across.items():
        of = "LeNet untrained, all initializations" if "LeNet" in name else "all networks and batches"
        results.append(correlated(pairs, of, "all", name.split()[0], "longest"))
    noisy = [row for row in rows if row["kind"] == "clients" and row["case"] == NOISY]
    triples = [(row["attack_db"], *(row[name] for name in FIGURES)) for row in noisy]
    results += [
        correlated([one], f"{NOISY} {row['noise']:g}", 0, "spectral", row["attack_steps"])
        for one, row in zip(triples, noisy)
    ]
    if noisy:
        results.append(correlated(triples, f"{NOISY}, all levels", 0, "spectral", noisy[0]["attack_steps"]))
    return results


def correlated(pairs: Sequence[tuple], case: str, seed: int | str, attack: str, steps: int | str) -> dict[str, Any]:
    """One correlation over the clients of all pairs, each of the PSNR and of `FIGURES`."""
    psnr, estimate, low_bound, influenced = (np.concatenate([pair[i] for pair in pairs]) for i in range(4))
    rank, low, high = spearman(psnr, estimate)
    return {
        "kind": "correlation",
        "case": case,
        "seed": seed,
        "noise": 0.0,
        "attack": attack,
        "steps": steps,
        "settings": len(pairs),
        "clients": len(psnr),
        "mean_psnr": float(psnr.mean()),
        "mean_estimate": float(estimate.mean()),
        "rank_correlation": rank,
        "low": low,
        "high": high,
        "of_lower_bound": spearman(psnr, low_bound)[0],
        "of_influence": spearman(psnr, influenced)[0],
        "typical_error": float(np.median(np.abs(psnr - estimate))),
    }


def spearman(left: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation with its 95 % interval."""
    rank = float(np.corrcoef(stats.rankdata(left), stats.rankdata(right))[0, 1])
    if len(left) < 4 or not abs(rank) < 1:
        return rank, rank, rank
    width = 1.96 * math.sqrt((1 + rank**2 / 2) / (len(left) - 3))
    return rank, math.tanh(math.atanh(rank) - width), math.tanh(math.atanh(rank) + width)


if __name__ == "__main__":
    main()
