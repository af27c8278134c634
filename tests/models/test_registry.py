"""Names, options and the errors for wrong ones."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen

from jaxinvert import models


def test_unknown_name_lists_the_known_and_the_closest():
    with pytest.raises(ValueError, match=r"'renset18'.*convnet64.*lenet.*did you mean 'resnet18'"):
        models.create("renset18")


def test_sizes_in_a_name():
    assert models.create("convnet8").name == "convnet8"
    assert models.create("resnet14-1").name == models.create("resnet20-4", depth=14, width=16).name == "resnet14-1"
    assert models.create("vit-pre-norm-8-64-2").name == "vit-pre-norm-8-64-2"
    assert models.create("vit-pre-norm-fixed-8-64-2").name == "vit-pre-norm-fixed-8-64-2"
    with pytest.raises(ValueError, match=r"6n . 2.*got 15"):
        models.create("resnet15-1")
    with pytest.raises(ValueError, match="unknown model 'convnet8x'"):
        models.create("convnet8x")


@pytest.mark.parametrize("option", ["widht", "activation"])
def test_unknown_option_lists_the_known_and_the_closest(option):
    with pytest.raises(ValueError, match=f"'convnet64': '{option}'.*batch_norm.*width; did you mean"):
        models.create("convnet64", **{option: 8})


@pytest.mark.parametrize(
    ("name", "option"),
    [("lenet", "batch_norm"), ("mlp", "width"), ("mlp", "conv_general_dilated"), ("lenet", "width")],
)
def test_options_that_a_network_does_not_have(name, option):
    with pytest.raises(ValueError, match=f"unknown option of model '{name}'"):
        models.create(name, **{option: jax.lax.conv_general_dilated})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnet64", {"batch_norm": "training"}, "'training'.*eval, train; did you mean 'train'"),
        ("convnet64", {"width": 0}, "width must be at least 1, got 0"),
        ("convnet64", {"input_shape": (8, 32, 3)}, "at least 9x9"),
        ("small-convnet", {"width": -1}, "width must be at least 1, got -1"),
        ("mlp", {"features": (3, 0)}, "features must be positive widths"),
        ("resnet20-4", {"depth": 21}, "6n . 2.*got 21"),
        ("resnet20-4", {"depth": 2}, "6n . 2.*got 2"),
        ("resnet18", {"depth": 19}, "unknown depth 19; known: 18, 34, 50"),
        ("resnet18", {"width": 0}, "width must be at least 1, got 0"),
        ("vit-plain", {"depth": 0}, "depth must be at least 1, got 0"),
        ("vit-plain", {"num_heads": 3}, "num_heads must divide the width 128, got 3"),
        ("vit-plain", {"patch": 5}, r"patch must divide the sides of images \(32, 32, 3\), got 5"),
        ("vit-plain", {"kind": "pre"}, "'pre'.*plain, pre-norm; did you mean 'pre-norm'"),
        ("resnet18", {"stem": "cifra"}, "unknown stem 'cifra'.*did you mean 'cifar'"),
        ("lenet", {"input_shape": (32, 32)}, "three positive sizes"),
        ("lenet", {"input_shape": (0, 32, 3)}, "three positive sizes"),
        ("lenet", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("lenet", {"mean": (0.5,)}, "mean must be 3 finite numbers"),
        ("lenet", {"mean": (0.5, 0.5, float("nan"))}, "mean must be 3 finite numbers"),
        ("lenet", {"mean": (0.5, 0.5, 1e300)}, "mean must be 3 finite numbers of at most 10000"),
        ("lenet", {"mean": (0.5, 0.5, 10**400)}, "mean must be 3 finite numbers"),
        ("lenet", {"mean": (0.5,) * 3, "std": (0.5, 0.5, 1e-300)}, "std must be positive in every channel, at least"),
        ("lenet", {"std": (0.2, 0.0, 0.2)}, "std must be positive"),
    ],
)
def test_wrong_values_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("convnet64", {"width": 16}, "convnet16"),
        ("small-convnet", {"width": 8}, "small-convnet8"),
        ("small-convnet-bn8", {}, "small-convnet-bn8"),
        ("mlp", {"features": (512, 64)}, "mlp-512-64"),
        ("mlp", {"features": [256]}, "mlp"),
        ("mlp-512-64", {}, "mlp-512-64"),
        ("mlp-unbiased-512-64", {}, "mlp-unbiased-512-64"),
        ("wide-convnet-64", {"channels": 8}, "wide-convnet-64-channels8"),
        ("resnet20-4", {"width": 16}, "resnet20-1"),
        ("resnet20-4", {"depth": 32, "width": 160}, "resnet32-10"),
        ("resnet20-4", {"width": 8}, "resnet20-0.5"),
        ("resnet18", {"width": 8}, "resnet18-width8"),
        ("resnet18", {"stem": "cifar"}, "resnet18-cifar-stem"),
        ("vit-plain", {"width": 64, "depth": 2}, "vit-plain-4-64-2"),
        ("vit-plain", {"kind": "pre-norm"}, "vit-pre-norm"),
    ],
)
def test_names_follow_the_real_sizes(name, options, expected):
    assert models.create(name, **options).name == expected


def test_a_flax_module_of_ones_own():
    class Softmax(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(4, name="out")(x.reshape(x.shape[0], -1))

    model = models.from_linen(Softmax(), name="softmax", input_shape=(2, 2, 1), num_classes=4, head="params/out")
    params = model.init(jax.random.key(0))
    assert params["params"]["out"]["kernel"].shape == (4, 4)
    assert model.apply(params, jnp.ones((5, 2, 2, 1))).shape == (5, 4)
