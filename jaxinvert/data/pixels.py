"""Reads image files as square uint8 arrays, with limits on the memory of untrusted files; encodes PNG."""

import io
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
"""An image of more pixels is rejected before it is decoded; of half as many in WebP, which needs twice the memory. A
pixel costs up to 8 bytes in any mode: 512 MB in all."""
_FREE_PIXELS, _PIXELS_PER_BYTE = 6_000_000, 32
"""A file may claim so many pixels, and 32 more per byte of it, so that a bomb of a few kilobytes costs 48 MB.
Photographs have fewer than 16 pixels per byte."""
_STRIP_PIXELS = 1 << 20


def encode_png(image: np.ndarray, *, optimize: bool = False) -> io.BytesIO:
    """Encodes a uint8 `[H, W, C]` image (C is 1 or 3) losslessly, as the in-memory file that TFDS accepts."""
    png = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, format="PNG", optimize=optimize)
    png.seek(0)
    return png


def decode_png(png: bytes) -> np.ndarray:
    """Decodes `encode_png`'s bytes to uint8 `[H, W, C]`.

    Raises:
      ValueError: for pixels other than 8-bit gray or RGB, or too many of them; Pillow's exceptions pass through.
    """
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        _check_size(image, len(png))
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"an image has the mode {image.mode}, expected L or RGB")
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
      ValueError: the file is corrupt, has another format, or claims too many pixels for its size (`MAX_PIXELS` at
        most); the message names it.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        with warnings.catch_warnings():
            # Pillow warns of metadata that it skips, and of sizes between one and two times its own limit.
            warnings.simplefilter("ignore")
            square = _to_rgb(_central_square(path))
        return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    except Exception as error:  # Pillow's parsers raise anything for a damaged file
        raise ValueError(f"cannot read the image {path}: {error}") from error


def _check_size(image: Image.Image, num_bytes: int) -> None:
    """Refuses an image that claims too many pixels for the size of its file."""
    most = min(MAX_PIXELS, _FREE_PIXELS + _PIXELS_PER_BYTE * num_bytes) // (2 if image.format == "WEBP" else 1)
    if image.width * image.height > most:
        raise ValueError(
            f"it claims {image.width} x {image.height} pixels, the limit for its {num_bytes:,} bytes is {most:,}"
        )


def _central_square(path: pathlib.Path) -> Image.Image:
    """The central square of an image, upright; the rest of the image is freed."""
    with Image.open(path, formats=FORMATS) as image:
        _check_size(image, path.stat().st_size)
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
        side = min(image.size)
        if image.size == (side, side):
            return image
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts in strips, since conversions need several copies."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    converted = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(_strip_to_rgb(strip), (0, top))
    return converted


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: convert("RGB") would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
