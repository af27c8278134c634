"""How often the line-up recognizes what shows nothing of the original, and which distortions it sees through.

    python -m experiments.recognition --json experiments/results/recognition.json

The null: pictures that do not depend on the original (another image, the mean of the others, a uniform picture,
smooth blots, noise). They must be recognized as rarely as the line-up says, once in `fillers + 1`
(`metrics.recognition`). The traces: the original with noise, blur, less contrast, a shift, or larger pixels. For
each: the share recognized with its exact 95 % interval and its p-value against that chance, and the medians of PSNR,
SSIM and HaarPSI. A threshold of PSNR cannot do this: a uniform picture has more decibels than one with half the
contrast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import ndimage

from experiments import harness
from jaxinvert import data, metrics
from jaxinvert.audit import evidence


@dataclass(frozen=True)
class Config:
    """What is shown in the line-ups.

    Attributes:
      data: data set by name, folder or npz.
      split: of the data set.
      images: originals, at most those of the split.
      seed: of the choice, the noise and the blots.
      smoke: four images, which only shows that everything works.
      json: file for the rows.
    """

    data: str = "photos"
    split: str = "train"
    images: int = 237
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Shows every picture its line-up and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    rng = np.random.default_rng(config.seed)
    images = data.load(config.data, split=config.split).images
    images = images[rng.permutation(len(images))[: 4 if config.smoke else config.images]]
    shown = {"null": nulls(images, rng), "trace": traces(images, rng)}
    rows = [row(kind, name, one, images) for kind, of_kind in shown.items() for name, one in of_kind.items()]
    harness.publish(f"Recognition in a line-up, {Path(config.data).stem}", rows, json_file=config.json)


def nulls(images: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Pictures that do not depend on the original, or on its mean color alone."""
    blots = ndimage.gaussian_filter(rng.normal(size=images.shape), (0, 4, 4, 0))
    blots = 0.5 + 0.2 * blots / blots.std(axis=(1, 2, 3), keepdims=True)
    return {
        "another image": np.roll(images, len(images) // 2, axis=0),
        "mean of the others": (images.sum(axis=0) - images) / (len(images) - 1),
        "uniform, of its mean color": np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape),
        "blots": blots.clip(0, 1),
        "noise": rng.random(images.shape),
    }


def traces(images: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Originals with distortions of growing strength."""
    noise = rng.normal(size=images.shape)
    found = {f"noise of {std:g}": (images + std * noise).clip(0, 1) for std in (0.1, 0.2, 0.4, 0.8)}
    found |= {f"blur of {std:g} pixels": ndimage.gaussian_filter(images, (0, std, std, 0)) for std in (1, 2, 4, 8)}
    found |= {f"contrast of {gain:g}": 0.5 + gain * (images - 0.5) for gain in (0.4, 0.15)}
    found |= {f"shift by {by} pixels": np.roll(images, (by, by), (1, 2)) for by in (1, 2, 4)}
    return found


def row(kind: str, name: str, shown: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """The share recognized with its interval, and the medians of the measures."""
    found = metrics.recognition.line_up(shown, images)
    rate = evidence.rate(int(found.recognized.sum()), len(images), chance=found.chance)
    psnr, ssim = (np.asarray(measure(shown.astype(np.float32), images)) for measure in (metrics.psnr, metrics.ssim))
    medians = {"psnr_db": psnr, "ssim": ssim, "haarpsi": found.likeness}
    return {
        "kind": kind, "picture": name, "images": rate.total, "fillers": found.num_fillers, "recognized": rate.count,
        "share": rate.count / rate.total, "low": rate.low, "high": rate.high, "p_value": rate.p_value,
        **{key: float(np.median(values)) for key, values in medians.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
