"""Names the likely mistake in what is said about a capture, from the share of the updates that the truth explains.

With the true images, the declared training can be simulated: if all is right, the result is the captured update, up
to rounding, a defense and a secret order. If it is not, the usual mistakes are tried, and the one that explains most
is named. None of this is visible to an attack.

| mistake | tried |
| --- | --- |
| normalization | none, 0.5 / 0.5, 0.5 / 0.25, the constants of CIFAR-10, ImageNet and MNIST, pixels in [0, 255] |
| flatten order | rows of dense layers as (channel, position) instead of (position, channel) |
| kind | the update with the opposite sign; differences instead of weights |
| BatchNorm mode | the other one |
| client order | another client's true images |
| learning rate | the length of the simulated update |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import jobs, models
from jaxinvert.audit.reading import Seen
from jaxinvert.jobs import JobConfig
from jaxinvert.trees import of_what_was_sent, tree_inner, tree_squared_norm
from jaxinvert.types import Array, ArrayTree, Batch, Params, Update

_WHOLE, _MOST = 0.999, 0.98
"""A median share above the first is rounding; above the second, it is mentioned only if a mistake explains more.

A wrong flatten order can leave 98 % explained, and an attack nothing to see."""
_LENGTHS = (0.8, 1.25)
"""Lengths of captured relative to simulated updates that need no explanation."""
_NORMALIZATIONS = {
    3: {
        "no normalization": ((0.0,) * 3, (1.0,) * 3),
        "mean 0.5 and std 0.5": ((0.5,) * 3, (0.5,) * 3),
        "mean 0.5 and std 0.25": ((0.5,) * 3, (0.25,) * 3),
        "the mean and std of CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "the mean and std of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "pixels in [0, 255]": ((0.0,) * 3, (1 / 255,) * 3),
    },
    1: {
        "no normalization": ((0.0,), (1.0,)),
        "mean 0.5 and std 0.5": ((0.5,), (0.5,)),
        "mean 0.5 and std 0.25": ((0.5,), (0.25,)),
        "the mean and std of MNIST": ((0.1307,), (0.3081,)),
        "pixels in [0, 255]": ((0.0,), (1 / 255,)),
    },
}


class _Fit(NamedTuple):
    """Cosines `[T]` of captured and simulated updates, and lengths `[T]` relative to the simulated ones."""

    cosine: np.ndarray
    length: np.ndarray

    @property
    def share(self) -> float:
        """The median share explained."""
        return float(np.median(np.maximum(self.cosine, 0) ** 2))


def likely_mistakes(
    config: JobConfig, program: jobs.Program, seen: Seen, truth: Batch, other_mode: models.Model | None = None
) -> tuple[str, ...]:
    """Sentences about what the true images do not explain, and the mistake that would explain it; mostly none.

    Args:
      config: the job.
      program: simulates the clients as declared, without a defense.
      seen: what was read.
      truth: `inputs [T, B, H, W, C]`, `labels [T, B]`.
      other_mode: the network with BatchNorm in the other mode, if it has such layers.
    """
    if config.defense.chain.names or config.observation.aggregate > 1:
        return ()  # defended updates are not what training alone gives
    client = jax.jit(program.problem.client_update)
    params, captured = seen.params, seen.observation.update
    declared = _fit(_simulated(client, params, truth), captured)
    if declared.share >= _WHOLE:
        return _length(seen, declared)
    tried = _alternatives(program, client, seen, truth, other_mode)
    name, best = max(tried.items(), key=lambda item: item[1], default=("", 0.0))
    so_far = f"The true images, with the training as declared, explain {declared.share:.1%} of the updates"
    if 1 - best < 0.5 * (1 - declared.share):
        return (f"{so_far}; with {name} they would explain {best:.1%}: check that.",)
    if declared.share >= _MOST:
        return _length(seen, declared)
    steps = config.local_training.num_steps
    secret = steps > 1 and config.client.local_order == "unknown"
    reason = "the clients' secret order" if secret else "loss, network or training may differ from what is declared"
    return (f"{so_far}, and no usual mistake would explain more: {reason}.",)


def _alternatives(
    program: jobs.Program, client, seen: Seen, truth: Batch, other_mode: models.Model | None
) -> dict[str, float]:
    """The median share that each usual mistake would explain, by its description."""
    params, captured, model = seen.params, seen.observation.update, program.model
    simulated = _simulated(client, params, truth)
    tried = {
        "the opposite sign (a delta for a pseudo-gradient, or the reverse)": _fit(
            simulated, jax.tree.map(jnp.negative, captured)
        ).share,
        "the files as differences instead of weights": _fit(
            simulated, jax.tree.map(lambda p, u: u - p[None], params, captured)
        ).share,
    }
    if truth.labels.shape[0] > 1:
        cosines = _all_cosines(simulated, captured)
        best = np.maximum(cosines, 0).max(axis=0)
        tried["the true images of other clients (another order of clients)"] = float(np.median(best**2))
    for name, (mean, std) in _NORMALIZATIONS.get(model.input_shape[-1], {}).items():
        if (mean, std) != (model.mean, model.std):
            tried[name] = _fit(_simulated(client, params, _as_if(truth, model, mean, std)), captured).share
    for name, swapped in _flattened_otherwise(params, captured):
        tried[f"the rows of {name} in the other flatten order"] = _fit(
            _simulated(client, swapped[0], truth), swapped[1]
        ).share
    if other_mode is not None:
        other = jobs.Program(program.config, other_mode)
        share = _fit(_simulated(jax.jit(other.problem.client_update), params, truth), captured).share
        tried["BatchNorm in the other mode (--batch-norm)"] = share
    return tried


def _length(seen: Seen, declared: _Fit) -> tuple[str, ...]:
    length = float(np.median(declared.length))
    if seen.observation.local_training is None or _LENGTHS[0] <= length <= _LENGTHS[1]:
        return ()
    return (
        f"The updates are {length:.3g} times as long as the declared training gives: the learning rate is probably "
        f"{length:.3g} times what is declared.",
    )


def _simulated(client, params: Params, truth: Batch) -> Update:
    updates = [client(params, jax.tree.map(lambda leaf: leaf[t], truth)) for t in range(truth.inputs.shape[0])]  # noqa: B023
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)


def _fit(simulated: Update, captured: Update) -> _Fit:
    def one(mine: ArrayTree, theirs: ArrayTree) -> tuple[Array, Array]:
        mine = of_what_was_sent(mine, theirs)
        inner, own, other = tree_inner(mine, theirs), tree_squared_norm(mine), tree_squared_norm(theirs)
        tiny = jnp.finfo(jnp.float32).tiny
        return inner / jnp.maximum(jnp.sqrt(own * other), tiny), inner / jnp.maximum(own, tiny)

    return _Fit(*map(np.asarray, jax.vmap(one)(simulated, captured)))


def _all_cosines(simulated: Update, captured: Update) -> np.ndarray:
    """`[T, T]`: of every simulated with every captured update."""
    rows = [_fit(jax.tree.map(lambda leaf: jnp.roll(leaf, t, axis=0), simulated), captured).cosine  # noqa: B023
            for t in range(len(jax.tree.leaves(simulated)[0]))]  # fmt: skip
    return np.stack(rows)


def _as_if(truth: Batch, model: models.Model, mean: tuple[float, ...], std: tuple[float, ...]) -> Batch:
    """Inputs that the model's own normalization turns into those of another one."""
    (own_mean, own_std), (mean_, std_) = (
        (jnp.asarray(one, jnp.float32).reshape(1, 1, 1, 1, -1) for one in pair)
        for pair in ((model.mean, model.std), (mean, std))
    )
    return truth._replace(inputs=(truth.inputs - mean_) / std_ * own_std + own_mean)


def _flattened_otherwise(params: Params, captured: Update) -> list[tuple[str, tuple[Params, Update]]]:
    """For each dense layer behind a convolution: its name, and both trees with its rows in the other order."""
    found, channels = [], None
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    sent = jax.tree.leaves(captured)
    sizes = {leaf.shape[-1] for _, leaf in leaves if leaf.ndim == 4}
    for i, (path, leaf) in enumerate(leaves):
        if leaf.ndim != 2:
            continue
        for channels in sorted(sizes, reverse=True):
            if leaf.shape[0] % channels or leaf.shape[0] == channels:
                continue

            def swap(rows: Array, channels: int = channels) -> Array:
                *lead, count, width = rows.shape
                return rows.reshape(*lead, channels, count // channels, width).swapaxes(-3, -2).reshape(rows.shape)

            ours = structure.unflatten([swap(x) if j == i else x for j, (_, x) in enumerate(leaves)])
            theirs = structure.unflatten([swap(x) if j == i else x for j, x in enumerate(sent)])
            found.append((jax.tree_util.keystr(path, simple=True, separator="/"), (ours, theirs)))
    return found[:4]
