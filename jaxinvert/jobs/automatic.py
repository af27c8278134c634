"""The attack `auto`: a closed form where ranks allow one and it explains the update, else spectral matching.

Which closed form is tried follows from facts that the server has: the network, the batch's size, how the client
trains, and the ranks of an update. Whether its answer is believed is decided update by update, by how much of the
update it explains. What is left is searched for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.attacks.closed_form.rank import rank_report
from jaxinvert.attacks.optimization.spectral import spectral
from jaxinvert.attacks.registry import register
from jaxinvert.jobs.config import JobConfig
from jaxinvert.types import Observation, Reconstruction, Shape

AUTO, SEARCH = "auto", "spectral"
register(
    spectral,
    name=AUTO,
    summary="a closed form where one is exact, else spectral; says what it took and why (only as part of a job)",
)

_CLOSED_FORMS = ("dense-layer", "dense-chain", "patch-embedding", "exact-batch", "rgap")
"""Those that are exact, the quickest first."""
_EXPLAINED = 1e-3
"""Share of an update that rounding may leave unexplained."""


class Choice(NamedTuple):
    """What to try first: a closed form with the reason for it, or none with the reason against."""

    closed_form: str | None
    reason: str


def choose(config: JobConfig, observations: Observation, image_shape: Shape) -> Choice:
    """Looks at the ranks of the first update, and at what is known of the clients.

    Args:
      config: the job.
      observations: one per client, leading axis `T`.
      image_shape: `(H, W, C)`.
    """
    update = jax.tree.map(lambda leaf: leaf[0], observations.update)
    forms = {
        form.attack: form for form in rank_report(update, batch_shape=(config.num_private, *image_shape)).closed_forms
    }
    for name in _CLOSED_FORMS:
        if forms[name].applies and _fits(name, config):
            return Choice(name, forms[name].reason)
    return Choice(None, "no closed form is exact for this network, batch and update")


def _fits(name: str, config: JobConfig) -> bool:
    """Whether a closed form is exact for such clients, which the ranks alone do not say."""
    if name in ("dense-layer", "dense-chain"):
        return config.num_private == 1
    if name == "rgap" and config.model.name != "lenet":
        return False
    return config.client.kind == "fedsgd" and config.observation.aggregate == 1


def closed_form_job(config: JobConfig, name: str) -> JobConfig:
    """The same job by a closed form, which reads no labels, has no settings and looks at the update as it came."""
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


def search_in_words(config: JobConfig) -> str:
    """What looks for the images where no closed form explains the update, and where its labels come from."""
    labels = {
        "known": "",
        "restored": f" with labels restored by {config.chosen_label_rule}",
        "joint": " for images and labels at once",
    }
    return SEARCH + labels[config.attacker.labels]


def explained(found: Reconstruction) -> np.ndarray:
    """`[T]` bool: which updates a closed form explains, by its certificate or by what it leaves unexplained."""
    enough = np.asarray(found.attack_loss) < _EXPLAINED
    for flag in ("certified", "determined"):
        if flag in found.info:
            value = np.asarray(found.info[flag])
            enough &= value.reshape(len(value), -1).all(axis=1)
    return enough


def merged(exact: Reconstruction, searched: Reconstruction, solved: np.ndarray) -> Reconstruction:
    """The closed form's images where it explains the update, else those of the search; `info["closed_form"]` says so.

    Args:
      exact: `[T, ...]`, of the closed form.
      searched: `[T, ...]`.
      solved: `[T]` bool.
    """

    def choose_from(closed: jax.Array, found: jax.Array) -> jax.Array:
        return jnp.where(solved.reshape(-1, *[1] * (found.ndim - 1)), closed, found)

    return searched._replace(
        inputs=choose_from(exact.inputs, searched.inputs),
        attack_loss=choose_from(exact.attack_loss, searched.attack_loss),
        info={**searched.info, "closed_form": jnp.asarray(solved)},
    )
