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
        ({"v": np.ones(3)}, "lacks w"),
        ({"w": np.ones(3), "x": np.ones(1)}, "also has x"),
        ({"w": np.ones((3, 1))}, r"w has shape \(3, 1\), expected \(3,\)"),
        ({"w": np.ones(3, np.int32)}, "w is int32, expected float32"),
        ({"w": np.array([1, np.nan, 1])}, "w holds values that are not finite"),
        ({"w": np.array([1, 1e300, 1])}, "w holds values that are not finite"),
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
        with pytest.raises(ValueError, match=f"{name} is not a whole safetensors file"):
            models.load_checkpoint(tmp_path / name, TREE)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        models.load_checkpoint(tmp_path / "nowhere", TREE)


@pytest.mark.parametrize("facts", ["{", "[1]", "3"])
def test_damaged_facts_are_one_clear_error(facts, tmp_path):
    save_file({"w": np.ones(3)}, tmp_path / "file", metadata={"jaxinvert": facts})
    with pytest.raises(ValueError, match="its facts are no JSON object"):
        models.read_facts(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "value"), [("model", 3), ("num_classes", "10"), ("num_classes", 1.5), ("mean", 0.5), ("std", ["a"])]
)
def test_facts_of_the_wrong_kind_are_named(name, value, tmp_path):
    save_file({"w": np.ones(3)}, tmp_path / "file", metadata={"jaxinvert": json.dumps({name: value})})
    with pytest.raises(ValueError, match=f"its fact {name} is"):
        models.read_facts(tmp_path / "file")


def test_facts_are_plain_json(stored):
    header = stored.read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["__metadata__"]["jaxinvert"] == '{"model": "mine", "mean": [0.5, 0.25]}'
