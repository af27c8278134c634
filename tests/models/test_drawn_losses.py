"""Networks that draw in training minimize the declared loss, with the draws; what cannot be drawn is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxinvert import Batch, models
from jaxinvert.defenses.bottleneck import with_bottleneck
from jaxinvert.models.heads import inspected

SHAPE, KEY = (2, 2, 3), jax.random.key(7)
IMAGES = jax.random.uniform(jax.random.key(0), (3, *SHAPE))
LABELS = {
    "classes": (4, np.array([1, 0, 3])),
    "soft": (4, np.full((3, 4), 0.25, np.float32)),
    "binary": (1, np.array([1, 0, 1])),
    "multi-label": (4, np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)),
    "regression": (2, np.array([[2.0, -1], [0, 3], [5, 5]], np.float32)),
}


class Net(linen.Module):
    num_outputs: int

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)
        return linen.Dense(self.num_outputs, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, num_outputs):
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(12, num_outputs, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(self.drop(x.reshape(len(x), -1)))


def drawing(library, num_outputs):
    if library == "nnx":
        return models.from_nnx(Nnx(num_outputs), input_shape=SHAPE, dropout="train")
    net = Net(num_outputs)
    return models.from_linen(net, name="net", input_shape=SHAPE, num_classes=num_outputs, dropout="train")


def drawn_logits(model, params):
    """The logits with the draws of `KEY`, read from a loss that is their inner product with a constant."""
    heard = []
    probe = model._replace(loss_of=lambda apply: lambda p, b: heard.append(apply(p, b.inputs)) or jnp.sum(heard[-1]))
    probe.drawn_loss_fn(params, Batch(IMAGES, jnp.zeros(3, int)), KEY)
    return heard[-1]


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("task", LABELS)
def test_the_drawn_loss_is_the_declared_loss_of_drawn_logits(library, task):
    num_outputs, labels = LABELS[task]
    model = models.with_task(drawing(library, num_outputs), labels)
    batch, params = Batch(IMAGES, jnp.asarray(labels)), model.init(jax.random.key(1))
    logits = drawn_logits(model, params)
    assert jnp.abs(logits - model.apply(params, IMAGES)).max() > 1e-2
    expected = model.loss_of(lambda params, inputs: logits)(params, batch)
    assert float(model.drawn_loss_fn(params, batch, KEY)) == pytest.approx(float(expected), rel=1e-6)
    assert float(model.drawn_loss_fn(params, batch, KEY)) != pytest.approx(float(model.loss(params, batch)), rel=1e-3)


def test_a_task_of_other_labels_replaces_the_default_loss_and_no_other():
    model = models.with_task(drawing("linen", 4), LABELS["regression"][1].repeat(2, axis=1))
    assert models.with_task(model, LABELS["classes"][1]).loss_of is models.cross_entropy
    own = model._replace(loss_of=lambda apply: models.squared_error(apply))
    assert models.with_task(own, LABELS["multi-label"][1]).loss_of is own.loss_of


@pytest.mark.parametrize("change", ["frozen", "respelled", "bottleneck"])
def test_changed_networks_keep_the_declared_loss(change):
    """The loss also reads a parameter beside the network's logits, under the name that it has in the changed tree."""
    if change == "respelled":

        def init(key):
            return {"w": jax.random.normal(key, (4, 12))}

        def apply(params, inputs):
            return inputs.reshape(len(inputs), -1) @ params["w"].T

        plain = models.from_functions(init, apply, name="net", input_shape=SHAPE, num_classes=4, head="")
        drawn_by = models.losses.drawn_by(lambda p, x, key: plain.apply(p, x + jax.random.normal(key)), name="net")
        model, kernel = inspected(plain._replace(drawn_loss_of=drawn_by)), lambda params: params["head"]["kernel"]
    else:
        model, kernel = drawing("linen", 4), lambda params: params["params"]["head"]["kernel"]
        model = (
            models.with_frozen(model, ["head/bias"]) if change == "frozen" else with_bottleneck(model, num_units=3)
        )
    weight = 0.1 if change != "frozen" else 1.0

    def loss_of(apply):
        return lambda p, b: weight * models.squared_error(apply)(p, b) + jnp.sum(kernel(p) ** 2)

    batch = Batch(IMAGES, jnp.asarray(LABELS["multi-label"][1]))
    params = model.init(jax.random.key(1))
    penalized, squared, zero = (
        float(model._replace(loss_of=of).drawn_loss_fn(params, batch, KEY))
        for of in (loss_of, models.squared_error, lambda apply: lambda p, b: 0.0 * jnp.sum(apply(p, b.inputs)))
    )
    expected = weight * (squared - zero) + float(jnp.sum(kernel(params) ** 2)) + zero
    assert penalized == pytest.approx(expected, rel=1e-5)
    assert abs(squared - zero) > 0.01


def test_a_bottleneck_draws_beside_dropout():
    bottled = with_bottleneck(drawing("linen", 4), num_units=3)
    batch, params = Batch(IMAGES, jnp.asarray([1, 0, 3])), bottled.init(jax.random.key(1))
    quiet = with_bottleneck(drawing("linen", 4)._replace(drawn_loss_of=None), num_units=3)
    drawn, undrawn = (float(m.drawn_loss_fn(params, batch, KEY)) for m in (bottled, quiet))
    assert drawn != pytest.approx(undrawn, rel=1e-3)


def test_a_loss_of_parameters_and_batch_cannot_be_drawn():
    model = drawing("linen", 4)
    own = model._replace(loss_fn=lambda params, batch: jnp.mean(model.apply(params, batch.inputs) ** 2))
    with pytest.raises(ValueError, match=r"net is a function of parameters and batch.*choose dropout='eval'"):
        own.drawn_loss_fn(own.init(KEY), Batch(IMAGES, jnp.zeros(3, int)), KEY)


NETWORKS = """
import jax.numpy as jnp
from flax import linen
from tests.models.test_drawn_losses import Net, Nnx

def squared(logits, labels): return jnp.mean(jnp.square(logits - labels[:, None]))
def own(): return Nnx(4), squared
def norm(params, batch): return jnp.mean(batch.inputs) * jnp.sum(params["params"]["head"]["bias"])
def of_params(): return Net(4), norm
"""


def test_an_imported_loss_is_drawn_or_refused(tmp_path, monkeypatch):
    (tmp_path / "drawn_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = models.create("drawn_networks:own", input_shape=SHAPE, num_classes=4, dropout="train")
    params = model.init(KEY)
    expected = jnp.mean(jnp.square(drawn_logits(model, params) - jnp.asarray([1, 0, 3])[:, None]))
    found = model.drawn_loss_fn(params, Batch(IMAGES, jnp.asarray([1, 0, 3])), KEY)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="of_params is a function of parameters and batch"):
        models.create("drawn_networks:of_params", input_shape=SHAPE, num_classes=4, dropout="train")
    models.create("drawn_networks:of_params", input_shape=SHAPE, num_classes=4)
