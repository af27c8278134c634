"""Successive halving over restarts: does it reach the quality of all restarts at two fifths of their steps?

Setting: one image per client, FedSGD, labels known, untrained networks, Inverting Gradients. Rungs are those of
`halving.default_rungs`, chosen with LeNet on `test[0:20]`; the images here are others. All searches start from the
same keys:

  all         16 restarts to the end, the best by attack loss
  halving     16 restarts, 6 after a fifth of the steps, 2 after a half
  fewer       the number of whole restarts nearest to halving's steps; mean over disjoint groups of the 16
  shorter     16 restarts with a horizon so short that they take as many steps as halving
  one         one restart; mean over the 16
  consensus   pixelwise median of the best four of all

`share_of_steps` counts evaluated iterates of all lanes; `gap_db` is the mean over images of the difference to "all",
with its 95 % interval; the committed rows are older and hold the difference of medians, without an interval.
The second table is PSNR against steps: the median over images of whatever has the lowest attack loss when so many
steps are spent, replayed from one recording of the 16 restarts; "in turn" finishes one restart after the other.

Command:  python -m experiments.successive_halving --data FILE.npz --json FILE.json
Smoke:    python -m experiments.successive_halving --smoke
Expected: "halving" within 0.1 dB of "all" at a share of 0.40 or less.
Measured: see experiments/details/successive-halving.md
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from experiments import harness
from jaxinvert import attacks, clients, data, metrics, models, search
from jaxinvert.attacks import Problem
from jaxinvert.audit import excess
from jaxinvert.observation.observe import observe_targets
from jaxinvert.parallel.lanes import lanes_at_once, map_lanes
from jaxinvert.search.halving import default_rungs, successive_halving
from jaxinvert.types import Array, Attack, AttackState, Batch, Key, Observation, SolveFn


class Setting(NamedTuple):
    """A network and its attack, with steps and clients for minutes on two cores."""

    model: str
    steps: int
    targets: int
    tv: float


SETTINGS = {
    "lenet": Setting("lenet", steps=1000, targets=40, tv=1e-2),
    "small-convnet": Setting("small-convnet", steps=300, targets=4, tv=1e-3),
}
NUM_REPORTS = 20
SHARES = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      split: the images, of which every setting takes as many as it has clients.
      settings: which of them, by default all.
      restarts: of every search.
      seed: of the network and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the first table; the second goes beside it, to a file whose name ends in `_curves`.
    """

    data: str = "photos"
    split: str = "test[200:240]"
    settings: tuple[str, ...] = tuple(SETTINGS)
    restarts: int = 16
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all searches of every setting, and prints a table of results and one of PSNR against steps."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    chosen = {name: SETTINGS[name] for name in config.settings}
    if config.smoke:
        config = replace(config, data="photos", split="test", restarts=4)
        chosen = {"mlp": Setting("mlp", steps=NUM_REPORTS, targets=1, tv=1e-2)}
    rows, curves = [], []
    for name, setting in chosen.items():
        new_rows, new_curves = compare(config, name, setting)
        rows += new_rows
        curves += new_curves
        harness.publish("Successive halving over restarts", rows, json_file=config.json)
        curve_file = config.json and config.json.with_stem(f"{config.json.stem}_curves")
        harness.publish("Median PSNR in dB against steps spent", curves, json_file=curve_file)


