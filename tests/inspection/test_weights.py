"""The checks of tensors alone: what they find, and what honest tensors they leave alone."""

import numpy as np
import pytest

from jaxinvert.inspection import inspect_tensors, layers_of, weights
from jaxinvert.inspection.layers import Layer

RNG = np.random.default_rng(0)
HONEST = {"in/kernel": RNG.normal(size=(48, 32)), "in/bias": RNG.normal(size=32)}


def bins(units=16, size=48, scales=1.0):
    """Parallel rows, scaled, and as many thresholds."""
    line = RNG.normal(size=size)
    scale = np.broadcast_to(scales, units)
    return {"in/kernel": line[:, None] * scale, "in/bias": -np.linspace(-1, 1, units) * scale}


def found(arrays, **options):
    return {finding.check: finding for finding in inspect_tensors(arrays, **options).findings}


@pytest.mark.parametrize("scales", [1.0, np.linspace(0.1, 9, 16), np.where(np.arange(16) % 2, -1.0, 3.0)])
def test_bins_are_found_however_their_units_are_scaled_or_turned(scales):
    finding = found(bins(scales=scales))["planted-bins"]
    assert finding.value == 16
    assert finding.layer == "in/kernel"


@pytest.mark.parametrize("scale", [1e-35, 1e30])
def test_what_is_planted_is_found_at_any_scale(scale):
    """Squares overflow or vanish in float32."""
    assert found({name: np.float32(leaf * scale) for name, leaf in bins().items()})["planted-bins"].value == 16
    assert found({"in/kernel": np.float32(trapped(0.9) * scale)})["trap-weights"].value == 1
    head = RNG.normal(size=(8, 10))
    head[:, 3] *= 1e4
    assert found({"fc/kernel": np.float32(head * scale / 1e4)}, head="fc")["one-class-head"].value > 0.99


def test_one_giant_unit_or_threshold_hides_nothing():
    few = bins()
    giant = {"in/kernel": few["in/kernel"].copy(), "in/bias": few["in/bias"].copy()}
    giant["in/kernel"][:, 0] = RNG.normal(size=48) * 1e30
    assert found(giant)["planted-bins"].value == 15
    few["in/bias"][0] = 1e30
    assert found(few)["planted-bins"].value == 16


def test_bins_are_found_among_other_units_and_in_many():
    few = bins()
    mixed = {name: np.concatenate([HONEST[name], few[name]], axis=-1) for name in few}
    assert found(mixed)["planted-bins"].value == 16
    many = bins(units=700, size=400)  # compared by a random projection
    assert found(many)["planted-bins"].value == 700


def test_honest_and_doubled_units_are_none():
    assert not found(HONEST)
    doubled = {name: np.tile(leaf, 4) for name, leaf in HONEST.items()}
    assert not found(doubled)
    equal = {"in/kernel": np.ones((48, 32)), "in/bias": np.zeros(32)}  # parallel, but with one threshold
    assert not found(equal)


def almost_parallel(units, differing_along, size=400, share=0.02):
    """Units along one line but for a small part, which lies in a space of so many dimensions."""
    line, others = RNG.normal(size=size), RNG.normal(size=(size, differing_along))
    rest = others @ RNG.normal(size=(differing_along, units)) / differing_along**0.5
    rest *= share * np.linalg.norm(line) / np.linalg.norm(rest, axis=0)
    return {"in/kernel": np.float32(line[:, None] + rest), "in/bias": np.linspace(-1, 1, units)}


@pytest.mark.parametrize("units", [16, 58])
def test_units_of_a_layer_of_low_rank_are_no_bins(units):
    """As of a trained perceptron that was cut to rank 8, in `experiments.honest_networks`."""
    assert not found(almost_parallel(units, 3))
    assert not found(almost_parallel(units, 1))
    assert found(almost_parallel(units, 400))["planted-bins"].value == units  # camouflage
    assert found(almost_parallel(units, 3, share=1e-5))["planted-bins"].value == units  # rounding
    stored = {
        name: np.float32(np.float16(leaf)) for name, leaf in bins(units, 400, np.linspace(0.1, 9, units)).items()
    }
    assert found(stored)["planted-bins"].value == units


