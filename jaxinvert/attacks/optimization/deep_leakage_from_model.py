"""Deep Leakage from Model: the server has two snapshots of the model, but not the client's learning rate.

    DLM:    minimize over x, y, k:   sum (g(x, softmax y) - k dW)^2          (k = 1 / rate after one step of SGD)
    DLM+:   minimize over x, y:      sum_l sum (g_l / mean |g_l| - dW_l / mean |dW_l|)^2

`dW = W_t - W_(t+1)` is what jaxinvert calls the update. Soft labels leave k open: of one example with output p, the
label `p - c (p - y)` has the gradient `c g`, so that any `k = c / rate` with c in [0, 1] explains the update as well
as the truth, down to `g = 0, k = 0`. `dlm_with_best_scale` therefore fixes hard labels first, by a rule that no
learning rate changes; for given images the best k is then `<g, dW> / |dW|^2`, and only the direction of dW is left
to match.

Zihao Zhao, Mengen Luo, Wenbo Ding: "Deep Leakage from Model in Federated Learning", 2022, arXiv:2206.04887.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxinvert import trees
from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching, search_inputs, with_restored_labels
from jaxinvert.priors import parametrizations
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackState,
    Batch,
    ClientUpdateFn,
    Key,
    Observation,
    Parametrization,
    Reconstruction,
    RecoverLabels,
    Scalar,
    Shape,
    Update,
)


class ScaledBatch(NamedTuple):
    """A candidate of DLM: `inputs [B, H, W, C]`, soft `labels [B, K]`, and the scale k, `[]`."""

    inputs: Array
    labels: Array
    scale: Array


def dlm(
    client_gradient: ClientUpdateFn,
    *,
    batch_shape: Shape,
    num_classes: int,
    initial_scale: Scalar = 100.0,
    learning_rate: Scalar = 0.1,
) -> Attack:
    """Returns DLM with the paper's Adam; `info["scale"]` is k.

    Images start from `N(1/2, 1/4)` in all three attacks (the authors': `N(0, 1)`, most of which is no image).

    Args:
      client_gradient: one gradient of the client's loss, `clients.fedsgd`: the attacker does not know the rate.
      batch_shape: `(B, H, W, C)`.
      num_classes: `K` of the soft labels.
      initial_scale: where k starts; the paper uses 60 to 240 for a true 100.
      learning_rate: of Adam, for labels and k, and for images in units of 1/4.
    """
    images = _free_images(batch_shape, num_classes)

    def init(key: Key) -> tuple[ArrayTree, Array]:
        return images.init(key), jnp.asarray(initial_scale, jnp.float32)

    def decode(variables: tuple[ArrayTree, Array]) -> ScaledBatch:
        image_variables, scale = variables
        batch = images.decode(image_variables)
        return ScaledBatch(batch.inputs, batch.labels, scale)

    def distance(observation: Observation, batch: ScaledBatch) -> Array:
        gradient = client_gradient(observation.params, Batch(batch.inputs, batch.labels))
        return objectives.squared_l2(gradient, trees.scaled(observation.update, batch.scale))

    return search_inputs(
        distance,
        optimizer=optax.adam(learning_rate),
        parametrization=Parametrization(init, decode, parametrizations.stay),
        name="dlm",
    )


def dlm_with_best_scale(
    client_gradient: ClientUpdateFn,
    rule: RecoverLabels,
    *,
    batch_shape: Shape,
    learning_rate: Scalar = 0.1,
) -> Attack:
    """Returns DLM with hard labels and k eliminated (from no paper); `info["scale"]` is the best k in the end.

    Args:
      client_gradient: one gradient of the client's loss.
      rule: restores the labels from an update of unknown scale: `labels.bias_sign`, `idlg`, `yin` or `llg`.
      batch_shape: `(B, H, W, C)`.
      learning_rate: of Adam, images in units of 1/4.
    """
    attack = gradient_matching(
        client_gradient,
        objective=objectives.cosine,
        optimizer=optax.adam(learning_rate),
        parametrization=parametrizations.free_pixels(batch_shape),
        name="dlm_with_best_scale",
    )
    attack = with_restored_labels(attack, rule, batch_size=batch_shape[0])

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = attack.decode(state, observation)
        assert found.labels is not None
        gradient = client_gradient(observation.params, Batch(found.inputs, found.labels))
        return found._replace(info={**found.info, "scale": best_scale(gradient, observation.update)})

    return attack._replace(decode=decode)


def best_scale(gradient: Update, update: Update) -> Array:
    """The k that minimizes `|g - k dW|^2`: `<g, dW> / |dW|^2`, which is 1 / rate where g is the client's gradient."""
    return trees.tree_inner(gradient, update) / trees.tree_squared_norm(update)


def dlm_plus(
    client_gradient: ClientUpdateFn,
    *,
    batch_shape: Shape,
    num_classes: int,
    learning_rate: Scalar = 0.1,
) -> Attack:
    """Returns DLM+: every tensor in units of its own mean size, which no learning rate changes.

    Args:
      client_gradient: one gradient of the client's loss.
      batch_shape: `(B, H, W, C)`.
      num_classes: `K` of the soft labels.
      learning_rate: of Adam, images in units of 1/4.
    """
    return gradient_matching(
        client_gradient,
        objective=objectives.mean_scaled_l2,
        optimizer=optax.adam(learning_rate),
        parametrization=_free_images(batch_shape, num_classes),
        name="dlm_plus",
    )


def _free_images(batch_shape: Shape, num_classes: int) -> Parametrization:
    images = parametrizations.free_pixels(batch_shape)
    return parametrizations.with_soft_labels(images, batch_size=batch_shape[0], num_classes=num_classes)
