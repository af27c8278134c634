r"""Whitened matching, this library's own attack: compares gradients in the singular bases of the observed one.

    minimize over v:   D(v) exp(tv TV(x)),   D = 1 - cos(W g(x), W g*)

Let `g*_l = U S V^T` be the observed gradient of a layer's kernel, and `s` its singular values over the largest, with
zeros for the directions that it does not span. `W` compares layer by layer in these bases,

    (W g)_l,ij = (U^T g_l V)_ij / ((s_i^2 + epsilon^2) (s_j^2 + epsilon^2))^(1/4),

so that `W g*` has singular values near 1, and what a simulated gradient has outside of the observed span counts most.
The closed form `patch_embedding` does the same for one image: it divides by the singular values of the position
embeddings' gradient. For more images there is no closed form, but the same weights tell them apart: behind a Vision
Transformer, a few directions hold most of an update's norm, those in which all tokens of an image agree. What a
patch shows, and where it is, is in the small ones. `epsilon` limits that: with a very small one everything is wrong
at the beginning, and there is no way down.

What the update of a Vision Transformer determines, for `B` images of `T` patches with `p` values:

| gradient of          | equation                         | one image        | more                            |
|----------------------|----------------------------------|------------------|---------------------------------|
| patch embedding      | `sum_bt x_bt delta_bt^T`         | `x` from `delta` | a sum of unknown products       |
| learnable positions  | `sum_b delta_bt` for every `t`   | `delta`          | sums over the images            |
| query, key and value | `B T` tokens in `p + T` vectors  | a part of these  | all of these, for any images    |

For the last line: every token is `x W + b + e_t`, up to a norm, so those of all images lie in the span of `p + T`
vectors, and as soon as `T (B - 1) >= p` the client's own span all of it (`experiments/vit_spans.py`).

Biases and parameters of norms are compared at unit norm. Parametrization, optimizer, prior and first guess are those
of `spectral`.

References:
  Gupta, Koren, Singer: Shampoo: Preconditioned Stochastic Tensor Optimization. ICML 2018, arXiv:1802.09568: the same
  powers, for training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.closed_form.april import where_exact
from jaxinvert.attacks.initial_guess import where_readable
from jaxinvert.attacks.matching import observation_distance, search_inputs
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.trees import tree_norm
from jaxinvert.types import (
    Array,
    Attack,
    AttackInfo,
    AttackState,
    Key,
    Observation,
    Reconstruction,
    Scalar,
    Update,
)

_LARGEST_FACTOR = 100.0
"""Of biases and norms, relative to the whole update: some are rounding errors only, like that of a key's bias."""
_LONGEST = 1024
"""Longest axis of a kernel that is whitened; a singular basis of a longer one takes longer than the search."""


class Bases(NamedTuple):
    """Singular bases of one kernel's gradient `[m, n]`, and its singular values over the largest.

    Attributes:
      left: `[m, m]`; `None` for an axis that is not whitened.
      right: `[n, n]`, likewise.
      sizes: two arrays `[m]` and `[n]`, padded with zeros.
      scale: `[]`, one over the largest singular value.
    """

    left: Array | None
    right: Array | None
    sizes: tuple[Array, Array]
    scale: Array


class _Carried(NamedTuple):
    """The bases of every tensor, and what the closed form found, where there is one."""

    bases: list[Bases | Array]
    exact: Reconstruction | None


