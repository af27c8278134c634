"""Attacks by name, for command lines, sweeps and experiments; library code calls their functions."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxinvert.analytic.dense import dense_layer
from jaxinvert.attacks.inverting_gradients import inverting_gradients
from jaxinvert.types import Attack, ClientUpdateFn, PerChannel, Scalar, Shape, SolveFn


class Setting(NamedTuple):
    """What an attack is built for.

    Attributes:
      client_update: the attacker's simulation of the client.
      batch_shape: `(B, H, W, C)`.
      mean: scalar or `[C]`, the normalization that the model applies.
      std: scalar or `[C]`.
      joint_labels: the number of classes, if labels are to be optimized along with the images.
    """

    client_update: ClientUpdateFn
    batch_shape: Shape
    mean: PerChannel
    std: PerChannel
    joint_labels: int | None = None


class Recipe(NamedTuple):
    """An attack under its name.

    Attributes:
      summary: one line for people.
      hyperparameters: names and defaults of what a user may set; all may be traced.
      needs: the fields of an observation that it reads.
      build: `(setting, hyperparameters, horizon) -> Attack` for an iterative attack, or a closed-form `SolveFn`.
    """

    summary: str
    hyperparameters: Mapping[str, float]
    needs: tuple[str, ...]
    build: Callable[[Setting, Mapping[str, Scalar], Scalar], Attack | SolveFn]


def _inverting_gradients(setting: Setting, hyperparameters: Mapping[str, Scalar], horizon: Scalar) -> Attack:
    return inverting_gradients(
        setting.client_update,
        batch_shape=setting.batch_shape,
        mean=setting.mean,
        std=setting.std,
        joint_labels=setting.joint_labels,
        horizon=horizon,
        **hyperparameters,
    )


def _dense_layer(setting: Setting, hyperparameters: Mapping[str, Scalar], horizon: Scalar) -> SolveFn:
    del hyperparameters, horizon  # a closed form has neither
    return dense_layer(batch_shape=setting.batch_shape, mean=setting.mean, std=setting.std)


REGISTRY: dict[str, Recipe] = {
    "dense-layer": Recipe(
        summary="closed form behind a biased dense layer that reads the images (exact for one example)",
        hyperparameters={},
        needs=("params", "update", "num_examples"),
        build=_dense_layer,
    ),
    "inverting-gradients": Recipe(
        summary="cosine matching, signed Adam, total variation (Geiping et al. 2020)",
        hyperparameters={"tv": 1e-2, "learning_rate": 0.1},
        needs=("params", "update", "num_examples", "labels"),
        build=_inverting_gradients,
    ),
}
