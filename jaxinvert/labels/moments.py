r"""Label rule `moments`: zero-shot counts, corrected by second moments of the last layer's kernel gradient.

The error of the zero-shot estimate `y_0 = B p_hat - B db` is `sum_i (p_i - p_hat)`, the sampling error of the private
batch. The kernel's gradient depends on the same batch: along directions `u = E^T (W^T h - m)` of the features

    B E^T (W^T dW - m db^T) = sum_i u_i (p_i - e_{y_i})^T.

Its deviation `y_1` from the dummies' mean has zero mean under the true counts and is correlated with the sampling
error. Both are sums over examples, hence nearly Gaussian, with a covariance `Omega(n)` estimated from the dummies:

    Omega(n) = B Cov(u p^T) - (cross terms) + sum_c n_c Cov(u) e_c e_c^T + Cov over families,

where `u` has a leading 1. Generalized least squares gives `n = y_0 - Omega_01 Omega_11^{-1} y_1`, iterated a few
times because `Omega` depends on the counts, and rounded subject to the lower bounds that the bias gradient proves.
The covariance over families of dummies is a random effect for the unknown *style* of the images; it grows as `B^2`.
The method is unpublished; the zero-shot rule it corrects is that of Geng et al. (2021, arXiv:2110.09074).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from jaxinvert.labels.dummies import Dummies
from jaxinvert.labels.head import Response, biased_head, respond, step_scale
from jaxinvert.labels.rounding import hard_counts, project_counts, proven_counts, round_counts_above
from jaxinvert.observation.observe import require
from jaxinvert.types import ApplyFn, Array, Observation, RecoverLabels

_RIDGE = 1e-3
"""Added to the diagonal of the moments' correlation matrix, which is singular: moments sum to zero over classes."""


def moments(
    apply: ApplyFn,
    *,
    dummies: Dummies,
    head: str = "params/head",
    max_moments: int = 256,
    num_sweeps: int = 3,
    smoothing: float = 0.0,
) -> RecoverLabels:
    """Zero-shot counts corrected by generalized least squares on the kernel's gradient; see the module docstring.

    Reads `params`, `update`, `num_examples`, `local_training`, and `surrogate` if the dummies do. Exact for `B = 1`
    and if softmax outputs do not depend on the input; otherwise more accurate the more the dummies resemble the
    private inputs.

    Args:
      apply: the model, inputs in [0, 1] to logits.
      dummies: inputs like the client's, preferably at least `4 max_moments`; with fewer, fewer moments are used.
      head: path of the last dense layer.
      max_moments: static; approximate limit on the number of second moments, `K` for each direction of the features.
      num_sweeps: static; how often the covariance is recomputed from the counts.
      smoothing: label smoothing `a` of the clients' loss.

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
        # A covariance estimate needs several samples per row: few dummies, few moments.
        num_moments = min(max_moments, inputs.shape[0] * inputs.shape[1] // 4)
        num_directions = min(num_classes - 1, max(1, num_moments // num_classes))
        answers = respond(observation, inputs, apply=apply, head=head, probe=lambda kernel: kernel, rule="moments")

        center = jnp.mean(answers.projections, axis=(0, 1))
        directions = _whitening(answers.projections - center[None, None], num_directions)
        dummy = _dummy_moments(answers, center, directions)
        # The same moments of the private batch, [1 + directions, K].
        logits = jnp.matmul(sent.kernel.T, update.kernel, precision="highest") - jnp.outer(center, update.bias)
        observed = jnp.concatenate([update.bias[None], directions.T @ logits]) * scale
        surprise = num_examples * (dummy.mean - observed)

        counts = surprise[0]
        for _ in range(num_sweeps):
            covariance = _covariance(dummy, project_counts(counts, num_examples), num_examples)
            counts = surprise[0] - _predicted(covariance, surprise)
        proven = proven_counts(update.bias * scale, num_examples, smoothing)
        return round_counts_above(hard_counts(counts, num_examples, smoothing), proven, num_examples)

    return recover


class _DummyMoments(NamedTuple):
    """Moments of one example, estimated from the dummies; axes a (1, directions), c (classes), f (families).

    Attributes:
      mean: `[a, c]` mean of the products `u_a p_c`.
      product_products: `[a, c, b, d]` covariance of the products within families.
      product_features: `[a, c, b]` covariance of the products with the features `u_b` within families.
      feature_features: `[a, b]` covariance of the features within families.
      family_products: `[f, a, c]` deviations of the families' mean products from the overall mean.
      family_features: `[f, a]` deviations of the families' mean features from the overall mean.
    """

    mean: Array
    product_products: Array
    product_features: Array
    feature_features: Array
    family_products: Array
    family_features: Array


def _covariance(dummy: _DummyMoments, counts: Array, num_examples: int | Array) -> Array:
    """`Omega(n)`, `[1 + directions, K, 1 + directions, K]`."""
    cross = jnp.einsum("acb,d->acbd", dummy.product_features, counts)
    same_class = jnp.einsum("ab,cd->acbd", dummy.feature_features, jnp.diag(counts))
    within = num_examples * dummy.product_products - cross - cross.transpose(2, 3, 0, 1) + same_class
    deviations = num_examples * dummy.family_products - jnp.einsum("fa,c->fac", dummy.family_features, counts)
    return within + jnp.einsum("fac,fbd->acbd", deviations, deviations) / deviations.shape[0]


def _dummy_moments(answers: Response, center: Array, directions: Array) -> _DummyMoments:
    """Estimates the mean and the deviations within and between families from the dummies."""
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
    return _DummyMoments(
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
    """`Omega_01 Omega_11^{-1} y_1`: the sampling error of the batch, predicted from the kernel's moments."""
    num_classes = surprise.shape[1]
    flat = covariance.reshape(surprise.size, surprise.size)
    inner, across = flat[num_classes:, num_classes:], flat[:num_classes, num_classes:]
    scale = jnp.sqrt(jnp.maximum(jnp.diag(inner), 1e-30))
    correlation = inner / jnp.outer(scale, scale) + _RIDGE * jnp.eye(scale.size)
    # Conjugate gradients instead of a factorization: the ridge bounds the condition number, and vmapped lanes
    # become one matrix product.
    solved, _ = cg(correlation, surprise[1:].reshape(-1) / scale, tol=1e-4, maxiter=200)
    return (across / scale[None]) @ solved
