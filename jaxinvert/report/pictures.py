"""Draws originals and reconstructions side by side as one PNG, and encodes images for pages."""

import base64
import io
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from jaxinvert.files import write_atomically


def save_reconstructions_png(
    path: str | PathLike[str],
    *,
    truth: ArrayLike,
    reconstruction: ArrayLike,
    captions: Sequence[str] = (),
    columns: int | None = None,
    side: int | None = None,
    max_pairs: int = 120,
    title: str = "",
) -> None:
    """Draws originals and reconstructions side by side, small ones enlarged without smoothing.

    Args:
      path: the file to write.
      truth: `[N, H, W, C]` originals in [0, 1], `C` 1 or 3; clamped, and black where not finite.
      reconstruction: `[N, H, W, C]`, matched one-to-one with `truth`.
      captions: one text under each pair, at most two lines, such as `captions(summary)`; may be empty.
      columns: pairs per row; by default chosen for a landscape picture with few gaps.
      side: pixels to which smaller pictures are enlarged; by default 256 for up to four pairs, else 128.
      max_pairs: pairs drawn; a line states how many were omitted.
      title: text above the grid; may be empty.

    Raises:
      ValueError: if the shapes are not two equal `[N, H, W, C]`, or the captions are not 0 or N.
    """
    originals, rebuilt = as_byte_pairs(truth, reconstruction)
    count = len(originals)
    if len(captions) not in (0, count):
        raise ValueError(f"captions has {len(captions)} entries, expected 0 or {count}")
    if max_pairs < 1 or (columns or 1) < 1 or (side or 1) < 1:
        raise ValueError(f"max_pairs is {max_pairs}, columns {columns} and side {side}, expected at least 1")
    shown = min(count, max_pairs)
    side = side or (256 if shown <= 4 else 128)
    pairs = [(_tile(a, side), _tile(b, side)) for a, b in zip(originals[:shown], rebuilt[:shown])]
    tile_width, tile_height = pairs[0][0].size
    margin, inner, gutter, line, header = 24, 6, 28, 19, 22
    pair_width = 2 * (half := max(tile_width, 120)) + inner
    small, bold = _font(13), _font(17, "DejaVuSans-Bold")
    texts = [_wrapped(caption, small, pair_width, 2) for caption in captions[:shown]] or [[]] * shown
    row_height = tile_height + line * max(map(len, texts)) + 22
    columns = min(columns or _landscape_columns(shown, pair_width + gutter, row_height), shown)
    width = 2 * margin + columns * (pair_width + gutter) - gutter
    title_lines = _wrapped(title, bold, width - 2 * margin, 3)
    top = margin + (24 * len(title_lines) + 10 if title_lines else 0)
    height = top + header + -(-shown // columns) * row_height - 22 + margin + (line + 12 if count > shown else 0)

    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(title_lines):
        draw.text((margin, margin - 4 + 24 * i), text, font=bold, fill="#1c1b19")
    for i, ((left, right), lines) in enumerate(zip(pairs, texts)):
        x = margin + (i % columns) * (pair_width + gutter)
        y = top + header + (i // columns) * row_height
        if i < columns:
            draw.text((x, top), "original", font=small, fill="#5f5b54")
            draw.text((x + half + inner, top), "reconstruction", font=small, fill="#5f5b54")
        canvas.paste(left, (x, y))
        canvas.paste(right, (x + half + inner, y))
        for j, text in enumerate(lines):
            draw.text((x, y + tile_height + 5 + line * j), text, font=small, fill="#1c1b19")
    if count > shown:
        text = f"{count - shown:,} more of {count:,} left out"
        draw.text((margin, height - margin - line + 4), text, font=small, fill="#5f5b54")
    write_atomically(Path(path), lambda file: canvas.save(file, format="PNG"))


def as_byte_pairs(truth: ArrayLike, reconstruction: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Checks the shapes and converts both to uint8."""
    pairs = np.asarray(truth, dtype=np.float32), np.asarray(reconstruction, dtype=np.float32)
    shape, other = (images.shape for images in pairs)
    if len(shape) != 4 or shape != other or 0 in shape or shape[3] not in (1, 3):
        raise ValueError(f"truth is {shape}, reconstruction is {other}, expected two equal [N, H, W, C], C 1 or 3")
    clipped = (np.clip(np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0), 0, 1) for images in pairs)
    first, second = (np.rint(255 * images).astype(np.uint8) for images in clipped)
    return first, second


def data_uri(pixels: np.ndarray) -> str:
    """Encodes uint8 `[H, W, C]` as a PNG in a `data:` URI."""
    buffer = io.BytesIO()
    _as_image(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def flat_psnr(pixels: np.ndarray) -> float:
    """PSNR in dB of a uniform picture with the mean color; infinite if the original is uniform."""
    scaled = pixels / 255.0
    mse = float(np.mean((scaled - scaled.mean(axis=(0, 1))) ** 2))
    return -10 * math.log10(mse) if mse else math.inf


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _tile(pixels: np.ndarray, side: int) -> Image.Image:
    """Enlarges by an integer factor to at least `side` pixels; larger pictures are reduced to at most 256."""
    image = _as_image(pixels).convert("RGB")
    factor = -(-side // max(image.size))
    if factor > 1:
        return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    image.thumbnail((256, 256))
    return image


def _landscape_columns(count: int, width: int, height: int) -> int:
    def cost(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / 1.5)) + (rows * columns - count) / count

    return min(range(1, count + 1), key=cost)


def _font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib, so that pictures look the same on every machine."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Breaks text into at most `max_lines` lines of at most `width` pixels; longer text ends in an ellipsis."""
    rest = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())[:400]
    lines: list[str] = []
    while rest:
        fits = len(rest)
        while fits > 1 and font.getlength(rest[:fits]) > width:
            fits -= 1
        if fits < len(rest) and len(lines) == max_lines - 1:
            return [*lines, rest[: max(fits - 1, 1)].rstrip() + "…"]
        if fits < len(rest) and " " in rest[: fits + 1]:
            fits = rest.rindex(" ", 0, fits + 1)
        lines.append(rest[:fits].rstrip(" ·"))
        rest = rest[fits:].lstrip(" ·")
    return lines