def compare(config: Config, name: str, setting: Setting) -> tuple[list[dict], list[dict]]:
    """All searches of one setting on the same clients: results, and PSNR against steps."""
    truth, observations, make_attack = clients_and_attack(config, setting)
    num_restarts, attack = config.restarts, make_attack(setting.steps)
    rungs = default_rungs(num_steps=setting.steps, num_restarts=num_restarts)
    halved = successive_halving(attack, num_steps=setting.steps, num_restarts=num_restarts, rungs=rungs)
    key = jax.random.key(config.seed + 1)

    recorded, seconds_all = solve_each(
        lambda key, one: record(attack, key, one, num_steps=setting.steps, num_restarts=num_restarts),
        key,
        observations,
    )
    paths = Paths(np.asarray(recorded[0]), psnr_of(recorded[1][:, :, :, 0], truth[:, None, None]))
    found, seconds_halved = solve_each(halved, key, observations)
    lane_steps = int(found.info["lane_steps"][0])
    share = lane_steps / (num_restarts * (setting.steps + 1))

    short = max(1, lane_steps // num_restarts - 1)
    shorter: SolveFn = search.best_of(search.run(make_attack(short), num_steps=short), num_restarts=num_restarts)
    shorter_found, seconds_shorter = solve_each(shorter, key, observations)
    affordable = max(1, round(share * num_restarts))

    results = {
        "all": (1.0, paths.best_of_groups(num_restarts), seconds_all),
        "halving": (share, psnr_of(found.inputs[:, 0], truth)[None], seconds_halved),
        "fewer": (affordable / num_restarts, paths.best_of_groups(affordable), None),
        "shorter": (
            (short + 1) / (setting.steps + 1),
            psnr_of(shorter_found.inputs[:, 0], truth)[None],
            seconds_shorter,
        ),
        "one": (1 / num_restarts, paths.best_of_groups(1), None),
        "consensus": (1.0, consensus(paths.losses[:, :, -1], recorded[1][:, :, -1, 0], truth)[None], None),
    }
    rows = [
        {
            "setting": name,
            "search": search_name,
            "images": len(truth),
            "restarts": affordable if search_name == "fewer" else 1 if search_name == "one" else num_restarts,
            "steps": short if search_name == "shorter" else setting.steps,
            "share_of_steps": steps_share,
            "median_psnr_db": float(np.median(psnr, axis=1).mean()),
            **gap_of(psnr, results["all"][1][0]),
            "mean_psnr_db": float(psnr.mean()),
            "min_psnr_db": float(psnr.min(axis=1).mean()),
            "seconds": seconds,
        }
        for search_name, (steps_share, psnr, seconds) in results.items()
    ]
    curves = [
        {
            "setting": name,
            "share_of_steps": spent,
            "all": paths.replayed((), spent),
            "halving": paths.replayed([(rung.step / setting.steps, rung.keep) for rung in rungs], spent),
            "in_turn": paths.in_turn(spent),
        }
        for spent in SHARES
    ]
    return rows, curves


def gap_of(psnr: np.ndarray, of_all: np.ndarray) -> dict[str, float]:
    """Mean over images of the gap, with its 95 % interval.

    Args:
      psnr: `[G, T]` of a search, for some searches `G` groups of restarts, whose gaps are averaged.
      of_all: `[T]` of the search with all restarts.
    """
    gap = excess(psnr.mean(axis=0), of_all)
    return {"gap_db": gap.mean, "gap_low_db": gap.low, "gap_high_db": gap.high}


def clients_and_attack(config: Config, setting: Setting) -> tuple[np.ndarray, Observation, Callable[[int], Attack]]:
    """True images `[T, H, W, C]`, what the server sees of them, and `horizon -> Attack`."""
    dataset = data.load(config.data, split=config.split)
    images, labels = dataset.images[: setting.targets], dataset.labels[: setting.targets]
    model = models.create(setting.model, like=dataset)
    client = clients.fedsgd(model.loss)
    params = jax.jit(model.init)(jax.random.key(config.seed))
    observations = observe_targets(client, params, Batch(jnp.asarray(images)[:, None], jnp.asarray(labels)[:, None]))
    problem = Problem(client, model, num_examples=1)

    def make_attack(horizon: int) -> Attack:
        return attacks.inverting_gradients(problem, tv=setting.tv, horizon=horizon)

    return images, observations, make_attack


def solve_each(solve: Callable, key: Key, observations: Observation) -> tuple:
    """One client after the other; what `solve` returns with a leading axis `T`, and seconds without compilation."""
    shared, per_target = search.split_shared(observations)
    compiled = jax.jit(
        lambda keys, targets: lax.map(lambda one: solve(one[0], one[1]._replace(**shared)), (keys, targets))
    )
    keys = jax.random.split(key, search.num_targets(observations))
    program = compiled.lower(keys, per_target).compile()
    begin = time.perf_counter()
    found = jax.block_until_ready(program(keys, per_target))
    return found, time.perf_counter() - begin


def record(
    attack: Attack, key: Key, observation: Observation, *, num_steps: int, num_restarts: int
) -> tuple[Array, Array]:
    """The plain search's restarts at `NUM_REPORTS` times: best losses `[R, N]` and images `[R, N, B, H, W, C]`."""

    def one_restart(restart_key: Key) -> tuple[Array, Array]:
        state, step_key = search.start_lane(attack, restart_key, observation)

        def until(state: AttackState, report: Array) -> tuple[AttackState, tuple[Array, Array]]:
            begin, end = (number * num_steps // NUM_REPORTS for number in (report, report + 1))
            end = end + (report == NUM_REPORTS - 1)  # the last iterate counts, too
            state = lax.fori_loop(
                begin, end, lambda step, s: attack.step(jax.random.fold_in(step_key, step), s, observation)[0], state
            )
            return state, (state.best_loss, attack.decode(state, observation).inputs)

        return lax.scan(until, state, jnp.arange(NUM_REPORTS))[1]

    keys = jax.random.split(key, num_restarts)
    return map_lanes(one_restart, keys, lanes_at_once(observation.update, num_restarts))


class Paths(NamedTuple):
    """A recording of all restarts.

    Attributes:
      losses: `[T, R, N]` best attack loss after `1/N, 2/N, ... 1` of all steps.
      psnr_db: `[T, R, N]` of the image behind it.
    """

    losses: np.ndarray
    psnr_db: np.ndarray

    def selected(self, restarts: np.ndarray, report: int) -> np.ndarray:
        """PSNR `[T]` of the restart with the lowest loss among some `[T, r]`."""
        losses = np.take_along_axis(self.losses[:, :, report], restarts, axis=1)
        winner = np.take_along_axis(restarts, losses.argmin(axis=1)[:, None], axis=1)
        return np.take_along_axis(self.psnr_db[:, :, report], winner, axis=1)[:, 0]

    def best_of_groups(self, size: int) -> np.ndarray:
        """PSNR `[groups, T]` of the best by loss in each disjoint group of so many restarts."""
        num_targets, num_restarts, _ = self.losses.shape
        groups = np.arange(num_restarts // size * size).reshape(-1, size)
        return np.stack([self.selected(np.tile(group, (num_targets, 1)), -1) for group in groups])

    def replayed(self, rungs: Sequence[tuple[float, int]], spent: float) -> float | None:
        """Median PSNR when a share of all steps is spent on lanes that are dropped at rungs, given as shares."""
        num_targets, num_restarts, num_reports = self.losses.shape
        alive, begin, cost = np.tile(np.arange(num_restarts), (num_targets, 1)), 0.0, 0.0
        for share, keep in (*rungs, (1.0, 1)):
            reached = begin + (spent - cost) * num_restarts / alive.shape[1]
            if reached < share + 1e-9:
                report = int(reached * num_reports + 1e-6) - 1
                return None if report < 0 else float(np.median(self.selected(alive, report)))
            cost += alive.shape[1] / num_restarts * (share - begin)
            losses = np.take_along_axis(self.losses[:, :, round(share * num_reports) - 1], alive, axis=1)
            alive = np.take_along_axis(alive, losses.argsort(axis=1)[:, :keep], axis=1)
            begin = share
        return float(np.median(self.selected(alive, -1)))

    def in_turn(self, spent: float) -> float | None:
        """The same when one restart is finished after the other."""
        num_targets, num_restarts, num_reports = self.losses.shape
        finished, rest = divmod(spent * num_restarts + 1e-9, 1.0)
        report = int(rest * num_reports) - 1
        done = np.tile(np.arange(int(finished)), (num_targets, 1))
        if report < 0:
            return float(np.median(self.selected(done, -1))) if done.size else None
        losses = np.concatenate(
            [self.losses[:, : int(finished), -1], self.losses[:, [int(finished)], report]], axis=1
        )
        psnr = np.concatenate(
            [self.psnr_db[:, : int(finished), -1], self.psnr_db[:, [int(finished)], report]], axis=1
        )
        return float(np.median(np.take_along_axis(psnr, losses.argmin(axis=1)[:, None], axis=1)))


def consensus(losses: np.ndarray, images: Array, truth: np.ndarray, best: int = 4) -> np.ndarray:
    """PSNR `[T]` of the pixelwise median of the restarts with the lowest losses: `[T, R]`, `[T, R, H, W, C]`."""
    order = losses.argsort(axis=1)[:, :best, None, None, None]
    return psnr_of(np.median(np.take_along_axis(np.asarray(images), order, axis=1), axis=1), truth)


def psnr_of(images: Array | np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PSNR in dB over the last three axes; the truth is spread over the others."""
    images = np.asarray(images)
    return np.asarray(metrics.psnr(images, np.broadcast_to(truth, images.shape)))


if __name__ == "__main__":
    main()
