r"""FedLeak: matches the largest entries of an update alone, and prefers flat places of the attack loss.

    minimize over x in [0, 1]^n:   L(x) + flat |grad L(x)|,    L(x) = 1 - cos(m * g(x), m * g*)  +  tv * TV(x)

`m` is 1 at the fraction `part` of the observed update's entries with the largest absolute values and 0 elsewhere.
Small entries of a batch's or of a long training's update are sums of large ones that cancel: they tell little and may
lead astray. The norm of the gradient would need third derivatives. Instead, along the direction `n` of the gradient,

    |grad L(x)|  ~  (L(x + eps n) - L(x)) / eps,     n fixed while the gradient of this is taken

What entries are matched and that the gradient is regularized is the paper's; the equations as written here are ours,
since only its abstract and a summary were at hand.

Mingyuan Fan, Fuyi Wang, Cen Chen, Jianying Zhou: "Boosting Gradient Leakage Attacks: Data Reconstruction in Realistic
FL Settings", USENIX Security 2025, arXiv:2506.08435.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import search_inputs, update_distance
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.attacks.transformations import signed_adam
from jaxinvert.priors import regularizers
from jaxinvert.types import Array, ArrayTree, Attack, AttackInfo, AttackState, Batch, Key, Observation, Scalar, Update

_REACH = 1e-2
"""`eps`, in units of pixels in [0, 1], root mean square."""


@declare("labels", joint_labels=True, adapts=True)
def fedleak(
    problem: Problem,
    *,
    part: Scalar = 0.5,
    flat: Scalar = 1e-2,
    tv: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 4800,
) -> Attack:
    """FedLeak: partial matching of the largest entries, with a penalty on the loss's gradient (Fan et al. 2025).

    Works: through small convolutional networks, as `inverting-gradients` does; made for updates of many examples or
    steps, whose small entries are sums that cancel.

    Fails: where all entries are exact, of which half say less than all; on networks through which cosine matching
    fails.

    Optimizer, prior and normalized space are those of `inverting_gradients`, which it is with `part=1` and `flat=0`.
    A step simulates the client three times.

    Args:
      problem: any batch size, FedSGD or FedAvg clients; `joint_labels` optimizes soft labels.
      part: fraction of the update's entries, of those that are not zero, that are matched, in (0, 1].
      flat: weight of the norm of the attack loss's gradient by pixels in [0, 1].
      tv: weight of the total variation.
      learning_rate: of Adam on gradient signs, in units of `std`.
      horizon: number of steps over which the learning rate decays.
    """
    images = problem.pixels()
    compared = problem.objective or objectives.cosine

    def built(threshold: Array) -> Attack:
        def partial_match(simulated: Update, observed: Update) -> Array:
            return objectives.masked(compared, largest(observed, threshold))(simulated, observed)

        matched = update_distance(problem.client_update, partial_match)

        def distance(observation: Observation, batch: Batch) -> Array:
            def loss(inputs: Array) -> Array:
                variation = regularizers.total_variation(inputs / problem.std_image)
                return matched(observation, Batch(inputs, batch.labels)) + tv * variation

            return flattened(loss, batch.inputs, flat)

        return search_inputs(
            distance,
            optimizer=signed_adam(step_decay(learning_rate, horizon)),
            parametrization=problem.with_soft_labels(images) if problem.joint_labels else images,
            name="fedleak",
        )

    def init(key: Key, observation: Observation) -> AttackState:
        sizes = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(observation.update)])
        sent = jnp.where(sizes > 0, sizes, jnp.nan)  # zeros: frozen layers, dead units, what a defense left out
        threshold = jnp.nan_to_num(jnp.nanquantile(sent, 1 - jnp.clip(part, 0.0, 1.0)))
        return built(threshold).init(key, observation)._replace(carried=threshold)

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        return built(state.carried).step(key, state, observation)

    return Attack(init, step, built(jnp.zeros(())).decode)


def largest(update: Update, threshold: Array) -> ArrayTree:
    """1 where an entry's absolute value is at least the threshold, else 0."""
    return jax.tree.map(lambda leaf: (jnp.abs(leaf) >= threshold).astype(leaf.dtype), update)


def flattened(loss: Callable[[Array], Array], inputs: Array, flat: Scalar) -> Array:
    """`L + flat |grad L|` at `inputs`, the norm by a difference along the gradient's direction."""
    slope = lax.stop_gradient(jax.grad(loss)(lax.stop_gradient(inputs)))
    size = jnp.sqrt(jnp.mean(jnp.square(slope)))
    direction = slope / jnp.where(size == 0, 1.0, size)
    here, ahead = loss(inputs), loss(inputs + _REACH * direction)
    return here + flat * (ahead - here) / (_REACH * inputs.size**0.5)
