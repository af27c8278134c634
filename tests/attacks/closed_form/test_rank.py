"""Ranks of updates that are known by construction, and which closed forms they admit."""

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxinvert import cli, clients, models
from jaxinvert.attacks.closed_form.rank import matrix_rank, rank_above_noise, rank_report
from jaxinvert.cli.rank import show
from jaxinvert.types import Batch


def report_of(model, batch_size):
    params = model.init(jax.random.key(0))
    inputs = jax.random.uniform(jax.random.key(1), (batch_size, *model.input_shape))
    batch = Batch(inputs, jnp.arange(batch_size) % model.num_classes)
    update = jax.jit(clients.fedsgd(models.cross_entropy(model.apply)))(params, batch)
    return rank_report(update, batch_shape=inputs.shape)


def test_a_perceptron_shows_how_many_examples_it_saw():
    found = report_of(models.create("mlp", features=(20,), input_shape=(4, 4, 3)), 5)
    ranks = {tensor.name: (tensor.shape, tensor.rank) for tensor in found.tensors}
    assert ranks["params/dense_0/kernel"] == ((48, 20), 5)
    assert found.least_examples == 5
    assert found.num_unknowns == 5 * 48
    applies = {form.attack: form.applies for form in found.closed_forms}
    assert applies == {
        "dense-layer": True,
        "spear": True,
        "exact-batch": True,
        "cocktail-party": True,
        "dense-chain": True,
        "rgap": False,
        "april": False,
        "patch-embedding": False,
    }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_convolutional_network_admits_only_the_recursion_and_only_for_one(batch_size):
    found = report_of(models.create("lenet", input_shape=(8, 8, 3)), batch_size)
    assert {form.attack for form in found.closed_forms if form.applies} == ({"rgap"} if batch_size == 1 else set())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch_size", "applying"),
    [("plain", 1, {"april", "patch-embedding"}), ("pre-norm", 1, {"patch-embedding"}), ("plain", 2, set())],
)
def test_a_vision_transformer_admits_what_reads_position_embeddings(name, batch_size, applying):
    found = report_of(models.create(f"vit-{name}-4-48-1", input_shape=(8, 8, 3)), batch_size)
    assert {form.attack for form in found.closed_forms if form.applies} == applying
    assert found.least_examples == batch_size  # by the head, which reads one vector of each


def test_more_examples_than_units_admit_nothing_exact():
    found = report_of(models.create("mlp", features=(4,), input_shape=(4, 4, 3)), 6)
    assert not {form.attack for form in found.closed_forms if form.applies} & {
        "spear",
        "exact-batch",
        "cocktail-party",
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rank_is_that_of_the_factors_whatever_the_rounding(dtype):
    """Singular values 1 ... 1e-4: rounding of the entries leaves about 1e-8 of a float32 matrix beyond them."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(size, 6)))[0] for size in (80, 50))
    matrix = (left * np.logspace(0, -4, 6)) @ right.T
    assert matrix_rank(matrix.astype(dtype)) == 6


def test_empty_and_broken_updates_have_a_verdict():
    assert matrix_rank(np.zeros((3, 2))) == 0
    assert matrix_rank(np.full((3, 2), np.nan)) is None
    model = models.create("mlp", features=(20,), input_shape=(4, 4, 3))
    params = model.init(jax.random.key(0))
    for value, reason in ((0.0, "the update of params/dense_0 is zero"), (np.nan, "not finite")):
        found = rank_report(jax.tree.map(partial(jnp.full_like, fill_value=value), params), batch_shape=(2, 4, 4, 3))
        assert not any(form.applies for form in found.closed_forms)
        assert reason in found.closed_forms[0].reason
        assert found.num_equations == 0


@pytest.mark.slow
def test_the_command_prints_ranks_and_closed_forms_of_all_clients(capsys):
    arguments = ["--model", "mlp-32", "--size", "12", "--targets", "2", "--num-examples", "3"]
    assert cli.main(["rank", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "clients: 2; each has at least 3 examples" in printed
    assert "enough for a unique solution: all" in printed
    assert "exact-batch" in printed


def test_clients_that_differ_are_shown_apart():
    """One update of rank 2, one of rank 1 although it has two examples, and one that is not finite."""
    model = models.create("mlp", features=(20,), input_shape=(4, 4, 3))
    update = jax.tree.map(np.zeros_like, model.init(jax.random.key(0)))
    reports = []
    for kernel in (np.eye(48, 20) * (np.arange(20) < 2), np.ones((48, 20)), np.full((48, 20), np.nan)):
        update["params"]["dense_0"]["kernel"] = kernel.astype(np.float32)
        reports.append(rank_report(update, batch_shape=(2, 4, 4, 3)))
    console = Console(width=150, record=True, file=io.StringIO())
    show(console, reports)
    lines = console.export_text().splitlines()
    (kernel,) = [line for line in lines if "dense_0/kernel" in line]
    assert "1 to 2, not finite" in kernel
    (spear,) = [line for line in lines if "spear" in line]
    assert "1 of 3" in spear
    assert "rank 2 for 2 examples" in spear  # why it applies, not why not to others
    assert any("2 of 3" in line for line in lines if "dense-layer" in line)
    # 960 ones are more than 96 unknown pixels; two of a diagonal are not, nor is what is not finite.
    assert any("enough for a unique solution: 1 of 3" in line for line in lines)


def test_the_rank_above_noise():
    rng = np.random.default_rng(0)
    product = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 90))
    assert rank_above_noise(product.astype(np.float32)).rank == 7
    noisy = rank_above_noise(product + 0.05 * rng.normal(size=product.shape))
    assert noisy.rank == 7
    assert noisy.noise == pytest.approx(0.05, rel=0.05)
    assert rank_above_noise(np.full((3, 4), np.nan)).rank == 0
    assert rank_above_noise(np.zeros((3, 4))).rank == 0
