r"""Label rules that solve for the labels: linear separability (RLG) and least squares over class embeddings (iLRG).

References:
  Dang et al.: Revealing and Protecting Labels in Distributed Training. NeurIPS 2021, arXiv:2111.00556.
  Ma et al.: Instance-wise Batch Label Restoration via Gradients in Federated Learning. ICLR 2023.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.labels.head import biased_head, find_head, step_scale
from jaxinvert.labels.rounding import project_counts, repeated_argmin, round_counts
from jaxinvert.observation.observe import require
from jaxinvert.types import Array, Observation, RecoverLabels


def rlg(*, head: str = "params/head", tolerance: float | None = None, num_steps: int = 400) -> RecoverLabels:
    r"""RLG (Dang et al. 2021): class n is present if its right-singular vector is separable from all others.

    `dW = H^T D / B` with rows `D_i = p_i - y_i` that are negative at `y_i` only. With `dW = U S V^T` of rank r, the
    rows of D lie in the span of the r rows of `V^T`, so for every label n some direction q has
    `<q, v_n> < 0 < <q, v_j>` for all other classes j, where `v_j [r]` are the columns of `V^T`. By Gordan's theorem
    no such q exists if and only if 0 is a convex combination of `-v_n` and the `v_j`. The test computes the distance
    of 0 from that convex hull by accelerated projected gradient on the simplex, for all classes at once.

    The paper only finds the set of present classes. Here LLG's repeated argmin among them assigns the remaining
    labels; if more than `B` classes pass the test, the `B` most separable are taken. Reads `update`, `num_examples`.
    The set is complete if `rank dW = B` (which needs `B < K` and independent features). For `B >= K - 1` the columns
    span the whole space, every class is separable, and the rule is uninformative. No bias needed. A float64 update is
    solved in float64.

    Args:
      head: path of the last dense layer.
      tolerance: singular values below `tolerance` times the largest count as zero; by default a hundred times
        the dtype's resolution.
      num_steps: gradient steps of the separability test.

    Raises:
      ValueError: at trace time, if the layer or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="rlg")
        gradient = find_head(observation.update, head).kernel
        relative = 100 * float(jnp.finfo(gradient.dtype).eps) if tolerance is None else tolerance
        _, sizes, directions = jnp.linalg.svd(gradient, full_matrices=False)
        kept = (sizes > relative * sizes[0]) & (jnp.arange(sizes.size) < num_examples)
        columns = jnp.where(kept[:, None], directions, 0.0).T
        lengths = jnp.linalg.norm(columns, axis=1, keepdims=True)
        columns = columns / jnp.where(lengths > 0, lengths, 1.0)
        margins = jax.vmap(lambda n: _separation(columns, n, num_steps))(jnp.arange(columns.shape[0]))
        present = margins > _MARGIN
        signal = jnp.sum(gradient, axis=0)
        first = jnp.where(present, -margins, 1.0)  # the most separable first, the others last
        once = jnp.where(present, 1, 0) * (jnp.argsort(jnp.argsort(first)) < num_examples)
        candidates = jnp.where(jnp.any(present), present, True)
        impact = jnp.sum(jnp.minimum(signal, 0.0)) / num_examples * (1 + 1 / signal.size)
        left = jnp.where(candidates, signal - once * impact, jnp.inf)
        return repeated_argmin(left, impact, once.astype(jnp.int32), num_examples)

    return recover


_MARGIN = 1e-3
"""Unit vectors count as separable if the distance of 0 from their convex hull exceeds this."""


def _separation(columns: Array, n: Array, num_steps: int) -> Array:
    """Distance of 0 from the convex hull of `-v_n` and the other `v_j`; `columns [K, r]` have unit length."""
    points = jnp.where(jnp.arange(columns.shape[0])[:, None] == n, -columns, columns)
    gram = jnp.matmul(points, points.T, precision="highest")
    step = 1 / jnp.linalg.norm(gram)

    def descend(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, ahead, momentum = state
        new = project_counts(ahead - step * jnp.matmul(gram, ahead, precision="highest"), 1)
        next_momentum = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return new, new + (momentum - 1) / next_momentum * (new - weights), next_momentum

    start = jnp.full(columns.shape[0], 1 / columns.shape[0], columns.dtype)
    weights, _, _ = lax.fori_loop(0, num_steps, descend, (start, start, jnp.ones((), columns.dtype)))
    return jnp.sqrt(jnp.maximum(weights @ gram @ weights, 0.0))


def ilrg(*, head: str = "params/head") -> RecoverLabels:
    r"""Least squares over class embeddings, iLRG (Ma et al. 2023): `e_c = dW_c / db_c`, `p^(c) = softmax(e_c W + b)`.

    Assumes that examples of one class share their softmax output and have the features `e_c`, a mean of all features
    in which class c has the largest weight. The counts n solve `sum_j n_j = B` and, for every class i,
    `sum_j n_j (p^(j)_i - [i = j]) = B db_i` in the least-squares sense. The quotient `e_c` is invariant to the
    update's scale; `db_i` is not. For local training, W and b are interpolated between the server's and the client's
    model (at `(T - 1) / (2 T)` of the way).

    Reads `params`, `update`, `num_examples`, `local_training`. Exact for `B = 1`, if all features are equal, and if
    softmax outputs are confident. If `db_c` is close to zero (a class has as many examples as the model expects,
    likely in large batches), `e_c` is a quotient of nearly cancelling sums and the rule becomes inaccurate; below the
    dtype's resolution the embedding of the class with the largest `|db|` replaces it.

    Args:
      head: path of the last dense layer.

    Raises:
      ValueError: at trace time, if the layer, its bias or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="ilrg")
        sent = biased_head(require(observation, "params", attack="ilrg"), head, rule="ilrg")
        update = biased_head(observation.update, head, rule="ilrg")
        scale = step_scale(observation, rule="ilrg")
        num_steps = require(observation, "local_training", attack="ilrg").num_steps
        way = (num_steps - 1) / (2 * jnp.asarray(num_steps, jnp.float32))
        kernel, bias = sent.kernel - way * update.kernel, sent.bias - way * update.bias
        num_classes = bias.size

        size = jnp.abs(update.bias)
        usable = size > 1e-5 * jnp.max(size)
        embeddings = update.kernel.T / jnp.where(usable, update.bias, 1.0)[:, None]
        embeddings = jnp.where(usable[:, None], embeddings, embeddings[jnp.argmax(size)][None])
        logits = jnp.matmul(embeddings, kernel, precision="highest") + bias[None]
        # An extreme embedding may overflow; its row is uninformative in any case.
        confidences = jax.nn.softmax(jnp.nan_to_num(logits))
        coefficients = jnp.concatenate([confidences.T - jnp.eye(num_classes), jnp.ones((1, num_classes))])
        values = num_examples * jnp.append(update.bias * scale, 1.0)
        return round_counts(jnp.linalg.lstsq(coefficients, values)[0], num_examples)

    return recover
