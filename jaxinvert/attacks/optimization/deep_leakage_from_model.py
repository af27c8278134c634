"""DLM and DLM+: gradient matching for a server that does not know the client's learning rate.

    DLM:    minimize over x, y, k:   sum (g(x, softmax y) - k dW)^2          (k = 1 / rate after one step of SGD)
    DLM+:   minimize over x, y:      sum_l sum (g_l / mean |g_l| - dW_l / mean |dW_l|)^2

`dW = W_t - W_(t+1)` is the update in this package's terms. With soft labels, k is not identifiable: for one example
with output p, the label `p - c (p - y)` has the gradient `c g`, so any `k = c / rate` with c in [0, 1] explains the
update as well as the truth, down to `g = 0, k = 0`. `dlm_best_scale` therefore first fixes hard labels by a rule that
is independent of the learning rate. For given images, the best k is then `<g, dW> / |dW|^2`, and only the direction
of dW remains to be matched.

All three simulate one gradient of the client's loss, because the attacker does not know how the client trains. Images
start from `N(1/2, 1/4)`; the authors start from `N(0, 1)`, most of which lies outside [0, 1].

Zihao Zhao, Mengen Luo, Wenbo Ding: "Deep Leakage from Model in Federated Learning", 2022, arXiv:2206.04887.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxinvert import labels
from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching, search_inputs, with_restored_labels
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.clients import fedsgd
from jaxinvert.priors import parametrizations
from jaxinvert.trees import scaled, tree_inner, tree_squared_norm
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
    Update,
)


class ScaledBatch(NamedTuple):
    """A candidate batch of DLM: `inputs [B, H, W, C]`, soft `labels [B, K]`, and the scale k, `[]`."""

    inputs: Array
    labels: Array
    scale: Array


@declare(simulates=False, reports=("scale",))
def dlm(problem: Problem, *, initial_scale: Scalar = 100.0, learning_rate: Scalar = 0.1) -> Attack:
    """DLM: matches the update for an unknown learning rate, with its scale as a variable (Zhao et al. 2022).

    The optimizer is the paper's Adam; `info["scale"]` is k.

    Works: for a server that does not know the client's learning rate, on single images through a small perceptron.

    Fails: from many starts of the scale, since soft labels do not identify it; after many local steps, which it takes
    for one.

    Args:
      problem: labels are always optimized; `joint_labels` is ignored.
      initial_scale: initial value of k; the paper uses 60 to 240 for a true value of 100.
      learning_rate: of Adam, for labels and k, and for images in units of 1/4.
    """
    images, client_gradient = _free_images(problem), _client_gradient(problem)

    def init(key: Key) -> tuple[ArrayTree, Array]:
        return images.init(key), jnp.asarray(initial_scale, jnp.float32)

    def decode(variables: tuple[ArrayTree, Array]) -> ScaledBatch:
        image_variables, scale = variables
        batch = images.decode(image_variables)
        return ScaledBatch(batch.inputs, batch.labels, scale)

    def distance(observation: Observation, batch: ScaledBatch) -> Array:
        gradient = client_gradient(observation.params, Batch(batch.inputs, batch.labels))
        return objectives.squared_l2(gradient, scaled(observation.update, batch.scale))

    return search_inputs(
        distance,
        optimizer=optax.adam(learning_rate),
        parametrization=Parametrization(init, decode, parametrizations.stay, free=True),
        name="dlm",
    )


@declare(simulates=False, every_round=True, reports=("scale",))
def dlm_best_scale(problem: Problem, *, learning_rate: Scalar = 0.1, rule: RecoverLabels | None = None) -> Attack:
    """DLM with labels restored from the bias gradient's signs and the scale in closed form (from no paper).

    `info["scale"]` is the best k for the result.

    Works: for a server that does not know the client's learning rate, on single images through a small perceptron,
    better with several restarts.

    Fails: where the rule takes wrong labels. Success falls with local steps, and with noise on the weights.

    Args:
      problem: any batch size.
      learning_rate: of Adam, for images in units of 1/4.
      rule: restores the labels from an update of unknown scale: `labels.bias_sign` (the default), `idlg`, `yin` or
        `llg`.
    """
    client_gradient = _client_gradient(problem)
    attack = gradient_matching(
        client_gradient,
        objective=objectives.cosine,
        optimizer=optax.adam(learning_rate),
        parametrization=parametrizations.free_pixels(problem.batch_shape),
        name="dlm_best_scale",
    )
    own_rule = labels.bias_sign(head=problem.model.head)
    rule = rule or labels.calibrated_for(problem.model, own_rule, name="bias-sign")
    attack = with_restored_labels(attack, rule, batch_size=problem.num_examples)

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = attack.decode(state, observation)
        assert found.labels is not None
        gradient = client_gradient(observation.params, Batch(found.inputs, found.labels))
        return found._replace(info={**found.info, "scale": best_scale(gradient, observation.update)})

    return attack._replace(decode=decode)


def best_scale(gradient: Update, update: Update) -> Array:
    """The k that minimizes `|g - k dW|^2`: `<g, dW> / |dW|^2`, equal to 1 / rate if g is the client's gradient."""
    return tree_inner(gradient, update) / tree_squared_norm(update)


@declare(simulates=False, every_round=True)
def dlm_plus(problem: Problem, *, learning_rate: Scalar = 0.1) -> Attack:
    """DLM+: matches an update for any learning rate by normalizing the scale of each tensor (Zhao et al. 2022).

    Works: for a server that does not know the client's learning rate, on single images through a small perceptron.

    Fails: in most cases, more often than `dlm`. Success falls with local steps, and with noise on the weights.

    Args:
      problem: labels are always optimized; `joint_labels` is ignored.
      learning_rate: of Adam, for images in units of 1/4.
    """
    return gradient_matching(
        _client_gradient(problem),
        objective=objectives.mean_scaled_l2,
        optimizer=optax.adam(learning_rate),
        parametrization=_free_images(problem),
        name="dlm_plus",
    )


def _free_images(problem: Problem) -> Parametrization:
    return problem.with_soft_labels(parametrizations.free_pixels(problem.batch_shape))


def _client_gradient(problem: Problem) -> ClientUpdateFn:
    """A simulated client that sends one gradient of its loss."""
    return fedsgd(problem.model.loss, chunk_size=problem.gradient_chunk)
