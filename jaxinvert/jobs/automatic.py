"""The attack `auto`: a closed form if the ranks admit one and it explains the update, else a search.

The closed form is chosen from facts that the server knows: the network, the batch size, how the client trains and
defends itself, and the ranks of an update. Its result is accepted for an update if the client, simulated on it, sends
that update. The remaining updates are attacked by whitened matching, or by spectral matching where whitening does not
fit: of updates that a defense made noisy or sparse, of several rounds, and with labels that are optimized, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.attacks.closed_form.rank import rank_report
from jaxinvert.attacks.optimization.spectral import spectral
from jaxinvert.attacks.registry import REGISTRY, register
from jaxinvert.jobs.config import JobConfig
from jaxinvert.types import Array, Observation, Reconstruction, Shape

AUTO = "auto"
register(
    spectral,
    name=AUTO,
    summary="Closed form if one is exact, else whitened or spectral; reports its choice (only as part of a job)",
)
REGISTRY[AUTO] = REGISTRY[AUTO]._replace(
    works="where a closed form is exact for the update, and else where `whitened` or `spectral` does.",
    fails="where no closed form is exact and both searches fail.",
)

_CLOSED_FORMS = ("dense-layer", "dense-chain", "patch-embedding", "exact-batch", "rgap")
"""Closed forms that can be exact, fastest first."""
_ONLY_SCALE = ("clip",)
"""Defenses that multiply each gradient by a number."""
_EXPLAINED = 1e-3
"""Largest unexplained share of an update that is attributed to rounding."""


SharesFn = Callable[[Observation, Array, Array | None], Array]
"""See `Program.shares_explained`."""


class Choice(NamedTuple):
    """The closed form to try first and why, or `None` and why no closed form applies."""

    closed_form: str | None
    reason: str


def choose(config: JobConfig, observations: Observation, image_shape: Shape, task: str = "classes") -> Choice:
    """Chooses a closed form from the ranks of the first update and the clients' configuration.

    Args:
      config: the job.
      observations: one per client, leading axis `T`.
      image_shape: `(H, W, C)`.
      task: the network's, see `models.tasks`.
    """
    update = jax.tree.map(lambda leaf: leaf[0], observations.update)
    if reason := not_a_sum_of_gradients(config):
        return Choice(None, reason)
    forms = {
        form.attack: form for form in rank_report(update, batch_shape=(config.num_private, *image_shape)).closed_forms
    }
    for name in _CLOSED_FORMS:
        any_loss = task == "classes" or REGISTRY[name].traits.any_loss
        if forms[name].applies and any_loss and _fits(name, config):
            return Choice(name, forms[name].reason)
    return Choice(None, "no closed form is exact for this network, batch and update")


def not_a_sum_of_gradients(config: JobConfig) -> str:
    """Why an update is no weighted sum of its examples' gradients, whose ranks count examples; empty if it is one."""
    client = config.client
    if client.local_optimizer == "adam":
        return "an update of Adam is no sum of gradients"
    if client.local_weight_decay:
        return f"weight decay {client.local_weight_decay:g} adds the parameters to the update"
    for name in config.defense.chain.names:
        if name not in _ONLY_SCALE:
            return f"defense {name} changes the gradients by more than a factor"
    return ""


def _fits(name: str, config: JobConfig) -> bool:
    """Whether a closed form is exact for these clients, which does not follow from the ranks alone."""
    if name in ("dense-layer", "dense-chain"):
        return config.num_private == 1
    if name == "rgap" and config.model.name != "lenet":
        return False
    return config.client.kind == "fedsgd" and config.observation.aggregate == 1


def closed_form_job(config: JobConfig, name: str) -> JobConfig:
    """The same job with a closed form as its attack: no labels, no hyperparameters, not adaptive, one round."""
    return config.replace(
        attack=name,
        labels="known",
        label_rule=None,
        tv=None,
        lr=None,
        settings={},
        adaptive=False,
        rounds=1,
        server_lr=None,
    )


def search_for(config: JobConfig) -> str:
    """The attack by which `auto` searches; follows from what the server knows of the clients."""
    changed = any(name not in _ONLY_SCALE for name in config.defense.chain.names)
    fits = config.attacker.labels != "joint" and config.observation.rounds == 1 and not changed
    return "whitened" if fits else "spectral"


def search_in_words(config: JobConfig) -> str:
    """A phrase for the search used if no closed form explains the update, and the source of its labels."""
    labels = {
        "known": "",
        "restored": f" with labels restored by {config.chosen_label_rule}",
        "joint": " for images and labels jointly",
    }
    return search_for(config) + labels[config.attacker.labels]


def explained(
    shares: SharesFn, observations: Observation, found: Reconstruction, *, task: str = "classes"
) -> np.ndarray:
    """`[T]` bool: whether a closed form explains each update, as the closed form and a simulated client find.

    Without granted or recovered labels, the class that explains the update best is taken, for all examples. Labels of
    other kinds cannot be tried out: there the closed form's own loss decides.

    Args:
      shares: the closed form's `Program.shares_explained`.
      observations: one per client, leading axis `T`.
      found: the closed form's reconstructions, `[T, ...]`.
      task: the network's, see `models.tasks`.
    """
    enough = np.asarray(found.attack_loss) < _EXPLAINED
    for flag in ("certified", "determined"):
        if flag in found.info:
            value = np.asarray(found.info[flag])
            enough &= value.reshape(len(value), -1).all(axis=1)
    labels = observations.labels if found.labels is None else found.labels
    if not enough.any() or (labels is None and task != "classes"):
        return enough
    return enough & (np.asarray(shares(observations, found.inputs, labels)) > 1 - _EXPLAINED)


def merged(exact: Reconstruction, searched: Reconstruction, solved: np.ndarray) -> Reconstruction:
    """The closed form's images for the updates that it explains, else those of the search; see `info["closed_form"]`.

    Args:
      exact: `[T, ...]`, the closed form's reconstructions.
      searched: `[T, ...]`, the search's reconstructions.
      solved: `[T]` bool, whether the closed form explains the update.
    """

    def choose_from(closed: jax.Array, found: jax.Array) -> jax.Array:
        return jnp.where(solved.reshape(-1, *[1] * (found.ndim - 1)), closed, found)

    labels = searched.labels
    if labels is not None and exact.labels is not None:  # a closed form has images in an order of its own
        own = exact.labels
        if labels.ndim > own.ndim:  # soft ones
            own = jax.nn.one_hot(own, labels.shape[-1], dtype=labels.dtype)
        labels = choose_from(own.astype(labels.dtype), labels)
    return searched._replace(
        inputs=choose_from(exact.inputs, searched.inputs),
        labels=labels,
        attack_loss=choose_from(exact.attack_loss, searched.attack_loss),
        info={**searched.info, "closed_form": jnp.asarray(solved)},
    )
