"""Names and layouts of another library's files against the leaves of our tree."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxinvert import models
from jaxinvert.models.tensors import nested
from jaxinvert.observation import captures

RNG = np.random.default_rng(0)


def torch_like():
    """A network whose files look like PyTorch's: OIHW, [K, M], tied tensors, a dense layer on pixels, a counter."""
    tensors = (
        models.Tensor("conv.weight", "params/conv/kernel", "conv"),
        models.Tensor("first.weight", "params/first/kernel", "pixels", (2, 3, 4)),
        models.Tensor("head.weight", "params/head/kernel", "dense"),
        models.Tensor("tied.weight", "params/head/kernel", "dense"),
        models.Tensor("norm.num_batches_tracked", "buffers/norm/num_batches_tracked"),
    )
    files = {
        "conv.weight": RNG.normal(size=(8, 3, 5, 7)).astype(np.float32),
        "first.weight": RNG.normal(size=(6, 24)).astype(np.float32),
        "head.weight": RNG.normal(size=(10, 6)).astype(np.float32),
        "norm.num_batches_tracked": np.int32(3),
    }
    files["tied.weight"] = files["head.weight"]
    tree = nested({"params/conv/kernel": np.zeros((5, 7, 3, 8)), "params/first/kernel": np.zeros((24, 6))})
    tree["params"]["head"] = {"kernel": np.zeros((6, 10))}
    tree["buffers"] = {"norm": {"num_batches_tracked": np.int32(0)}}
    net = models.from_functions(
        lambda key: jax.tree.map(jax.numpy.asarray, tree),
        lambda p, x: x,
        name="net",
        input_shape=(2, 3, 4),
        num_classes=10,
    )
    return net._replace(tensors=tensors), files


def test_files_become_our_layout_and_back():
    model, files = torch_like()
    tree = models.from_named(model, files)
    np.testing.assert_array_equal(tree["params"]["conv"]["kernel"], files["conv.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(tree["params"]["head"]["kernel"], files["head.weight"].T)
    image = RNG.normal(size=(2, 3, 4)).astype(np.float32)  # H, W, C; PyTorch flattens C, H, W
    theirs = files["first.weight"] @ image.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(image.ravel() @ tree["params"]["first"]["kernel"], theirs, rtol=1e-5)
    assert int(tree["buffers"]["norm"]["num_batches_tracked"]) == 3
    back = models.to_named(model, tree)
    assert back.keys() == files.keys()
    for name, value in files.items():
        np.testing.assert_array_equal(back[name], value)
    assert {name: shape.shape for name, shape in models.named_shapes(model).items()} == {
        name: value.shape for name, value in files.items()
    }


def test_what_is_missing_unknown_or_misshapen_is_named():
    model, files = torch_like()
    part = {"head.weight": files["head.weight"]}
    with pytest.raises(ValueError, match="also has the tensors conv"):
        models.from_named(model, part)
    tree = models.from_named(model, part, may_lack=True)
    assert not tree["params"]["conv"]["kernel"].any()
    assert tree["params"]["head"]["kernel"].any()
    with pytest.raises(ValueError, match="has no tensor 'fc"):
        models.from_named(model, {**files, "fc.weight": files["head.weight"]})
    with pytest.raises(ValueError, match=r"'head\.weight' has shape \(6, 10\), expected \(10, 6\)"):
        models.from_named(model, {**files, "head.weight": files["head.weight"].T})


@pytest.mark.parametrize("sent", [["tied.weight"], ["head.weight"], ["tied.weight", "head.weight"]])
def test_a_partial_update_may_hold_any_of_tied_tensors(tmp_path, sent):
    model, files = torch_like()
    save_file({name: files[name] for name in sent}, tmp_path / "update.safetensors")
    tree = captures.load_for_model(tmp_path / "update.safetensors", model, partial=True)
    np.testing.assert_array_equal(tree["params"]["head"]["kernel"], files["head.weight"].T)
    assert not tree["params"]["conv"]["kernel"].any()


def test_shapes_are_traced_once_for_all_tensors(monkeypatch):
    model, files = torch_like()
    calls, trace = [], jax.eval_shape
    monkeypatch.setattr(jax, "eval_shape", lambda *args: calls.append(args) or trace(*args))
    models.from_named(model, files)
    assert len(calls) == 2  # of the parameters, and of the tensors


def test_flax_names_are_paths():
    model = models.mlp(input_shape=(2, 2, 3), num_classes=3, features=(5,))
    params = model.init(jax.random.key(0))
    files = models.to_named(model, params)
    assert "params/head/kernel" in files
    jax.tree.map(np.testing.assert_array_equal, models.from_named(model, files), params)
