"""Networks with low-rank adapters: what is trained, what it computes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, models
from jaxinvert.models.lora import merged
from jaxinvert.models.tensors import Tensor, from_named, to_named
from jaxinvert.models.text_transformer import decoder
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Batch

SHAPE = (8, 8, 1)
IMAGES = Batch(jax.random.uniform(jax.random.key(1), (2, *SHAPE)), jnp.array([0, 2]))


@pytest.fixture(scope="module")
def vit():
    return models.vit(kind="pre-norm", patch=4, width=16, num_heads=2, input_shape=SHAPE, num_classes=3)


def started(params):
    """The same adapters with a `B` that is not zero."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.3 if "lora_b" in jax.tree_util.keystr(path) else leaf, params
    )


@pytest.mark.slow
def test_new_adapters_change_nothing_and_are_all_that_is_trained(vit):
    model = models.with_lora(vit, 2)
    params = model.init(jax.random.key(0))
    np.testing.assert_allclose(
        model.apply(params, IMAGES.inputs), vit.apply(vit.init(jax.random.key(0)), IMAGES.inputs), rtol=1e-6
    )
    update = leaves_by_path(clients.sending(clients.fedsgd(model.loss), frozen=model.frozen)(started(params), IMAGES))
    moved = {path for path, leaf in update.items() if np.any(np.asarray(leaf) != 0)}
    assert moved == {
        f"params/attention_0/{layer}/{leaf}" for layer in ("query", "value") for leaf in ("lora_a", "lora_b")
    }
    assert model.name == "vit-pre-norm-4-16-1-lora2"
    assert "frozen" in model.calibration.unsent


def test_gradients_are_the_products_of_the_docstring(vit):
    """`dL/dA = s G B^T` and `dL/dB = s A^T G`, with the gradient `G` of the merged kernel."""
    model = models.with_lora(vit, 2, layers=("attention_0/query", "dense_0"), scale=0.5)
    params = started(model.init(jax.random.key(0)))
    adapted = ("params/attention_0/query", "params/perceptron_0/dense_0")
    whole = leaves_by_path(jax.grad(vit.loss)(merged(params, adapted, scale=0.5), IMAGES))
    update, leaves = leaves_by_path(jax.grad(model.loss)(params, IMAGES)), leaves_by_path(params)
    for layer in adapted:
        gradient = whole[f"{layer}/kernel"]
        a, b = leaves[f"{layer}/lora_a"], leaves[f"{layer}/lora_b"]
        np.testing.assert_allclose(update[f"{layer}/lora_a"], 0.5 * gradient @ b.T, atol=1e-6)
        np.testing.assert_allclose(update[f"{layer}/lora_b"], 0.5 * a.T @ gradient, atol=1e-6)


def test_files_of_an_imported_network_must_hold_its_adapters(vit):
    shapes = jax.eval_shape(vit.init, jax.random.key(0))
    imported = vit._replace(tensors=tuple(Tensor(path.replace("/", "."), path) for path in leaves_by_path(shapes)))
    model = models.with_lora(imported, 2)
    params = model.init(jax.random.key(0))
    named = to_named(model, started(params))
    read = leaves_by_path(from_named(model, named, like=params))
    np.testing.assert_array_equal(read["params/attention_0/query/lora_b"], np.full((2, 16), 0.3, np.float32))
    with pytest.raises(ValueError, match="lora_a"):
        from_named(model, to_named(imported, params), like=params)


@pytest.mark.slow
def test_text_and_local_training_leave_the_network_alone(vit):
    model = models.text_with_lora(decoder(vocabulary_size=9, length=3, width=8, num_heads=2, depth=1), 2)
    params = model.init(jax.random.key(0))
    batch = Batch(jnp.array([[1, 2, 3]]), jnp.array([[2, 3, 4]]))
    update = clients.sending(clients.fedsgd(model.loss_fn), frozen=model.frozen)(params, batch)
    names = {path for path, leaf in leaves_by_path(update).items() if np.any(np.asarray(leaf) != 0)}
    assert names == {
        f"params/attention_0/{layer}/lora_b" for layer in ("query", "value")
    }  # in the first round, B is zero and A does not move


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora_rank is 0, expected at least 1"),
        ({"rank": 2, "layers": ("conv",)}, r"no such dense layer; it has attention_0/key, attention_0/out"),
        ({"rank": 2, "layers": ()}, "lora_layers is empty"),
    ],
)
def test_what_has_no_adapter_is_refused(vit, options, message):
    with pytest.raises(ValueError, match=message):
        models.with_lora(vit, **options)
