r"""Surrogate on a curve: many local steps matched by one gradient at a point of a curve between both models.

    w(t) = (1 - t)^2 w_0 + 2 t (1 - t) c + t^2 w_T,     c = (w_0 + w_T) / 2 + s u

    minimize over x, t in [0, 1] and u:   1 - cos(g(x; w(t)), w_0 - w_T)  +  tv * TV(x)  +  bend * mean u^2

The control point `c` of the quadratic Bezier curve is optimized with the images. With u = 0 the curve is the segment
of `surrogate_model`. `s` is each tensor's root mean square of `w_0 - w_T`, so that one unit of u bends all layers
alike. That the control point is free, scaled and regularized is the paper's; the scale `s` and the penalty as written
here are ours, since the paper's text was not at hand.

Li Xia, Jing Yu, Zheng Liu, Sili Huang, Wei Tang, Xuan Liu: "Non-Linear Trajectory Modeling for Multi-Step Gradient
Inversion Attacks in Federated Learning" (NL-SME), 2025, arXiv:2509.22082.
"""

import jax
import jax.numpy as jnp

from jaxinvert.attacks.optimization.surrogate_model import Surrogates, match_at_a_surrogate
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.trees import is_float, moved, tree_squared_norm
from jaxinvert.types import Array, Attack, Observation, Params, Scalar, Update


@declare("labels", joint_labels=True, simulates=False, reports=("position", "bend"))
def surrogate_curve(
    problem: Problem,
    *,
    tv: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    position_rate: Scalar = 1e-3,
    control_rate: Scalar = 1e-2,
    bend: Scalar = 1e-3,
    start_position: Scalar = 0.5,
    horizon: Scalar = 4800,
) -> Attack:
    """Surrogate on a curve: one gradient at a point of a Bezier curve with a free control point (NL-SME, Xia 2025).

    Works: after many local steps whose path bends, by large rates or momentum. Neither the learning rate nor the
    order of the examples need be known.

    Fails: where parameters are many more than pixels and `bend` is small, since a control point then explains the
    update with any image; where rate and order are known, simulating the steps finds more.

    Images, prior and optimizer are those of `surrogate_model`. `info["position"]` is t, `info["bend"]` the root mean
    square of u.

    Args:
      problem: any batch size; `joint_labels` optimizes soft labels. Its `client_update` is not used.
      tv: weight of the total variation.
      learning_rate: of Adam on gradient signs, for the images, in units of `std`.
      position_rate: learning rate of Adam for t.
      control_rate: learning rate of Adam for the control point's u.
      bend: weight of the mean square of u. With 0, parameters that are many more than pixels may explain any update.
      start_position: initial t, 0 (the model sent) ... 1 (the model returned).
      horizon: number of steps over which the learning rate of the images decays.
    """

    def start(observation: Observation) -> tuple[Array, Update]:
        control = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), observation.update)
        return jnp.asarray(start_position, jnp.float32), control

    def mean_square(control: Update) -> Array:
        return tree_squared_norm(control) / sum(leaf.size for leaf in jax.tree.leaves(control))

    curve = Surrogates(
        start=start,
        at=lambda observation, place: on_the_curve(observation, *place),
        penalty=lambda place: bend * mean_square(place[1]),
        project=lambda place: (jnp.clip(place[0], 0.0, 1.0), place[1]),
        rates=(position_rate, control_rate),
        report=lambda place: {"position": place[0], "bend": jnp.sqrt(mean_square(place[1]))},
    )
    return match_at_a_surrogate(
        problem, curve, tv=tv, learning_rate=learning_rate, horizon=horizon, name="surrogate_curve"
    )


def on_the_curve(observation: Observation, position: Array, control: Update) -> Params:
    """The point `w(t)`: with `c` as above, `w_0 - t dW + 2 t (1 - t) s u`."""

    def bent(leaf: Array, change: Array, offset: Array) -> Array:
        if not is_float(leaf):
            return leaf
        scale = jnp.sqrt(jnp.mean(jnp.square(change)))
        return (leaf + 2 * position * (1 - position) * scale * offset).astype(leaf.dtype)

    between = moved(observation.params, observation.update, position)
    return jax.tree.map(bent, between, observation.update, control)
