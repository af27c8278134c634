"""Parameters come back as they were, and a file that does not fit says which tensor."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxinvert import models

TREE = {"params": {"head": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}, "count": jnp.array(7)}


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "deep" / "tree.safetensors"
    models.save_checkpoint(path, TREE, {"model": "mine", "mean": (0.5, 0.25)})
    return path


def test_parameters_and_facts_come_back(stored):
    found = models.load_checkpoint(stored, jax.eval_shape(lambda: TREE))
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, found, TREE)
    assert models.read_facts(stored) == {"model": "mine", "mean": [0.5, 0.25]}


def test_a_model_of_the_zoo_answers_the_same(tmp_path):
    model = models.create("resnet20-4", input_shape=(16, 16, 3), width=2)
    params = model.init(jax.random.key(0))
    models.save_checkpoint(tmp_path / "net", params, {})
    found = models.load_checkpoint(tmp_path / "net", jax.eval_shape(model.init, jax.random.key(1)))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_files_from_elsewhere_have_no_facts_and_may_be_in_half_precision(tmp_path):
    save_file({"w": np.ones((2, 2), np.float16)}, tmp_path / "half")
    assert models.read_facts(tmp_path / "half") == {}
    found = models.load_checkpoint(tmp_path / "half", {"w": jnp.zeros((2, 2))})
    assert found["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"v": np.ones(3)}, "lacks params/w|it has v"),
        ({"w": np.ones(3), "x": np.ones(1)}, "it has x, expected only w"),
        ({"w": np.ones((3, 1))}, r"w has shape \(3, 1\), expected \(3,\)"),
        ({"w": np.ones(3, np.int32)}, "w is int32, expected float32"),
        ({"w": np.array([1, np.nan, 1])}, "w holds 1 values that are not finite"),
        ({"w": np.array([1, 1e300, 1])}, "w holds 1e.300, which float32 cannot hold"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensor(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        models.load_checkpoint(tmp_path / "file", {"w": jnp.zeros(3)})


def test_damaged_files_are_one_clear_error(stored, tmp_path):
    whole = stored.read_bytes()
    contents = {
        "empty": b"",
        "truncated": whole[:-4],
        "header": whole[:20],
        "oversized": (2**60).to_bytes(8, "little") + whole[8:],
        "pickle": pickle.dumps({"w": 1}),
        "text": b"not a checkpoint at all",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read the checkpoint .*{name}: "):
            models.load_checkpoint(tmp_path / name, TREE)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        models.load_checkpoint(tmp_path / "nowhere", TREE)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "cannot be read: Expecting"),
        ("[1]", "are no JSON object"),
        ("3", "are no JSON object"),
        ("[" * 5000, "nested deeper|Expecting value"),  # which of the two depends on the version of Python
        ('{"a":' * 33 + "1" + "}" * 33, "nested deeper"),
        ('{"model": "a", "model": "b"}', "twice"),
        ('{"mean": [NaN]}', "no number"),
        ('{"mean": [1e999]}', "outside of the range"),
        (f'{{"mean": [1{400 * "0"}]}}', "outside of the range"),
        ('{"model": "\\ud800"}', "surrogate"),
    ],
)
def test_damaged_facts_are_one_clear_error(facts, message, tmp_path):
    save_file({"w": np.ones(3)}, tmp_path / "file", metadata={"jaxinvert": facts})
    with pytest.raises(ValueError, match=f"its facts .*({message})"):
        models.read_facts(tmp_path / "file")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F9", "I32", "C64"])
def test_tensors_of_other_types_are_named(dtype, tmp_path):
    num_bytes = {"F4": 2, "I32": 16, "C64": 32}.get(dtype, 4)
    header = json.dumps({"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, num_bytes]}}).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))
    with pytest.raises(ValueError, match=f"cannot read the checkpoint .*({dtype}|int32|variant)"):
        models.load_checkpoint(tmp_path / "file", {"w": jnp.zeros(4)})


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    entry = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="twice"):
        models.load_checkpoint(tmp_path / "file", {"w": jnp.zeros(1)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("model", 3), ("num_classes", "10"), ("num_classes", 1.5), ("num_classes", 2_000_000_000)),
        *(("mean", 0.5), ("mean", [1e300]), ("mean", [10**19]), ("std", ["a"]), ("std", [0]), ("std", [True])),
    ],
)
def test_facts_of_the_wrong_kind_are_named(name, value, tmp_path):
    save_file({"w": np.ones(3)}, tmp_path / "file", metadata={"jaxinvert": json.dumps({name: value})})
    with pytest.raises(ValueError, match=f"its fact {name} is"):
        models.read_facts(tmp_path / "file")


def test_what_is_written_can_be_read(tmp_path):
    models.save_checkpoint(tmp_path / "file", TREE, {"loss": float("nan"), "rows": [{"loss": np.float32(0.5)}]})
    assert models.read_facts(tmp_path / "file") == {"loss": None, "rows": [{"loss": 0.5}]}


def test_facts_are_plain_json(stored):
    header = stored.read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["__metadata__"]["jaxinvert"] == '{"model": "mine", "mean": [0.5, 0.25]}'
