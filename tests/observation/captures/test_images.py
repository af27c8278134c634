"""True images and candidates: what is read, and what is refused."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.observation.captures import images, load_batch, load_images

SHAPE = (4, 3, 2)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)


def written(tmp_path, **changes):
    arrays = {"inputs": PIXELS / 255, "labels": np.array([2, 0], np.uint8), "names": np.array(["a", "b"])} | changes
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    (tmp_path / "truth").write_bytes(file.getvalue())
    return tmp_path / "truth"


@pytest.mark.parametrize("inputs", [PIXELS, PIXELS / 255, (PIXELS / 255).astype(np.float32)])
def test_a_batch(inputs, tmp_path):
    batch = load_batch(written(tmp_path, inputs=inputs), SHAPE, 3)
    np.testing.assert_allclose(batch.inputs, PIXELS / 255, atol=1e-7)
    assert (batch.inputs.dtype, batch.labels.dtype) == (jnp.float32, jnp.int32)
    assert batch.labels.tolist() == [2, 0]


def test_candidates_need_no_labels(tmp_path):
    candidates = load_images(written(tmp_path, labels=None), SHAPE)
    np.testing.assert_allclose(candidates, PIXELS / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": None}, "has no array 'inputs', only labels, names"),
        ({"labels": None}, "has no array 'labels'"),
        ({"inputs": np.zeros((2, 2, 4, 3))}, r"\(2, 2, 4, 3\), expected \(N, 4, 3, 2\); images are \[H, W, C\]"),
        ({"inputs": np.zeros((2, 4, 4, 2))}, r"\(2, 4, 4, 2\), expected \(N, 4, 3, 2\)$"),
        ({"inputs": np.zeros((0, *SHAPE))}, "expected"),
        ({"inputs": np.zeros(())}, "expected"),
        ({"inputs": np.zeros((2, *SHAPE), np.int32)}, "inputs are int32, expected floats in"),
        ({"inputs": PIXELS / 200}, r"inputs range over \[0.*expected \[0, 1\]"),
        ({"inputs": np.full((2, *SHAPE), np.nan)}, "inputs holds 48 values that are not finite"),
        ({"labels": np.array([0.0, 1.0])}, "labels are float64"),
        ({"labels": np.array([[0, 1]])}, r"labels are int64 \(1, 2\), expected integers"),
        ({"labels": np.array([0])}, "1 labels for 2 inputs"),
        ({"labels": np.array([0, 3])}, r"labels \[3\] are outside \[0, 3\)"),
        ({"labels": np.array([0, 2**63], np.uint64)}, "labels holds 9223372036854775808"),
    ],
)
def test_what_does_not_fit_is_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=rf"cannot read the true images .*truth: .*{message}"):
        load_batch(written(tmp_path, **changes), SHAPE, 3)


def test_more_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 4 * PIXELS.size - 1)
    with pytest.raises(ValueError, match=f"are {4 * PIXELS.size} bytes, the limit is {4 * PIXELS.size - 1}"):
        load_images(written(tmp_path), SHAPE)
