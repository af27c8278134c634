"""The attack of `benchmark_peers` in PyTorch, as a process that answers commands. Imports nothing of this library.

`invert` is the loop of Inverting Gradients, written from its equation:

    minimize over x in [0, 1]^n:   1 - <g(x), g*> / (|g(x)| |g*|)  +  tv * TV(x)

Jonas Geiping, Hartmut Bauermeister, Hannah Dröge, Michael Moeller: "Inverting Gradients -- How easy is it to
break privacy in federated learning?", NeurIPS 2020, arXiv:2003.14053. `by_breaching` is the attack of that name in
the package breaching, as it is published.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments.peers import serving, torch_networks

_RATE = 0.1


class Task(NamedTuple):
    """What an attacker has: everything normalized and in PyTorch's layout."""

    network: Any
    update: list[Any]
    labels: Any
    starts: Any
    lowest: Any
    highest: Any
    case: dict[str, Any]


def invert(task: Task, start: Any, *, num_steps: int) -> tuple[Any, list[float]]:
    """Takes steps of Adam on gradient signs; returns the iterates' last and best by loss, and all losses.

    Args:
      task: the attack's.
      start: `[B, C, H, W]`, normalized.
      num_steps: to take; the learning rate decays over the case's own number.
    """
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=_RATE)
    milestones = [int(share * task.case["horizon"]) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    best, losses = start, []
    for _ in range(num_steps):
        loss = cosine_distance(client_update(task, x), task.update) + task.case["tv"] * total_variation(x)
        (gradient,) = torch.autograd.grad(loss, x)
        losses.append(loss.item())
        if losses[-1] <= min(losses):
            best = x.detach().clone()
        x.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(torch.minimum(torch.maximum(x, task.lowest), task.highest))
    return (x.detach(), best), losses


def client_update(task: Task, x: Any) -> list[Any]:
    """The gradient, or the sum of several local steps, as a differentiable function of the images."""
    loss_fn, num_steps = torch.nn.functional.cross_entropy, task.case["local_steps"]
    local = dict(task.network.named_parameters())
    if not num_steps:
        loss = loss_fn(task.network(x), task.labels)
        return list(torch.autograd.grad(loss, list(local.values()), create_graph=True))
    update = [torch.zeros_like(value) for value in local.values()]
    for _ in range(num_steps):
        loss = loss_fn(torch.func.functional_call(task.network, local, x), task.labels)
        gradients = torch.autograd.grad(loss, list(local.values()), create_graph=True)
        steps = [task.case["local_rate"] * gradient for gradient in gradients]
        update = [so_far + step for so_far, step in zip(update, steps)]
        local = {name: value - step for (name, value), step in zip(local.items(), steps)}
    return update


def cosine_distance(simulated: Sequence[Any], observed: Sequence[Any]) -> Any:
    """`1 - <g, g*> / (|g| |g*|)` over all tensors together."""
    inner = torch.stack([(a * b).sum() for a, b in zip(simulated, observed)]).sum()
    norm, norm_star = (torch.stack([a.square().sum() for a in g]).sum().sqrt() for g in (simulated, observed))
    return 1 - inner / (norm * norm_star)


def total_variation(x: Any) -> Any:
    """Means of absolute differences along height and along width."""
    return (x[:, :, 1:] - x[:, :, :-1]).abs().mean() + (x[:, :, :, 1:] - x[:, :, :, :-1]).abs().mean()


Run = Callable[[Any], tuple[Any, list[float]]]
"""From a start to what `invert` returns."""


def by_loop(task: Task, *, num_steps: int) -> Run:
    """The loop above."""
    return lambda start: invert(task, start, num_steps=num_steps)


def by_breaching(task: Task, *, num_steps: int, tv: float | None = None) -> Run:
    """The same by the package breaching: its published attack, from the same start, with the same prior's weight.

    Its total variation pads the images with zeros, so that its attack loss is another one unless `tv` is 0. A run
    also copies the network and scores the result, as users of the package run it.
    """
    breaching, omegaconf = _breaching()
    weight = task.case["tv"] if tv is None else tv
    limits = [f"optim.max_iterations={num_steps}", "optim.callback=1000000000"]
    config = breaching.get_attack_config(
        "invertinggradients", [*limits, f"regularization.total_variation.scale={weight}"]
    )
    attacker = breaching.attacks.prepare_attack(task.network, torch.nn.CrossEntropyLoss(), config)
    mean, std = -task.lowest / (task.highest - task.lowest), 1 / (task.highest - task.lowest)
    num_images, *shape = task.starts.shape[1:]
    facts = {"modality": "vision", "shape": shape, "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
    sent = {"parameters": list(task.network.parameters()), "buffers": list(task.network.buffers())}
    local, update = None, task.update
    if steps := task.case["local_steps"]:
        local = {"steps": steps, "data_per_step": num_images, "lr": task.case["local_rate"]}
        local["labels"] = [task.labels] * steps
        update = [-tensor for tensor in update]
    metadata = {"num_data_points": num_images, "labels": task.labels, "local_hyperparams": local}
    payload = [{**sent, "metadata": omegaconf.OmegaConf.create(facts)}]
    shared = [{"gradients": update, "buffers": None, "metadata": metadata}]

    def run(start: Any) -> tuple[Any, list[float]]:
        found, stats = attacker.reconstruct(payload, shared, {}, initial_data=start)
        return (found["data"], found["data"]), stats["Trial_0_Val"]

    return run


def _breaching() -> tuple[Any, Any]:
    """Imports breaching; torchvision, which it asks for, may be built for another PyTorch: nothing of it is used."""
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import breaching  # pyright: ignore[reportMissingImports]
    import omegaconf  # pyright: ignore[reportMissingImports]

    return breaching, omegaconf


PEERS: dict[str, Callable[..., Run]] = {"loop": by_loop, "breaching": by_breaching}


def load(folder: Path) -> Task:
    """The task that `peers.ours` left in a folder."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    with np.load(folder / "case.npz", allow_pickle=False) as file:
        arrays = dict(file)
    mean, std = (torch.tensor(arrays[name], dtype=torch.float32).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    starts = torch.tensor(arrays["starts"]).movedim(-1, 2)
    classes = len(arrays["sent/params/head/bias"])
    network = torch_networks.make(case["model"], side=case["size"], channels=starts.shape[2], classes=classes)
    named = {
        kind: {name.removeprefix(f"{kind}/"): value for name, value in arrays.items() if name.startswith(f"{kind}/")}
        for kind in ("sent", "update")
    }
    missing, extra = network.load_state_dict(torch_networks.as_torch(network, named["sent"]), strict=False)
    assert not extra, extra
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    update = torch_networks.as_torch(network, named["update"])
    in_order = [update[name].to(case["device"]) for name, _ in network.named_parameters()]
    labels = torch.tensor(arrays["labels"].astype(np.int64))
    limits = -mean / std, (1 - mean) / std
    labels, starts, lowest, highest = (one.to(case["device"]) for one in (labels, starts, *limits))
    return Task(network.to(case["device"]), in_order, labels, starts, lowest, highest, case)


class Torch:
    """The commands of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.task = folder, load(folder)

    def facts(self) -> dict[str, Any]:
        """Versions, threads, and whether breaching can be imported."""
        try:
            _breaching()
        except ImportError:
            has_breaching = False
        else:
            has_breaching = True
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "breaching": has_breaching}

    def threads(self, count: int) -> dict[str, Any]:
        """Sets how many threads an operation may use."""
        torch.set_num_threads(count)
        return {"threads": count}

    def first(self, peer: str, restart: int) -> dict[str, Any]:
        """The loss at a start; breaching's without its prior."""
        options = {"tv": 0.0} if peer == "breaching" else {}
        _, losses = PEERS[peer](self.task, num_steps=1, **options)(self.task.starts[restart])
        without = cosine_distance(client_update(self.task, self.task.starts[restart]), self.task.update)
        return {"loss": losses[0], "cosine": without.item()}

    def steps(self, peer: str, num_steps: int, restart: int) -> dict[str, Any]:
        """Seconds per step."""
        run = PEERS[peer](self.task, num_steps=num_steps)
        begin = time.perf_counter()
        run(self.task.starts[restart])
        return {"seconds": (time.perf_counter() - begin) / num_steps}

    def solve(self, peer: str, num_steps: int) -> dict[str, Any]:
        """Seconds of a whole run; its best images `[B, H, W, C]` in [0, 1] go to `found.npy`."""
        run = PEERS[peer](self.task, num_steps=num_steps)
        begin = time.perf_counter()
        (_, best), _ = run(self.task.starts[0])
        seconds = time.perf_counter() - begin
        pixels = (best - self.task.lowest) / (self.task.highest - self.task.lowest)
        np.save(self.folder / "found.npy", pixels.movedim(1, -1).cpu().numpy())
        return {"seconds": seconds}

    def commands(self) -> serving.Commands:
        """What the process answers."""
        return {
            "facts": self.facts,
            "threads": self.threads,
            "first": self.first,
            "steps": self.steps,
            "solve": self.solve,
        }


if __name__ == "__main__":
    serving.serve(lambda folder: Torch(folder).commands())
