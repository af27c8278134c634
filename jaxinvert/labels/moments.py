r"""Counts by the moments of the last layer's gradient: zero-shot counts, corrected by what the kernel reveals.

The zero-shot estimate `y_0 = B p_hat - B db` misses the counts by `sum_i (p_i - p_hat)`, the luck of the private
batch. The kernel's gradient saw the same batch: along directions `u = E^T (W^T h - m)` of the features

    B E^T (W^T dW - m db^T) = sum_i u_i (p_i - e_{y_i})^T,

and what differs from the dummies' mean of it, `y_1`, has zero mean under the right counts and correlates with the
luck. All of it is a sum over examples, hence close to Gaussian with a covariance `Omega(n)` that the dummies supply:

    Omega(n) = B Cov(u p^T) - (cross terms) + sum_c n_c Cov(u) e_c e_c^T + Cov over families,

`u` here with a leading 1. Generalized least squares is then `n = y_0 - Omega_01 Omega_11^{-1} y_1`, repeated a few
times because `Omega` depends on the counts (label-aware), and rounded among the counts that the bias gradient's signs
and sizes do not exclude. Where the dummies' *style* is uncertain its share grows
as `B^2`: the covariance over families of dummies, a random effect. From no paper; the zero-shot rule it corrects is
that of Geng et al. (2021, arXiv:2110.09074).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from jaxinvert.labels.dummies import Dummies
from jaxinvert.labels.head import Response, biased_head, respond, step_scale
from jaxinvert.labels.rounding import project_counts, proven_counts, round_counts_above
from jaxinvert.observation.observe import require
from jaxinvert.types import ApplyFn, Array, Observation, RecoverLabels

_RIDGE = 1e-3
"""Added to the correlation matrix of the moments, whose rows sum to zero over the classes."""


def moments(
    apply: ApplyFn,
    *,
    dummies: Dummies,
    head: str = "params/head",
    max_moments: int = 256,
    num_sweeps: int = 3,
) -> RecoverLabels:
    """Zero-shot counts corrected by generalized least squares on the kernel's gradient; see the module.

    Reads `params`, `update`, `num_examples`, `local_training`, and `surrogate` if the dummies do. Exact for `B = 1`
    and where softmax outputs do not depend on the input; otherwise the better, the more the dummies are like
    the private inputs.

    Args:
      apply: the model, inputs in [0, 1] to logits.
      dummies: inputs like the client's, best at least `4 max_moments`; with fewer, fewer moments are used.
      head: path of the last dense layer.
      max_moments: static; about the largest number of second moments used, `K` for each direction of the features.
      num_sweeps: static; how often the covariance is made anew from the counts.

    Raises:
      ValueError: at trace time, if the layer, its bias or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="moments")
        sent = biased_head(require(observation, "params", attack="moments"), head, rule="moments")
        update = biased_head(observation.update, head, rule="moments")
        scale = step_scale(observation, rule="moments")
        num_classes = sent.bias.size
        inputs = dummies(observation)
        # A covariance wants several samples for each of its rows: few dummies, few moments.
        num_moments = min(max_moments, inputs.shape[0] * inputs.shape[1] // 4)
        num_directions = min(num_classes - 1, max(1, num_moments // num_classes))
        answers = respond(observation, inputs, apply=apply, head=head, probe=lambda kernel: kernel, rule="moments")

        center = jnp.mean(answers.projections, axis=(0, 1))
        directions = _whitening(answers.projections - center[None, None], num_directions)
        law = _law(answers, center, directions)
        # The same moments of the private batch, [1 + directions, K].
        logits = jnp.matmul(sent.kernel.T, update.kernel, precision="highest") - jnp.outer(center, update.bias)
        observed = jnp.concatenate([update.bias[None], directions.T @ logits]) * scale
        surprise = num_examples * (law.mean - observed)

        counts = surprise[0]
        for _ in range(num_sweeps):
            covariance = _covariance(law, project_counts(counts, num_examples), num_examples)
            counts = surprise[0] - _predicted(covariance, surprise)
        return round_counts_above(counts, proven_counts(update.bias * scale, num_examples), num_examples)

    return recover


class _Law(NamedTuple):
    """The moments of a batch as the dummies have them; axes a (1, directions), c (classes), f (families).

    Attributes:
      mean: `[a, c]` mean of the products `u_a p_c`.
      product_products: `[a, c, b, d]` covariance of the products within families.
      product_features: `[a, c, b]` their covariance with the features `u_b`.
      feature_features: `[a, b]` covariance of the features.
      family_products: `[f, a, c]` deviations of the families' means from the mean of the products.
      family_features: `[f, a]` the same of the features.
    """

    mean: Array
    product_products: Array
    product_features: Array
    feature_features: Array
    family_products: Array
    family_features: Array


def _covariance(law: _Law, counts: Array, num_examples: int | Array) -> Array:
    """`Omega(n)`, `[1 + directions, K, 1 + directions, K]`."""
    cross = jnp.einsum("acb,d->acbd", law.product_features, counts)
    same_class = jnp.einsum("ab,cd->acbd", law.feature_features, jnp.diag(counts))
    within = num_examples * law.product_products - cross - cross.transpose(2, 3, 0, 1) + same_class
    deviations = num_examples * law.family_products - jnp.einsum("fa,c->fac", law.family_features, counts)
    return within + jnp.einsum("fac,fbd->acbd", deviations, deviations) / deviations.shape[0]


def _law(answers: Response, center: Array, directions: Array) -> _Law:
    """The dummies' moments as means, and deviations within and between families."""
    probabilities = answers.probabilities
    features = (answers.projections - center[None, None]) @ directions
    centered = answers.products - jnp.einsum("k,fnc->fnkc", center, probabilities)
    products = jnp.concatenate(
        [probabilities[..., None, :], jnp.einsum("fnkc,kr->fnrc", centered, directions)], axis=2
    )
    features = jnp.concatenate([jnp.ones_like(features[..., :1]), features], axis=2)
    family_products, family_features = jnp.mean(products, axis=1), jnp.mean(features, axis=1)
    mean = jnp.mean(family_products, axis=0)
    within_products = (products - family_products[:, None]).reshape(-1, *mean.shape)
    within_features = (features - family_features[:, None]).reshape(-1, mean.shape[0])
    num_dummies = within_features.shape[0]
    return _Law(
        mean,
        jnp.einsum("iac,ibd->acbd", within_products, within_products) / num_dummies,
        jnp.einsum("iac,ib->acb", within_products, within_features) / num_dummies,
        within_features.T @ within_features / num_dummies,
        family_products - mean[None],
        family_features - jnp.mean(family_features, axis=0, keepdims=True),
    )


def _whitening(projections: Array, num_directions: int) -> Array:
    """`[K, num_directions]` leading principal directions, scaled to unit variance over the dummies."""
    flat = projections.reshape(-1, projections.shape[-1])
    values, vectors = jnp.linalg.eigh(flat.T @ flat / flat.shape[0])
    values, vectors = values[::-1][:num_directions], vectors[:, ::-1][:, :num_directions]
    usable = values > 1e-6 * values[0]
    return vectors * jnp.where(usable, 1 / jnp.sqrt(jnp.where(usable, values, 1.0)), 0.0)[None]


def _predicted(covariance: Array, surprise: Array) -> Array:
    """`Omega_01 Omega_11^{-1} y_1`: the luck of the batch, as far as the kernel's moments tell."""
    num_classes = surprise.shape[1]
    flat = covariance.reshape(surprise.size, surprise.size)
    inner, across = flat[num_classes:, num_classes:], flat[:num_classes, num_classes:]
    scale = jnp.sqrt(jnp.maximum(jnp.diag(inner), 1e-30))
    correlation = inner / jnp.outer(scale, scale) + _RIDGE * jnp.eye(scale.size)
    # Conjugate gradients rather than a factorization: the ridge bounds the condition number, and lanes of a vmap
    # become one matrix product.
    solved, _ = cg(correlation, surprise[1:].reshape(-1) / scale, tol=1e-4, maxiter=200)
    return (across / scale[None]) @ solved
