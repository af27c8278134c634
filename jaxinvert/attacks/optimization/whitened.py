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
_LARGEST = 1024
"""Shorter side of the largest kernel that is whitened; singular bases of a larger one take longer than the search."""
_SPANNED = 0.003
"""Singular values over the largest below which directions count as not spanned: below, float32 does not tell them."""


class Bases(NamedTuple):
    """Singular bases of one kernel's gradient `[m, n]`, of rank at most `k = min(m, n)`.

    Attributes:
      left: `[m, k]`, with zeros for directions that are hardly spanned.
      right: `[n, k]`, likewise.
      sizes: `[k]`, singular values over the largest, zero for the same directions.
      scale: `[]`, one over the largest singular value.
    """

    left: Array
    right: Array
    sizes: Array
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
    """For every tensor of an update the `Bases` of a kernel, or the factor `[]` of a bias or a very large kernel."""
    whole = tree_norm(update)

    def of_kernel(leaf: Array) -> Bases | Array:
        matrix = leaf.reshape(-1, leaf.shape[-1])
        if min(matrix.shape) > _LARGEST:
            return of_bias(leaf)
        return _bases(matrix) if len(matrix) >= matrix.shape[1] else _transposed(_bases(matrix.T))

    def of_bias(leaf: Array) -> Array:
        norm, most = tree_norm(leaf), _LARGEST_FACTOR / jnp.where(whole > 0, whole, 1.0)
        return jnp.minimum(1 / jnp.where(norm > 0, norm, 1.0), most)

    return [of_kernel(leaf) if leaf.ndim > 1 else of_bias(leaf) for leaf in jax.tree.leaves(update)]


def _bases(matrix: Array) -> Bases:
    """Of a matrix that is not wider than high."""
    squares, right = jnp.linalg.eigh(matrix.T @ matrix)
    values = jnp.sqrt(jnp.maximum(squares, 0.0))
    largest = jnp.max(values)
    scale = jnp.where(largest > 0, 1 / jnp.where(largest > 0, largest, 1.0), 0.0)
    spanned = values * scale > _SPANNED
    left = matrix @ right * jnp.where(spanned, 1 / jnp.where(spanned, values, 1.0), 0.0)[None]
    return Bases(left, right * spanned[None], jnp.where(spanned, values * scale, 0.0), scale)


def _transposed(bases: Bases) -> Bases:
    return bases._replace(left=bases.right, right=bases.left)


def whiten(update: Update, bases: list[Bases | Array], epsilon: Scalar) -> list[Array]:
    """`W g` for every tensor of an update, back in the axes of its kernel: a distance is the same there."""

    def weighed(basis: Array, sizes: Array, matrix: Array) -> Array:
        """The rows of a matrix weighed by the singular values of their directions, which rows outside lack."""
        unspanned = jnp.asarray(epsilon) ** -0.5
        inside = (jnp.square(sizes) + jnp.square(epsilon)) ** -0.25 - unspanned
        return unspanned * matrix + basis @ (inside[:, None] * (basis.T @ matrix))

    def one(leaf: Array, basis: Bases | Array) -> Array:
        if not isinstance(basis, Bases):
            return leaf * basis
        matrix = leaf.reshape(-1, leaf.shape[-1]) * basis.scale
        return weighed(basis.right, basis.sizes, weighed(basis.left, basis.sizes, matrix).T).T

    return [one(leaf, basis) for leaf, basis in zip(jax.tree.leaves(update), bases, strict=True)]
