"""The attack of `benchmark_peers` by this library, as a process that answers commands."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.peers import mobile, serving
from jaxinvert import attacks, clients, data, files, metrics, models, nn
from jaxinvert.attacks import Problem
from jaxinvert.observation.observe import observe_targets
from jaxinvert.search import Stepwise, split_shared
from jaxinvert.types import Attack, Batch

_REPORTS = 60


class Ours:
    """One case: a client, what the server sees of it, and the attack of Inverting Gradients on it.

    Args:
      folder: holds `case.json`, the fields of `benchmark_peers.Case`; gets `case.npz`, what PyTorch needs for the
        same attack: parameters, update, images, labels, normalization, and the start of every restart.
    """

    def __init__(self, folder: Path) -> None:
        self.case: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        photos = data.load("photos", split=f"test[:{self.case['images']}]", size=self.case["size"])
        self.model = model_of(self.case["model"], photos)
        client = client_of(self.case, self.model)
        self.problem = Problem(client, self.model, num_examples=self.case["images"])
        params = jax.jit(self.model.init)(jax.random.key(0))
        self.batch = Batch(jnp.asarray(photos.images), jnp.asarray(photos.labels))
        one_target = jax.tree.map(lambda leaf: leaf[None], self.batch)
        self.observations = jax.jit(partial(observe_targets, client))(params, one_target)
        self.search = Stepwise(lambda _: self.attack(self.case["horizon"]), num_restarts=self.case["restarts"])
        first = self._last(0)
        self.first_losses = np.asarray(first.best_loss)[0].tolist()
        self.seconds_compile = self.search.seconds_compile
        update = jax.tree.map(lambda leaf: leaf[0], self.observations.update)
        sent = {f"sent/{name}": value for name, value in models.to_named(self.model, params).items()}
        seen = {f"update/{name}": value for name, value in models.to_named(self.model, update).items()}
        starts = self.search(jax.random.key(1), self.observations, {}, num_steps=0)
        lanes, _ = next(starts).resumable.lanes
        facts: dict[str, Any] = {
            "mean": self.model.mean,
            "std": self.model.std,
            "labels": photos.labels,
            "images": photos.images,
        }
        files.save_arrays(folder / "case.npz", {"starts": np.asarray(lanes.variables), **facts, **sent, **seen})

    def attack(self, horizon: int) -> Attack:
        """Inverting Gradients with the case's prior."""
        return attacks.inverting_gradients(self.problem, tv=self.case["tv"], horizon=horizon)

    def facts(self) -> dict[str, Any]:
        """Losses at the starts, seconds to compile, operations of one step, MiB of the program by XLA's analysis."""
        peak = self.search.peak_bytes(jax.random.key(1), self.observations, {})
        return {
            "first_losses": self.first_losses,
            "seconds_compile": self.seconds_compile,
            "flops": self._flops(),
            "program_mib": peak / 2**20,
            "lanes": self.case["restarts"],
        }

    def steps(self, num_steps: int) -> dict[str, Any]:
        """Seconds per step of all restarts together; a run evaluates `num_steps + 1` iterates."""
        return {"seconds": self._last(num_steps).seconds / (num_steps + 1)}

    def images(self, num_steps: int) -> dict[str, Any]:
        """The first restart's iterate after some steps, normalized: `[B, H, W, C]`."""
        lanes, _ = self._last(num_steps).resumable.lanes
        return {"images": np.asarray(lanes.variables)[0].tolist()}

    def reach(self, attack: str, psnr_db: float, num_steps: int) -> dict[str, Any]:
        """Seconds until an attack's best iterate has a mean PSNR, and what it has in the end.

        The start of the attack counts, its compilation does not. The true images only judge.

        Args:
          attack: "spectral" or "inverting-gradients".
          psnr_db: what is to be reached.
          num_steps: of the attack.
        """
        spectral = partial(attacks.spectral, self.problem, horizon=num_steps)
        search = Stepwise(lambda _: spectral() if attack == "spectral" else self.attack(num_steps))
        reached = None
        reports = search(
            jax.random.key(1),
            self.observations,
            {},
            num_steps=num_steps,
            report_every=max(1, num_steps // _REPORTS),
        )
        progress = next(reports)
        seconds = search.seconds_start + progress.seconds
        while True:
            inputs = progress.reconstruct().inputs[0]
            found = float(jnp.mean(metrics.evaluate(inputs, self.batch.inputs).psnr_db))
            if reached is None and found >= psnr_db:
                reached = seconds
            begin = time.perf_counter()
            progress = next(reports, None)
            seconds += time.perf_counter() - begin
            if progress is None:
                return {"seconds": reached, "psnr_db": found, "seconds_of_all": seconds, "steps": num_steps}

    def commands(self) -> serving.Commands:
        """What the process answers."""
        return {"facts": self.facts, "steps": self.steps, "images": self.images, "reach": self.reach}

    def _last(self, num_steps: int) -> Any:
        reports = self.search(
            jax.random.key(1), self.observations, {}, num_steps=num_steps, report_every=max(1, num_steps)
        )
        *_, last = reports
        return last

    def _flops(self) -> float:
        """XLA's count for one step of one restart without Winograd, which multiplies less than the definition."""
        shared, per_target = split_shared(self.observations)
        observation = jax.tree.map(lambda leaf: leaf[0], per_target)._replace(**shared)
        attack, key = self.attack(self.case["horizon"]), jax.random.key(0)
        state = jax.eval_shape(attack.init, key, observation)
        with nn.compile_fast():
            analysis = jax.jit(attack.step).lower(key, state, observation).cost_analysis()
        return float((analysis or {})["flops"])


def model_of(name: str, photos: data.Dataset) -> models.Model:
    """A network of the zoo, or the depthwise one."""
    if name != "mobile":
        return models.create(name, like=photos)
    shape, num_classes = photos.images.shape[1:], photos.num_classes
    return mobile.mobile(input_shape=shape, num_classes=num_classes, mean=photos.mean, std=photos.std)


def client_of(case: dict[str, Any], model: models.Model) -> Any:
    """One gradient, or full-batch local steps of gradient descent."""
    if not case["local_steps"]:
        return clients.fedsgd(model.loss)
    return clients.fedavg(model.loss, optimizer=optax.sgd(case["local_rate"]), num_epochs=case["local_steps"])


if __name__ == "__main__":
    serving.serve(lambda folder: Ours(folder).commands())