@declare("labels")
def whitened(
    problem: Problem,
    *,
    epsilon: Scalar = 0.1,
    tv: Scalar = 1.0,
    learning_rate: Scalar = 0.2,
    horizon: Scalar = 1000,
) -> Attack:
    """Whitened matching: spectral matching with gradients compared in their singular bases; this library's own.

    Works: on small Vision Transformers, for two images; exact where `patch-embedding` is certified.

    Fails: without labels, and after few steps. Its weights amplify noise; defended clients were not measured.

    Args:
      problem: labels are known; any batch size, FedSGD or FedAvg clients.
      epsilon: size below which singular values count alike, relative to the largest.
      tv: weight of the total variation, of pixels in [0, 1], in the exponent.
      learning_rate: of Adam, in units of the spectrum of photographs.
      horizon: number of steps over which the learning rate decays.
    """
    images = parametrizations.spectrum(problem.batch_shape)
    first_images, closed_form = where_readable(problem), where_exact(problem)

    def start(key: Key, observation: Observation) -> Array:
        assert first_images is not None
        return parametrizations.near(key, first_images(observation))

    def built(bases: list[Bases | Array]) -> Attack:
        def unexplained(simulated: Update, observed: Update) -> Array:
            return objectives.cosine(*(whiten(update, bases, epsilon) for update in (simulated, observed)))

        distance = observation_distance(problem, unexplained, name="whitened")
        return search_inputs(
            lambda observation, batch: (
                distance(observation, batch) * jnp.exp(tv * regularizers.total_variation(batch.inputs))
            ),
            optimizer=optax.chain(
                optax.scale_by_adam(b2=0.95, eps=1e-12),
                optax.scale_by_learning_rate(cosine_decay(learning_rate, horizon)),
            ),
            parametrization=images,
            start=start if first_images else None,
            name="whitened",
        )

    def init(key: Key, observation: Observation) -> AttackState:
        bases = bases_of(observation.update)
        exact = None if closed_form is None else closed_form(key, observation)
        return built(bases).init(key, observation)._replace(carried=_Carried(bases, exact))

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        return built(state.carried.bases).step(key, state, observation)

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found, exact = built(state.carried.bases).decode(state, observation), state.carried.exact
        if exact is None:
            return found
        certified = exact.info["certified"]
        return found._replace(
            inputs=jnp.where(certified, exact.inputs, found.inputs),
            attack_loss=jnp.where(certified, exact.attack_loss, found.attack_loss),
        )

    return Attack(init, step, decode)


def bases_of(update: Update) -> list[Bases | Array]:
    """For every tensor of an update the `Bases` of a kernel, or the factor `[]` of a bias."""
    whole = tree_norm(update)

    def of_kernel(leaf: Array) -> Bases:
        matrix = leaf.reshape(-1, leaf.shape[-1])
        (left, of_rows), (right, of_columns) = _basis(matrix), _basis(matrix.T)
        largest = jnp.maximum(jnp.max(of_rows), jnp.max(of_columns))
        scale = jnp.where(largest > 0, 1 / jnp.where(largest > 0, largest, 1.0), 0.0)
        return Bases(left, right, (of_rows * scale, of_columns * scale), scale)

    def of_bias(leaf: Array) -> Array:
        norm, most = tree_norm(leaf), _LARGEST_FACTOR / jnp.where(whole > 0, whole, 1.0)
        return jnp.minimum(1 / jnp.where(norm > 0, norm, 1.0), most)

    return [of_kernel(leaf) if leaf.ndim > 1 else of_bias(leaf) for leaf in jax.tree.leaves(update)]


def _basis(matrix: Array) -> tuple[Array | None, Array]:
    """Left singular vectors `[m, m]` of a matrix `[m, n]` and the singular values `[m]`; none of a long axis."""
    if len(matrix) > _LONGEST:
        return None, jnp.zeros(len(matrix), matrix.dtype)
    squares, vectors = jnp.linalg.eigh(matrix @ matrix.T)
    return vectors, jnp.sqrt(jnp.maximum(squares, 0.0))


def whiten(update: Update, bases: list[Bases | Array], epsilon: Scalar) -> list[Array]:
    """`W g` for every tensor of an update."""

    def power(sizes: Array) -> Array:
        return (jnp.square(sizes) + jnp.square(epsilon)) ** -0.25

    def one(leaf: Array, basis: Bases | Array) -> Array:
        if not isinstance(basis, Bases):
            return leaf * basis
        matrix = leaf.reshape(-1, leaf.shape[-1]) * basis.scale
        rows, columns = basis.sizes
        matrix = matrix if basis.left is None else power(rows)[:, None] * (basis.left.T @ matrix)
        return matrix if basis.right is None else (matrix @ basis.right) * power(columns)[None]

    return [one(leaf, basis) for leaf, basis in zip(jax.tree.leaves(update), bases, strict=True)]