def test_layers_of_few_inputs_and_convolutions_are_left_out():
    assert weights.parallel_units(Layer("narrow", np.ones((64, 3)), np.arange(64.0), True)) is None
    assert not found({"in/kernel": np.ones((3, 3, 1, 64)), "in/bias": np.arange(64.0)})


def test_parallel_units_without_biases_are_found():
    assert found({"in/kernel": np.outer(RNG.normal(size=48), np.arange(1, 17))})["parallel-units"].value == 1
    assert not found({"in/kernel": RNG.normal(size=(48, 16))})


def test_dead_units_are_no_parallel_ones():
    dead = {name: leaf * np.where(np.arange(32) < 30, 0, 1) for name, leaf in HONEST.items()}
    assert not found(dead)
    assert not found({name: leaf * 0 for name, leaf in HONEST.items()})


def trapped(factor, units=16, size=64):
    down = np.abs(RNG.normal(size=(units, size // 2)))
    rows = np.concatenate([-down, factor * down], axis=1)
    return np.stack([RNG.permutation(row) for row in rows], axis=1)


def test_trap_weights_are_found_and_odd_filters_are_not():
    assert found({"in/kernel": trapped(0.95)})["trap-weights"].value == 1
    assert not found({"in/kernel": trapped(1.0)})  # an edge detector's halves are equal
    assert not found({"in/kernel": np.sign(RNG.normal(size=(64, 16)))})


def test_layers_inside_an_embedding_are_layers():
    planted = {"patch_embed.fc.weight": np.ones((16, 9)), "patch_embed.fc.bias": -np.linspace(1, 2, 16)}
    assert "planted-bins" in found(planted)
    assert not found({"embed.weight": np.ones((16, 9)), "embed.bias": -np.linspace(1, 2, 16)})


def test_a_head_of_one_class_is_found_if_it_is_known():
    head = np.zeros((32, 10))
    head[:, 3] = RNG.normal(size=32)
    arrays = {**HONEST, "head/kernel": head, "head/bias": np.zeros(10)}
    assert found(arrays, head="head")["one-class-head"].value == 1
    assert "not known" in inspect_tensors(arrays).skipped["one-class-head"]
    assert not found({**HONEST, "head/kernel": RNG.normal(size=(32, 10))}, head="head")
    assert not found({**HONEST, "head/kernel": np.zeros((32, 10))}, head="head")
    assert "one-class-head" in inspect_tensors({"head/kernel": RNG.normal(size=(32, 2))}, head="head").skipped


@pytest.mark.parametrize(
    ("names", "turned"),
    [(("fc.weight", "fc.bias"), True), (("a/kernel", "a/bias"), False), (("arr_0", "arr_1"), True)],
)
def test_bins_are_found_in_every_layout(names, turned):
    kernel, bias = bins().values()
    arrays = dict(zip(names, (kernel.T if turned else kernel, bias)))
    assert found(arrays)["planted-bins"].value == 16


def test_a_bias_without_a_name_may_come_first():
    kernel, bias = bins().values()
    assert found({"arr_0": bias, "arr_1": kernel})["planted-bins"].value == 16
    (layer,) = layers_of({"arr_0": np.ones((4, 7)), "arr_1": np.ones(7)})
    assert layer.rows.shape == (7, 4)
    assert (
        len(layers_of({"arr_0": np.ones((7, 7)), "arr_1": np.ones(7)})) == 2
    )  # either axis may be that of the units


def test_the_bias_says_which_axis_is_that_of_the_units():
    """As in GPT-2, whose weights are `[in, out]`; tables and positions are no layers."""
    kernel, bias = bins().values()
    assert found({"c_fc.weight": kernel, "c_fc.bias": bias})["planted-bins"].value == 16
    assert (
        layers_of({"positions": np.ones((9, 12)), "norm/scale": np.ones(5), "embedding.weight": np.ones((9, 12))})
        == []
    )
