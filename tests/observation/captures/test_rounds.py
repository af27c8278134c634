"""Captured rounds: written without JAX, listed by client; tensors without names are matched by order and shape."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxinvert import models
from jaxinvert.integrations import capture
from jaxinvert.observation.captures import load_for_model, load_tree, open_round, without_update

ARRAYS = {"a.weight": np.ones((3, 2), np.float32), "a.bias": np.zeros(3, np.float16), "n": np.int64(7)}


def test_a_round_is_what_was_written(tmp_path):
    writer = capture.Writer(tmp_path / "round-0001", kind="delta", normalization="none")
    writer.params(ARRAYS)
    for client in ("10", "9", "site-a"):
        writer.client(client, ARRAYS, num_examples=2)
    writer.truth("9", np.full((2, 3, 4, 4), 255, np.uint8), np.array([1, 2]))
    found = open_round(tmp_path / "round-0001")
    assert [*found.updates] == ["9", "10", "site-a"]
    assert [*found.truths] == ["9"]
    assert found.facts.kind == "delta"
    assert dict(found.facts.clients) == {"9": 2, "10": 2, "site-a": 2}
    with np.load(found.truths["9"]) as truth:
        assert truth["inputs"].shape == (2, 4, 4, 3)
    tree = load_tree(found.updates["9"], ARRAYS)
    assert tree["a.weight"].shape == (3, 2)
    found.updates["10"].unlink()
    assert without_update(open_round(found.folder)) == ["10"]


def test_a_server_without_jax_can_write(tmp_path):
    code = (
        "import sys; sys.modules['jax'] = None; sys.modules['torch'] = None\n"
        "from jaxinvert.integrations import capture; import numpy as np\n"
        f"writer = capture.Writer({str(tmp_path)!r}); writer.params([np.ones(2)]); writer.client('1', [np.ones(2)])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert open_round(tmp_path).facts.normalization is None


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda writer: writer.params([np.zeros(2)]), "params.safetensors holds something else"),
        (lambda writer: writer.client("1", [np.zeros(2)]), "client-1.safetensors holds something else"),
        (lambda writer: writer.truth("1", np.ones((1, 4, 4, 3)), [2]), "truth-1.npz holds something else"),
        (lambda writer: writer.client("1", [np.ones(2)], num_examples=0), "num_examples is 0"),
    ],
)
def test_a_second_run_cannot_replace_what_is_there(second, message, tmp_path):
    for _ in range(2):  # the same content may come again
        writer = capture.Writer(tmp_path, normalization="none")
        writer.params([np.ones(2)])
        writer.client("1", [np.ones(2)], num_examples=1)
        writer.truth("1", np.ones((1, 4, 4, 3)), [1])
    before = files_in(tmp_path)
    with pytest.raises((FileExistsError, ValueError), match=message):
        second(capture.Writer(tmp_path, normalization="none"))
    assert files_in(tmp_path) == before


def test_a_second_run_with_the_same_parameters_must_have_the_same_facts(tmp_path):
    capture.Writer(tmp_path, kind="weights").params([np.ones(2)])
    first = capture.Writer(tmp_path, kind="delta")  # until clients came, their kind may become known
    first.client("1", [np.ones(2)])
    with pytest.raises(FileExistsError, match=r"says kind 'delta', now it is 'weights'.*new folder, or delete"):
        capture.Writer(tmp_path, kind="weights").client("2", [np.ones(2)])
    assert [*open_round(tmp_path).updates] == ["1"]


def test_normalized_truth_is_undone_or_refused(tmp_path):
    pixels = np.random.default_rng(0).uniform(size=(2, 5, 5, 3)).astype(np.float32)
    normalized, both = (pixels - 0.5) / 0.25, ((0.5,) * 3, (0.25,) * 3)
    capture.write_truth(tmp_path, "1", normalized.transpose(0, 3, 1, 2), [0, 1], normalization=both)
    with np.load(tmp_path / "truth-1.npz") as truth:
        np.testing.assert_allclose(truth["inputs"], pixels, atol=1e-6)
    with pytest.raises(ValueError, match="give their normalization"):
        capture.write_truth(tmp_path, "1", normalized, [0, 1])


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no folder of a captured round"),
        (lambda folder: capture.Writer(folder / "round-0001").params([]), "holds 1 rounds: give one of them"),
        (lambda folder: capture.Writer(folder).client("1", []), "no parameters"),
        (lambda folder: capture.Writer(folder).params([]), "no client"),
        (lambda folder: capture.Writer(folder).client("../1", []), "is no name of"),
        (lambda folder: capture.Writer(folder).client("1", {"x": np.array(["text"])}), "x holds <U4"),
        (lambda folder: capture.Writer(folder, kind="gradient"), "kind is 'gradient'"),
    ],
)
def test_an_incomplete_round_is_named(prepare, message, tmp_path):
    def opened():
        prepare(tmp_path / "captures")
        return open_round(tmp_path / "captures")

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened()


LIKE = {"conv.weight": jnp.zeros((2, 3)), "conv.bias": jnp.zeros(2), "head.weight": jnp.zeros((4, 2))}


def test_tensors_without_names_are_matched_by_order(tmp_path):
    values = [np.full(leaf.shape, i, np.float32) for i, leaf in enumerate(LIKE.values())]
    np.savez(tmp_path / "x.npz", *values)
    found = load_tree(tmp_path / "x.npz", LIKE, order=[*LIKE])
    assert {name: float(leaf.max()) for name, leaf in found.items()} == {
        "conv.weight": 0,
        "conv.bias": 1,
        "head.weight": 2,
    }
    np.savez(tmp_path / "x.npz", values[2], values[0], values[1])  # another order, but every shape is there once
    assert float(load_tree(tmp_path / "x.npz", LIKE, order=[*LIKE])["head.weight"].max()) == 2


def test_an_ambiguous_order_is_named(tmp_path):
    like = {"b": jnp.zeros(2), "a": jnp.zeros(2)}
    np.savez(tmp_path / "x.npz", np.ones(2), np.zeros(2))
    with pytest.raises(
        ValueError, match=r"both the order of the library and the alphabetical order .* arr_0 is b or a"
    ):
        load_tree(tmp_path / "x.npz", like, order=["b", "a"])
    with pytest.raises(ValueError, match="has 2 tensors without names, expected 3"):
        load_tree(tmp_path / "x.npz", LIKE, order=[*LIKE])
    np.savez(tmp_path / "x.npz", np.ones((3, 2)), np.ones(2), np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"in order arr_0 \(3, 2\) would be conv.weight \(2, 3\)"):
        load_tree(tmp_path / "x.npz", LIKE, order=[*LIKE])


def test_integers_may_name_the_parts_of_a_flax_tree(tmp_path):
    tree = {"layers": {0: {"kernel": np.ones((2, 2), np.float32)}, 11: {"bias": np.zeros(3, np.float32)}}}
    (tmp_path / "x.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    found = load_tree(tmp_path / "x.msgpack", tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_is_read_from_its_own_names_in_half_precision(dtype, tmp_path):
    model = models.create("mlp", input_shape=(4, 4, 1), num_classes=3)
    params = model.init(jax.random.key(0))
    stored = jax.tree.map(lambda leaf: np.asarray(leaf.astype(dtype)), params)
    writer = capture.Writer(tmp_path)
    writer.params({path: leaf for path, leaf in _named(stored)})
    found = load_for_model(open_params(tmp_path), model)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), found, stored)


def _named(tree):
    return [
        (jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in jax.tree.leaves_with_path(tree)
    ]


def open_params(folder):
    return folder / "params.safetensors"
