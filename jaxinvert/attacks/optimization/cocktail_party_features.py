"""Cocktail party on features: unmixes the features in a wide dense layer's gradient, then searches for their images.

If the layer reads features `f(x)` of convolutions instead of images, its gradient is a mixture of those. Unmixing
recovers them up to rounding and its own error. Each image is then searched for separately, without its label:

    minimize over x:   (1 - cos(f(x), f_b)) exp(tv TV(x))      for every recovered feature vector f_b.

No client is simulated: a step is one forward and one backward pass. Unmixing uses the differences between neighboring
positions of the feature map, with all channels scaled to equal variance. Two deviations: the paper adds the prior and
unmixes by gradient descent; as a factor, the prior is weighted by the uncertainty of the features (see `spectral`,
also for the search's variables and schedule).

Sanjay Kariyappa, Chuan Guo, Kiwan Maeng, Wenjie Xiong, G. Edward Suh, Moinuddin K. Qureshi, Hsien-Hsin S. Lee:
"Cocktail Party Attack: Breaking Aggregation-Based Privacy in Federated Learning Using Independent Component
Analysis", ICML 2023, arXiv:2209.05578.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.closed_form.cocktail_party import unmixed_inputs
from jaxinvert.attacks.closed_form.first_layer import biased_dense_layers
from jaxinvert.attacks.closed_form.independent_components import balanced_channels, spatial_differences
from jaxinvert.attacks.matching import search_inputs
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.models import feature_map
from jaxinvert.observation.observe import require
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import (
    Array,
    Attack,
    AttackInfo,
    AttackState,
    Key,
    Observation,
    Reconstruction,
    Scalar,
)


class Unlabeled(NamedTuple):
    """Images `[B, H, W, C]` without labels."""

    inputs: Array
    labels: None = None


@declare(simulates=False, any_loss=True)
def cocktail_party_features(
    problem: Problem,
    *,
    tv: Scalar = 3.0,
    learning_rate: Scalar = 0.2,
    horizon: Scalar = 300,
    layer: str | None = None,
    num_unmixing_steps: int = 200,
) -> Attack:
    """Cocktail party on features: unmixes convolutional features, then inverts them (Kariyappa et al. 2023).

    Labels are neither read nor recovered, and the images are returned in arbitrary order.

    Works: on batches up to dozens of images, through convolutions and a dense layer with more units than images.

    Fails: where no dense layer has as many units as the batch has images.

    Args:
      problem: its network is a Flax model.
      tv: weight of the total variation, of pixels in [0, 1], in the exponent.
      learning_rate: of Adam, in units of the spectrum of photographs.
      horizon: number of steps over which the learning rate decays.
      layer: path of a dense layer with a bias; by default the widest. If it is the head, `B` must be less than the
        number of classes, and examples of the same label are hard to separate.
      num_unmixing_steps: fixed-point steps of the independent component analysis.

    Raises:
      ValueError: at trace time, if there is no such layer, or it has fewer units than the batch has examples.
    """
    apply, batch_shape, batch_size = problem.model.apply, problem.batch_shape, problem.num_examples
    images = parametrizations.spectrum(batch_shape)

    def search(path: str, features: Array) -> Attack:
        """The attack that searches for images with these features `[B, h, w, c]`."""

        def distance(observation: Observation, batch: Unlabeled) -> Array:
            found = feature_map(apply, path, observation.params, batch.inputs)
            mismatch = jax.vmap(objectives.cosine)(found, features)
            variation = jax.vmap(lambda image: regularizers.total_variation(image[None]))(batch.inputs)
            return jnp.mean(mismatch * jnp.exp(tv * variation))

        return search_inputs(
            distance,
            optimizer=optax.chain(
                optax.scale_by_adam(b2=0.95, eps=1e-12),
                optax.scale_by_learning_rate(cosine_decay(learning_rate, horizon)),
            ),
            parametrization=images._replace(decode=lambda variables: Unlabeled(images.decode(variables))),
            name="cocktail_party_features",
        )

    def init(key: Key, observation: Observation) -> AttackState:
        unmixing_key, start_key = jax.random.split(key)
        params = require(observation, "params", attack="cocktail_party_features")
        path = _layer_for(observation, layer, batch_size)
        blank = jax.ShapeDtypeStruct(batch_shape, jnp.float32)
        map_shape = jax.eval_shape(lambda inputs: feature_map(apply, path, params, inputs), blank).shape[1:]
        gradients = leaves_by_path(observation.update)
        features, _ = unmixed_inputs(
            unmixing_key,
            gradients[f"{path}/kernel"],
            gradients[f"{path}/bias"],
            separable=lambda rows: balanced_channels(spatial_differences(rows, map_shape), map_shape[-1]),
            batch_size=batch_size,
            num_steps=num_unmixing_steps,
        )
        features = features.reshape(-1, *map_shape)
        state = search(path, features).init(start_key, observation)
        return state._replace(carried=features)

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        return search(_layer_for(observation, layer, batch_size), state.carried).step(key, state, observation)

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        return search(_layer_for(observation, layer, batch_size), state.carried).decode(state, observation)

    return Attack(init, step, decode)


def _layer_for(observation: Observation, layer: str | None, batch_size: int) -> str:
    """The path of the dense layer whose gradient is unmixed."""
    layers = biased_dense_layers(observation.update)
    if not layers or layer not in (None, *layers):
        raise ValueError(f"cocktail_party_features needs a dense layer with bias, {layer or 'any'}; found {layers}")
    path = layer or max(layers, key=lambda name: layers[name][::-1])
    if layers[path][1] < batch_size:
        raise ValueError(
            f"cocktail_party_features needs a layer of at least {batch_size} units, as many as images; {path!r} has "
            f"{layers[path][1]}"
        )
    return path
