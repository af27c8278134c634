"""The checks of gradients, on sets by hand and on a small network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import crafting
from jaxinvert import inspection, models
from jaxinvert.inspection import gradients, weights
from jaxinvert.trees import leaves_by_path

MODEL = models.create("mlp-48-16", input_shape=(8, 8, 3))
BATCH = inspection.with_labels_in_turn(inspection.natural_images(MODEL.input_shape), MODEL.num_classes)
RESPOND = jax.jit(lambda params: inspection.responses(MODEL, params, BATCH))
FEATURES = np.asarray(BATCH.inputs).reshape(64, -1)


def judged(params):
    return inspection.judge(params, MODEL.head, jax.device_get(RESPOND(params)))


def checks(found):
    return {finding.check for finding in found.findings}


@pytest.fixture(scope="module")
def honest():
    return MODEL.init(jax.random.key(0))


def test_chains_of_sets_by_hand():
    nested = np.tril(np.ones((4, 4), bool))  # unit i is active on examples i ... 3
    assert gradients.longest_chain(nested) == 4
    assert gradients.longest_chain(np.eye(4, dtype=bool)) == 1
    assert gradients.longest_chain(np.concatenate([nested, nested], axis=1)) == 4  # equal sets count once
    assert gradients.longest_chain(np.zeros((4, 3), bool)) == 0


def test_shares_by_hand():
    some = np.zeros((40, 3), bool)
    some[0, 0] = some[:20, 1] = True  # unit 2 is dead
    assert gradients.rare_share(some) == 1 / 3
    assert gradients.isolated_share(some) == 1 / 40
    assert gradients.silent_share(np.array([0, 0, 0, 1.0]), np.array([1, 1, 0, 1.0])) == 0.5
    assert gradients.silent_share(np.zeros(4), np.ones(4)) == 0


def test_activity_is_that_of_the_units(honest):
    """A unit's weights have a gradient where it is positive, whatever the size of the example's gradient."""
    units = gradients.active(np.asarray(RESPOND(honest).units["params/dense_0/kernel"]))
    layer = honest["params"]["dense_0"]
    expected = FEATURES @ layer["kernel"] + np.asarray(layer["bias"])[None] > 0
    assert np.mean(units == expected) > 0.99


def test_an_honest_network_passes(honest):
    found = judged(honest)
    assert not found.findings
    assert {measure.check for measure in found.measures} >= {"planted-bins", *inspection.NEED_NETWORK}
    assert 0 <= found.isolated <= 1


def test_an_imprint_is_found_by_tensors_and_by_gradients(honest):
    crafted = crafting.imprint(honest, "params/dense_0", FEATURES, np.random.default_rng(0), bins=48)
    assert checks(judged(crafted)) >= {"planted-bins", "nested-units"}


def test_an_imprint_is_found_behind_noise_that_hides_its_weights(honest):
    rng = np.random.default_rng(0)
    crafted = crafting.imprint(honest, "params/dense_0", FEATURES, rng, bins=48, noise=0.1)
    layer = next(one for one in inspection.layers_of(leaves_by_path(crafted)) if one.name == "params/dense_0/kernel")
    assert weights.parallel_units(layer).thresholds < 8
    assert "nested-units" in checks(judged(crafted))


def test_what_the_crafting_functions_promise(honest):
    """Bins are read, traps fire rarely, and fishing silences all but one class."""
    rng, layer = np.random.default_rng(0), "params/dense_0"
    crafted = crafting.imprint(honest, layer, FEATURES, rng, bins=48, scaled=True)
    update = jax.grad(MODEL.loss)(crafted, jax.tree.map(lambda leaf: leaf[:4], BATCH))
    errors = np.abs(crafting.read_bins(update, layer, bins=48)[:, None] - FEATURES[None, :4]).max(axis=2)
    assert np.sum(errors.min(axis=0) < 1e-2) >= 3
    assert "trap-weights" in checks(judged(crafting.trap(honest, [layer], rng, factor=0.9, mirrored=True)))
    fished = crafting.fish_class(honest, MODEL.head, 3)
    assert checks(judged(fished)) >= {"one-class-head", "silent-examples"}
    norms = np.asarray(RESPOND(fished).norms)
    assert norms[np.asarray(BATCH.labels) != 3].max() < 1e-3 * norms.max()
    assert "one-class-head" in checks(judged(crafting.fish_feature(honest, MODEL.head, 3, 0, 0.1)))


def test_gradients_that_are_not_finite_are_named(honest):
    blinding = jax.tree.map(lambda leaf: leaf * 1e30, honest)
    with pytest.raises(ValueError, match=r"not finite: .* crafted to blind this check"):
        judged(blinding)


def test_what_an_unknown_head_leaves_unchecked_is_said(honest):
    headless = MODEL._replace(head="")
    found = jax.device_get(jax.jit(lambda params: inspection.responses(headless, params, BATCH))(honest))
    assert "params/head/kernel" not in found.units  # it may be the last layer
    judged = inspection.judge(honest, "", found)
    assert judged.skipped["silent-examples"] == "the network's last layer is not known"
    assert "silent-examples" not in {measure.check for measure in judged.measures}


def test_a_share_that_was_not_measured_is_none(honest):
    found = jax.device_get(RESPOND(honest))._replace(units={})
    assert inspection.judge(honest, MODEL.head, found).isolated is None


def test_long_chains_are_found_among_many_units():
    planted = np.tril(np.ones((64, 64), bool))
    others = np.random.default_rng(0).random((64, 1500)) < 0.5
    others[0] = False  # first in the order of the sets
    assert gradients.longest_chain(np.concatenate([others, planted], axis=1)) > 40
    many = np.random.default_rng(1).random((64, 4000)) < 0.5
    assert gradients.longest_chain(np.concatenate([many, planted], axis=1)) > 28


def test_few_examples_are_refused(honest):
    few = jax.tree.map(lambda leaf: leaf[:20], BATCH)
    with pytest.raises(ValueError, match="at least 48 examples, got 20"):
        inspection.inspect(honest, MODEL, few)


def test_leaves_of_integers_are_no_units():
    counted = MODEL._replace(apply=lambda params, inputs: MODEL.apply({"params": params["params"]}, inputs))
    params = {**MODEL.init(jax.random.key(0)), "counters": {"kernel": jnp.zeros((8, 8), jnp.int32)}}
    found = inspection.inspect(params, counted, BATCH)
    assert not found.findings
    assert "counters/kernel" not in {measure.layer for measure in found.measures}
    assert "counters/kernel" in leaves_by_path(params)


def test_natural_images_have_the_networks_form():
    for shape in ((28, 24, 1), (8, 8, 4), (1, 1, 5)):
        images = inspection.natural_images(shape, count=6)
        assert images.shape == (6, *shape)
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
        assert float(images.std()) > 0.1
