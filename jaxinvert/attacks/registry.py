"""Attacks by name, for command lines, sweeps and experiments; library code calls their functions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from jaxinvert import labels
from jaxinvert.attacks import objectives
from jaxinvert.attacks.closed_form.april import april, patch_embedding
from jaxinvert.attacks.closed_form.cocktail_party import cocktail_party
from jaxinvert.attacks.closed_form.dense import dense_layer
from jaxinvert.attacks.closed_form.dense_chain import dense_chain, layers_in_order
from jaxinvert.attacks.closed_form.rgap import rgap
from jaxinvert.attacks.closed_form.spear import exact_batch, spear
from jaxinvert.attacks.initial_guess import regressed
from jaxinvert.attacks.optimization.batch_norm_leakage import batch_norm_leakage
from jaxinvert.attacks.optimization.cocktail_party_features import cocktail_party_features
from jaxinvert.attacks.optimization.deep_leakage_from_model import dlm, dlm_plus, dlm_with_best_scale
from jaxinvert.attacks.optimization.dlg import dlg, idlg
from jaxinvert.attacks.optimization.general_deep_leakage import general_deep_leakage
from jaxinvert.attacks.optimization.gias import latent_search, latents_then_weights
from jaxinvert.attacks.optimization.inverting_gradients import inverting_gradients
from jaxinvert.attacks.optimization.see_through_gradients import see_through_gradients
from jaxinvert.attacks.optimization.spectral import spectral
from jaxinvert.attacks.recipe import Recipe, Setting
from jaxinvert.clients import fedsgd
from jaxinvert.labels.head import has_head
from jaxinvert.models import BATCH_NORM_MOMENTUM, training_loss
from jaxinvert.types import Attack, ClientUpdateFn, Scalar, SolveFn

_UPDATE = ("params", "update", "num_examples")


def _batch_norm_leakage(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    if setting.sent_statistics is None:
        raise ValueError("batch-norm-leakage needs clients that send running statistics")
    return batch_norm_leakage(
        setting.client_update,
        setting.sent_statistics,
        momentum=BATCH_NORM_MOMENTUM,
        joint_labels=setting.joint_classes,
        horizon=horizon,
        **setting.images,
        **hyperparameters,
    )


def _closed_form(
    make: Callable[..., SolveFn], setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar
) -> SolveFn:
    del hyperparameters, horizon  # a closed form has neither
    return make(**setting.images)


def _cocktail_party_features(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    return cocktail_party_features(
        setting.model.apply, batch_shape=setting.images["batch_shape"], horizon=horizon, **hyperparameters
    )


def _dense_chain(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> SolveFn:
    del hyperparameters, horizon
    params = jax.eval_shape(setting.model.init, jax.random.key(0))
    return dense_chain(layers=layers_in_order(params, head=setting.model.head), **setting.images)


def _rgap(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> SolveFn:
    del hyperparameters, horizon
    if setting.model.name != "lenet":
        raise ValueError(
            f"rgap needs a chain of convolutions with sigmoids, lenet; this model is {setting.model.name}"
        )
    return rgap(head=setting.model.head, **setting.images)


def _from_positions(
    make: Callable[..., SolveFn], setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar
) -> SolveFn:
    del hyperparameters, horizon
    return make(setting.client_update, **setting.images)


def _dlg(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    del hyperparameters, horizon  # its line search needs neither
    return dlg(
        setting.client_update, batch_shape=setting.images["batch_shape"], num_classes=setting.model.num_classes
    )


def _idlg(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    del hyperparameters, horizon
    if setting.num_examples != 1:
        raise ValueError(f"idlg finds the label of one example; here an update holds {setting.num_examples}")
    return idlg(setting.client_update, batch_shape=setting.images["batch_shape"], head=setting.model.head)


def _exact(
    make: Callable[..., SolveFn], setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar
) -> SolveFn:
    del horizon  # they end when all examples are found
    loss_fn = training_loss(setting.model)
    return make(
        setting.client_update, loss_fn, num_classes=setting.model.num_classes, **setting.images, **hyperparameters
    )


def _from_model(
    make: Callable[..., Attack], setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar
) -> Attack:
    del horizon  # their rate is constant
    shape = setting.images["batch_shape"]
    return make(_one_gradient(setting), batch_shape=shape, num_classes=setting.model.num_classes, **hyperparameters)


def _dlm_with_best_scale(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    del horizon
    rule, shape = labels.bias_sign(head=setting.model.head), setting.images["batch_shape"]
    return dlm_with_best_scale(_one_gradient(setting), rule, batch_shape=shape, **hyperparameters)


def _one_gradient(setting: Setting) -> ClientUpdateFn:
    """What an attacker simulates who does not know how the client trains."""
    return fedsgd(training_loss(setting.model), chunk_size=setting.gradient_chunk)


def _general_deep_leakage(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    model = setting.model
    dummies = labels.natural_noise(jax.random.key(0), input_shape=model.input_shape)
    rule = labels.zero_shot(model.apply, dummies=dummies, head=model.head)
    return general_deep_leakage(
        setting.client_update,
        rule,
        horizon=horizon,
        objective=setting.objective,
        **setting.images,
        **hyperparameters,
    )


def _with_generator(
    make: Callable[..., Attack], setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar
) -> Attack:
    if setting.prior is None:
        raise ValueError("this attack searches with a generator: the setting needs a prior")
    images = setting.images
    return make(
        setting.client_update,
        setting.prior,
        batch_shape=images["batch_shape"],
        std=images["std"],
        sent_statistics=setting.sent_statistics,
        horizon=horizon,
        objective=setting.objective,
        **hyperparameters,
    )


def _inverting_gradients(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    return inverting_gradients(
        setting.client_update,
        joint_labels=setting.joint_classes,
        horizon=horizon,
        objective=setting.objective,
        **setting.images,
        **hyperparameters,
    )


def _see_through_gradients(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    return see_through_gradients(
        setting.client_update, setting.model.batch_statistics, horizon=horizon, **setting.images, **hyperparameters
    )


def _spectral(setting: Setting, hyperparameters: Mapping[str, Any], horizon: Scalar) -> Attack:
    model, batch_shape = setting.model, setting.images["batch_shape"]
    # An attacker who adapts to a defense simulates more than an update, and compares by an objective of its own.
    adapts = setting.objective is not objectives.cosine
    readable = has_head(jax.eval_shape(model.init, jax.random.key(0)), model.head)
    guessed = readable and not adapts and not setting.joint_labels
    return spectral(
        setting.client_update,
        batch_shape=batch_shape,
        sent_statistics=setting.sent_statistics,
        joint_labels=setting.joint_classes,
        horizon=horizon,
        objective=setting.objective if adapts else objectives.kernel_cosine,
        guess=regressed(model.apply, head=model.head, batch_shape=batch_shape) if guessed else None,
        **hyperparameters,
    )


_SPECTRAL = Recipe(
    summary="this library's own: a picture's frequencies, a prior under noise of unknown size",
    hyperparameters={"batch_norm": 1.0, "tv": 1.0, "learning_rate": 0.2},
    needs=(*_UPDATE, "labels"),
    build=_spectral,
    joint=True,
    every_round=True,
    adapts=True,
)

REGISTRY: dict[str, Recipe] = {
    "april": Recipe(
        summary="closed form through the first attention (Lu et al. 2022): vit-plain, exact for one example",
        hyperparameters={},
        needs=_UPDATE,
        build=partial(_from_positions, april),
    ),
    "auto": _SPECTRAL._replace(
        summary="a closed form where one is exact, else spectral; says what it took and why (only as part of a job)"
    ),
    "batch-norm-leakage": Recipe(
        summary="matching of update and batch statistics (Hatamizadeh et al. 2022); BatchNorm in train mode",
        hyperparameters={
            "matching": 1e-3,
            "batch_norm": 0.1,
            "tv": 1e-4,
            "norm": 1e-5,
            "learning_rate": 0.1,
            "warmup": 100,
        },
        needs=(*_UPDATE, "labels", "local_training", "batch_stats"),
        build=_batch_norm_leakage,
        joint=True,
    ),
    "cocktail-party": Recipe(
        summary="independent components of a wide dense layer's gradient (Kariyappa et al. 2023); large batches",
        hyperparameters={},
        needs=_UPDATE,
        build=partial(_closed_form, cocktail_party),
        simulates=False,
    ),
    "cocktail-party-features": Recipe(
        summary="the same on features of convolutions, then images that have them (Kariyappa et al. 2023)",
        hyperparameters={"tv": 3.0, "learning_rate": 0.2},
        needs=_UPDATE,
        build=_cocktail_party_features,
        simulates=False,
    ),
    "dense-chain": Recipe(
        summary="closed form through a ReLU perceptron's layers, some without bias (Geiping et al. 2020)",
        hyperparameters={},
        needs=_UPDATE,
        build=_dense_chain,
        simulates=False,
    ),
    "dense-layer": Recipe(
        summary="closed form behind a biased dense layer that reads the images (exact for one example)",
        hyperparameters={},
        needs=_UPDATE,
        build=partial(_closed_form, dense_layer),
        simulates=False,
    ),
    "dlg": Recipe(
        summary="squared distance by L-BFGS, labels as variables (Zhu et al. 2019)",
        hyperparameters={},
        needs=_UPDATE,
        build=_dlg,
        every_round=True,
    ),
    "dlm": Recipe(
        summary="without the learning rate: scale as a variable (Zhao et al. 2022)",
        hyperparameters={"initial_scale": 100.0, "learning_rate": 0.1},
        needs=_UPDATE,
        build=partial(_from_model, dlm),
        simulates=False,
    ),
    "dlm-best-scale": Recipe(
        summary="the same with labels from the bias's signs and the scale in closed form",
        hyperparameters={"learning_rate": 0.1},
        needs=_UPDATE,
        build=_dlm_with_best_scale,
        simulates=False,
        every_round=True,
    ),
    "dlm-plus": Recipe(
        summary="the same with every tensor in units of its mean (Zhao et al. 2022)",
        hyperparameters={"learning_rate": 0.1},
        needs=_UPDATE,
        build=partial(_from_model, dlm_plus),
        simulates=False,
        every_round=True,
    ),
    "exact-batch": Recipe(
        summary="exact and certified: ReLU perceptrons' batches by independence, then sparsity",
        hyperparameters={"inactive": 0.25},
        needs=_UPDATE,
        build=partial(_exact, exact_batch),
    ),
    "general-deep-leakage": Recipe(
        summary="zero-shot label counts, then cosine matching with soft bounds (Geng et al. 2021)",
        hyperparameters={"tv": 1e-2, "clip": 1e-2, "learning_rate": 0.1},
        needs=(*_UPDATE, "local_training"),
        build=_general_deep_leakage,
        every_round=True,
        adapts=True,
    ),
    "gias": Recipe(
        summary="a generator's latents, then its weights, image by image (Jeon et al. 2021); see --generator",
        hyperparameters={
            "batch_norm": 1.0,
            "tv": 0.0,
            "prior_weight": 4.0,
            "latent_rate": 0.1,
            "weight_rate": 1e-3,
            "latent_share": 0.75,
            "spread": 0.1,
        },
        needs=(*_UPDATE, "labels"),
        build=partial(_with_generator, latents_then_weights),
        every_round=True,
        adapts=True,
        generates=True,
    ),
    "gias-latents": Recipe(
        summary="its first stage only, a generator's latents: usually better in the same time; see --generator",
        hyperparameters={"batch_norm": 1.0, "tv": 0.0, "prior_weight": 4.0, "learning_rate": 0.1, "spread": 0.1},
        needs=(*_UPDATE, "labels"),
        build=partial(_with_generator, latent_search),
        every_round=True,
        adapts=True,
        generates=True,
    ),
    "idlg": Recipe(
        summary="label from the last layer's signs, then DLG on the image (Zhao et al. 2020); one example",
        hyperparameters={},
        needs=_UPDATE,
        build=_idlg,
        every_round=True,
    ),
    "inverting-gradients": Recipe(
        summary="cosine matching, signed Adam, total variation (Geiping et al. 2020)",
        hyperparameters={"tv": 1e-2, "learning_rate": 0.1},
        needs=(*_UPDATE, "labels"),
        build=_inverting_gradients,
        joint=True,
        every_round=True,
        adapts=True,
    ),
    "patch-embedding": Recipe(
        summary="closed form of any vit with position embeddings, from its layer of patches; exact for one example",
        hyperparameters={},
        needs=_UPDATE,
        build=partial(_from_positions, patch_embedding),
    ),
    "rgap": Recipe(
        summary="layer by layer through LeNet's convolutions (Zhu and Blaschko 2021); one example",
        hyperparameters={},
        needs=_UPDATE,
        build=_rgap,
        simulates=False,
    ),
    "see-through-gradients": Recipe(
        summary="a group of seeds, BatchNorm statistics, Langevin noise (Yin et al. 2021, GradInversion)",
        hyperparameters={
            "matching": 1e-3,
            "batch_norm": 0.1,
            "tv": 1e-4,
            "l2": 1e-6,
            "group": 1e-2,
            "registration": 1.0,
            "noise": 0.2,
            "learning_rate": 0.1,
            "warmup": 50,
        },
        needs=(*_UPDATE, "labels"),
        build=_see_through_gradients,
    ),
    "spectral": _SPECTRAL,
    "spear": Recipe(
        summary="exact and certified: ReLU perceptrons' small batches by sampling (Dimitrov et al. 2024)",
        hyperparameters={"inactive": 0.25},
        needs=_UPDATE,
        build=partial(_exact, spear),
    ),
}
