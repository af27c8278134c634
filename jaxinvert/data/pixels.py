"""Reads image files as square uint8 arrays, with limits on the memory of untrusted files; encodes PNG."""

import io
import pathlib
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
"""An image file that claims more pixels than this is rejected before it is decoded: 64 million are 192 MB."""


def encode_png(image: np.ndarray, *, optimize: bool = False) -> io.BytesIO:
    """Encodes a uint8 `[H, W, C]` image (C is 1 or 3) losslessly, as the in-memory file that TFDS accepts."""
    png = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, format="PNG", optimize=optimize)
    png.seek(0)
    return png


def decode_png(png: bytes) -> np.ndarray:
    """Decodes `encode_png`'s bytes to uint8 `[H, W, C]`."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def resize(image: np.ndarray, size: int | None) -> np.ndarray:
    """Resamples a uint8 `[H, W, C]` image (C is 1 or 3) to `[size, size, C]`; `None` keeps its size."""
    if size is None or image.shape[:2] == (size, size):
        return image
    pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(pil.resize((size, size), Image.Resampling.LANCZOS))
    return resized[..., None] if image.shape[-1] == 1 else resized


def read_square(path: pathlib.Path, size: int) -> np.ndarray:
    """Reads an image file as RGB: turned upright, center-cropped to a square, resampled with Lanczos.

    | file | becomes |
    | --- | --- |
    | EXIF orientation | applied |
    | gray, palette, CMYK, 1 bit | RGB |
    | 16 bits per channel | the upper 8 |
    | alpha | composited over white |
    | animation | its first frame |

    Args:
      path: a PNG, JPEG, WebP or BMP file, detected by its content, not by its name.
      size: side of the result in pixels.

    Returns:
      `[size, size, 3]` uint8.

    Raises:
      ValueError: the file is corrupt, has another format, or claims more than `MAX_PIXELS`; the message names it.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its own limit; ours is stricter and checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it claims {image.width} x {image.height} pixels, the limit is {MAX_PIXELS:,}")
            upright = ImageOps.exif_transpose(image)
            side = min(upright.size)
            left, top = (upright.width - side) // 2, (upright.height - side) // 2
            square = _to_rgb(upright.crop((left, top, left + side, top + side)))
            return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    except (
        OSError,
        SyntaxError,  # Pillow's PNG reader raises it for broken chunks
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: convert("RGB") would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
