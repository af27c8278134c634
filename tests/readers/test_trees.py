"""Trees come back from every format as they were written, and what does not fit is named."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from jaxinvert.observation.captures import load_tree
from tests.readers.writers import WRITERS, flat, npz_bytes, safetensors_bytes

RNG = np.random.default_rng(0)
TREE = {
    "params": {
        "conv": {"kernel": RNG.normal(size=(3, 3, 2, 4)).astype(np.float32)},
        "head": {"kernel": RNG.normal(size=(5, 3)).astype(np.float32), "bias": np.float32([0, 1, -2])},
        "scale": np.float32(2.5),
    },
    "batch_stats": {"mean": np.float32([1, 2, 3, 4])},
}
LIKE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))


def written(tmp_path, content):
    path = tmp_path / "captured.bin"  # says nothing about the format
    path.write_bytes(content)
    return path


def changed(**leaves):
    """`TREE` with leaves replaced, added, or (`None`) left out; "__" stands for "/"."""
    content = flat(TREE) | {name.replace("__", "/"): leaf for name, leaf in leaves.items()}
    return traverse_util.unflatten_dict({k: leaf for k, leaf in content.items() if leaf is not None}, sep="/")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=np.dtype)
@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(name, dtype, tmp_path):
    stored = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), TREE)
    found = load_tree(written(tmp_path, WRITERS[name](stored)), LIKE)
    assert jax.tree.structure(found) == jax.tree.structure(LIKE)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(stored)):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, expected.astype(np.float32))


def test_the_type_is_that_of_the_known_tree(tmp_path):
    path = written(tmp_path, npz_bytes({"w": np.float64([1.0, 1 + 2**-12]), "n": np.uint8([3, 4])}))
    found = load_tree(path, {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.zeros(2, jnp.int32)})
    assert (found["w"].dtype, found["n"].dtype) == (jnp.bfloat16, jnp.int32)
    assert found["w"].tolist() == [1.0, 1.0]
    assert found["n"].tolist() == [3, 4]


def test_big_endian_and_fortran_order(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    for stored in (matrix.astype(">f4"), np.asfortranarray(matrix)):
        found = load_tree(written(tmp_path, npz_bytes({"w": stored})), {"w": jnp.zeros((2, 3))})
        np.testing.assert_array_equal(found["w"], matrix)


@pytest.mark.parametrize("separator", "/.")
@pytest.mark.parametrize("prefix", ["params", None])
def test_other_spellings_of_a_path(prefix, separator, tmp_path):
    names = flat(TREE)
    spelled = {
        (name if prefix else name.removeprefix("params/")).replace("/", separator): names[name] for name in names
    }
    found = load_tree(written(tmp_path, safetensors_bytes(spelled)), LIKE)
    jax.tree.map(np.testing.assert_array_equal, found, TREE)


def test_running_statistics_may_be_left_out_where_that_is_said(tmp_path):
    path = written(tmp_path, npz_bytes({"params": TREE["params"]}))
    found = load_tree(path, LIKE, may_lack=("batch_stats",))
    assert found["batch_stats"]["mean"].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="it lacks batch_stats/mean: it has params/conv/kernel"):
        load_tree(path, LIKE)
    with pytest.raises(ValueError, match="it lacks params/scale"):
        load_tree(written(tmp_path, npz_bytes(changed(params__scale=None))), LIKE, may_lack=("params",))


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"params__scale": None, "params__head__bias": None}, "it lacks params/head/bias, params/scale: it has"),
        ({"params__x": np.ones(1), "y": np.ones(1)}, "it has params/x, y, expected only batch_stats/mean,"),
        ({f"x{i}": np.ones(1) for i in range(9)}, "it has x0, x1, x2, x3 and 5 more, expected only"),
        ({"conv.weight": np.ones(1)}, "it has conv.weight, expected only .*README"),
        ({"head.bias": np.ones(3)}, "both params/head/bias and head.bias|both head.bias and params/head/bias"),
        ({"params__head__bias": np.ones(4)}, r"bias has shape \(4,\), expected \(3,\)$"),
        ({"params__head__kernel": np.ones((3, 5))}, r"\(3, 5\), expected \(5, 3\): its axes are permuted"),
        ({"params__conv__kernel": np.ones((4, 2, 3, 3))}, r"expected \(3, 3, 2, 4\): its axes are permuted"),
        ({"params__head__bias": np.ones(3, np.int64)}, "bias is int64, expected float32"),
        ({"params__head__bias": np.ones(3, bool)}, "bias is bool, expected float32"),
        ({"params__head__bias": np.float64([0, np.nan, np.inf])}, "bias holds 2 values that are not finite, such as"),
        ({"params__head__bias": np.float64([0, 1e39, 0])}, r"bias holds 1e\+39, which float32 cannot hold"),
        (
            {"params__scale": np.float16(np.nan), "batch_stats__mean": np.full(4, -1e300)},
            "mean holds .*; params/scale",
        ),
    ],
)
def test_what_does_not_fit_is_named(leaves, message, tmp_path):
    path = written(tmp_path, safetensors_bytes(changed(**leaves)))
    with pytest.raises(ValueError, match=rf"cannot read the parameters .*captured\.bin: .*({message})"):
        load_tree(path, LIKE, what="parameters")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.complex64([1, 2, 3]), "is complex64"),
        (np.array(["a", "b", "c"]), "is str"),
        (np.array([{}, 1, 2]), "is object, expected float32"),
        (np.array([(1, 2)] * 3, dtype=[("a", "f4"), ("b", "f4")]), "not that of a plain array"),
        (np.longdouble([1, 2, 3]), "is .*float|is longdouble"),
    ],
)
def test_other_types_of_npz_files_are_refused(stored, message, tmp_path):
    if stored.dtype == np.float64:
        pytest.skip("this platform has no longer double")
    with pytest.raises(ValueError, match=message):
        load_tree(written(tmp_path, npz_bytes({"w": stored})), {"w": jnp.zeros(3)})


def test_an_integer_must_fit(tmp_path):
    path = written(tmp_path, npz_bytes({"n": np.int64(2**40)}))
    with pytest.raises(ValueError, match="n holds 1099511627776, which int32 cannot hold"):
        load_tree(path, {"n": jnp.zeros((), jnp.int32)})
    with pytest.raises(ValueError, match="n is int64, expected bool"):
        load_tree(path, {"n": jnp.zeros((), bool)})


def test_the_axes_that_the_readme_gives_for_pytorch():
    """A convolution, a dense layer on its flattened output, and a head: the same function in either layout."""
    rng = np.random.default_rng(1)
    inputs, conv = rng.normal(size=(2, 3, 5, 6)).astype(np.float32), rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    features = jax.lax.conv_general_dilated(inputs, conv, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    c, h, w = features.shape[1:]
    first, head = rng.normal(size=(7, c * h * w)).astype(np.float32), rng.normal(size=(3, 7)).astype(np.float32)
    expected = features.reshape(2, -1) @ first.T @ head.T

    ours = jax.lax.conv_general_dilated(
        inputs.transpose(0, 2, 3, 1),
        conv.transpose(2, 3, 1, 0),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    first_kernel = first.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(h * w * c, -1)
    np.testing.assert_allclose(ours.reshape(2, -1) @ first_kernel @ head.T, expected, rtol=1e-4, atol=1e-4)
