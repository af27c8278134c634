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

Behind convolutions each kernel keeps the norm of its gradient, `W g*_l` being multiplied by one number: which layers
tell most is in these norms. Behind attention they are those of the few common directions, and every kernel counts by
its rank. Whether there is attention is read off the network (`nn.dependence`). Biases and parameters of norms count
as in `spectral`, behind attention always. Parametrization, optimizer, prior, first guess and contrast are those of
`spectral`.

References:
  Gupta, Koren, Singer: Shampoo: Preconditioned Stochastic Tensor Optimization. ICML 2018, arXiv:1802.09568: the same
  powers, for training.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert.attacks import objectives
from jaxinvert.attacks.closed_form.april import where_exact
from jaxinvert.attacks.initial_guess import Guess, gray_noise, where_readable
from jaxinvert.attacks.optimization.spectral import Comparison, matching_of_frequencies
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.nn.dependence import multiplies_activations
from jaxinvert.trees import tree_norm
from jaxinvert.types import (
    Array,
    Attack,
    AttackInfo,
    AttackState,
    Key,
    Objective,
    Observation,
    Reconstruction,
    Scalar,
    SolveFn,
    Update,
)

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
      scale: `[]`, one over the largest singular value, or what gives `W g*` the norm of `g*`.
    """

    left: Array
    right: Array
    sizes: Array
    scale: Array


class Weights(NamedTuple):
    """How the tensors of an update count.

    Attributes:
      times_epsilon: factor of the size below which singular values count alike.
      norms_stay: whether each kernel keeps the norm that its gradient has. Else each one has that of its rank.
      biases: norm of all biases and norms together, relative to that of the kernels, at least.
    """

    times_epsilon: float
    norms_stay: bool
    biases: float


WITHOUT_ATTENTION, WITH_ATTENTION = Weights(1.0, True, 0.0), Weights(10.0, False, 0.6)


class _Compared(NamedTuple):
    """The bases of every tensor, and the observed update as it is compared, before biases are weighed."""

    bases: list[Bases | None]
    observed: list[Array]


@declare("labels", joint_labels=True, adapts=True)
def whitened(
    problem: Problem,
    *,
    epsilon: Scalar = 0.01,
    batch_norm: Scalar = 1.0,
    tv: Scalar = 1.0,
    learning_rate: Scalar = 0.2,
    horizon: Scalar = 1000,
    guess: Callable[[Problem], Guess | None] | None = None,
) -> Attack:
    """Whitened matching: spectral matching with gradients compared in their singular bases; this library's own.

    Works: for photographs behind convolutional networks, deep ones included, and for a few images behind a small
    Vision Transformer; exact where `patch-embedding` is certified.

    Fails: under noise, which its weights amplify, and for large batches with repeated labels.

    Args:
      problem: labels are known or optimized; any batch size, FedSGD or FedAvg clients.
      epsilon: size below which singular values count alike, relative to the largest; ten times that behind attention.
      batch_norm: weight of the running statistics, if the attacker sees them.
      tv: weight of the total variation, of pixels in [0, 1], in the exponent.
      learning_rate: of Adam, in units of the spectrum of photographs.
      horizon: number of steps over which the learning rate decays.
      guess: returns the initial images, as for `spectral`; by default gray noise if labels are optimized, too.
    """
    weights = weights_for(problem)
    search = matching_of_frequencies(
        problem,
        in_singular_bases(weights, weights.times_epsilon * epsilon),
        batch_norm=batch_norm,
        tv=tv,
        learning_rate=learning_rate,
        horizon=horizon,
        guess=guess or (gray_noise if problem.joint_labels else where_readable),
        name="whitened",
    )
    closed_form = where_exact(problem)
    return search if closed_form is None or problem.objective else _exact_where_certified(search, closed_form)


def weights_for(problem: Problem) -> Weights:
    """How gradients of the problem's network are weighed; reads the network alone."""
    params = jax.eval_shape(problem.model.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct(problem.batch_shape, jnp.float32)
    attention = multiplies_activations(problem.model.apply, params, inputs)
    return WITH_ATTENTION if attention else WITHOUT_ATTENTION


def in_singular_bases(weights: Weights, epsilon: Scalar) -> Comparison:
    """Updates compared by the cosine of `W g` and `W g*`."""

    def init(observation: Observation) -> _Compared:
        update, bases = observation.update, bases_of(observation.update)
        if weights.norms_stay:
            white = whiten(update, bases, epsilon)
            bases = [
                basis and basis._replace(scale=basis.scale * tree_norm(leaf) * _inverse(tree_norm(there)))
                for leaf, there, basis in zip(jax.tree.leaves(update), white, bases, strict=True)
            ]
        return _Compared(bases, whiten(update, bases, epsilon))

    def objective(compared: _Compared, share: Scalar) -> Objective:
        def unexplained(simulated: Update, _: Update) -> Array:
            white = whiten(simulated, compared.bases, epsilon)
            return objectives.balanced_cosine(white, compared.observed, share=jnp.maximum(share, weights.biases))

        return unexplained

    return Comparison(init, objective)


class _WithExact(NamedTuple):
    """What the search carries, and what the closed form found."""

    searched: Any
    exact: Reconstruction


def _exact_where_certified(search: Attack, closed_form: SolveFn) -> Attack:
    """The closed form's image where it is certified, else that of the search."""

    def init(key: Key, observation: Observation) -> AttackState:
        state = search.init(key, observation)
        return state._replace(carried=_WithExact(state.carried, closed_form(key, observation)))

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        moved, info = search.step(key, state._replace(carried=state.carried.searched), observation)
        return moved._replace(carried=state.carried._replace(searched=moved.carried)), info

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = search.decode(state._replace(carried=state.carried.searched), observation)
        exact, certified = state.carried.exact, state.carried.exact.info["certified"]
        return found._replace(
            inputs=jnp.where(certified, exact.inputs, found.inputs),
            attack_loss=jnp.where(certified, exact.attack_loss, found.attack_loss),
        )

    return Attack(init, step, decode)


def bases_of(update: Update) -> list[Bases | None]:
    """For every tensor of an update the `Bases` of a kernel, without any direction if it is very large, or `None`."""

    def of_kernel(leaf: Array, done: Array) -> Bases:
        matrix = _as_matrix(leaf)
        if min(matrix.shape) > _LARGEST:
            return _without_directions(matrix)
        matrix += 0.0 * done
        return _bases(matrix) if len(matrix) >= matrix.shape[1] else _transposed(_bases(matrix.T))

    found: list[Bases | None] = []
    done = jnp.zeros(())
    for leaf in jax.tree.leaves(update):
        found.append(of_kernel(leaf, done) if leaf.ndim > 1 else None)
        # One decomposition waits for the other: several at once may wait for each other's threads on CPUs for good.
        done = done if found[-1] is None else jnp.sum(found[-1].sizes)
    return found


def _without_directions(matrix: Array) -> Bases:
    """All directions of a matrix count alike, and its norm is one over `epsilon`."""
    empty = matrix[:, :0]
    return Bases(empty, matrix.T[:, :0], empty[0], _inverse(tree_norm(matrix)))


def _as_matrix(leaf: Array) -> Array:
    """A kernel as `[m, n]`, at least in float32: outputs are the longer one of its first and last axis."""
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    first, last = leaf.shape[0], leaf.shape[-1]
    return wide.reshape(first, -1) if first > last else wide.reshape(-1, last)


def _bases(matrix: Array) -> Bases:
    """Of a matrix that is not wider than high."""
    per_entry = _inverse(jnp.max(jnp.abs(matrix)))  # squares of a very small gradient would vanish
    unit = matrix * per_entry
    squares, right = jnp.linalg.eigh(unit.T @ unit)
    values = jnp.sqrt(jnp.maximum(squares, 0.0))
    per_largest = _inverse(jnp.max(values))
    spanned = values * per_largest > _SPANNED
    left = unit @ right * jnp.where(spanned, 1 / jnp.where(spanned, values, 1.0), 0.0)[None]
    sizes = jnp.where(spanned, values * per_largest, 0.0)
    return Bases(left, right * spanned[None], sizes, per_largest * per_entry)


def _inverse(number: Array) -> Array:
    """One over it; 0 for 0."""
    return jnp.where(number == 0, 0.0, 1 / jnp.where(number == 0, 1.0, number))


def _transposed(bases: Bases) -> Bases:
    return bases._replace(left=bases.right, right=bases.left)


def whiten(update: Update, bases: list[Bases | None], epsilon: Scalar) -> list[Array]:
    """`W g` for every tensor of an update, back in the axes of its kernel: distances are the same there.

    Biases stay as they are.
    """

    def weighed(basis: Array, sizes: Array, matrix: Array) -> Array:
        """The rows of a matrix weighed by the singular values of their directions, which rows outside lack."""
        unspanned = jnp.asarray(epsilon) ** -0.5
        inside = (jnp.square(sizes) + jnp.square(epsilon)) ** -0.25 - unspanned
        return unspanned * matrix + basis @ (inside[:, None] * (basis.T @ matrix))

    def one(leaf: Array, basis: Bases | None) -> Array:
        if basis is None:
            return leaf
        matrix = _as_matrix(leaf) * basis.scale
        return weighed(basis.right, basis.sizes, weighed(basis.left, basis.sizes, matrix).T).T

    return [one(leaf, basis) for leaf, basis in zip(jax.tree.leaves(update), bases, strict=True)]
