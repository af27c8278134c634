"""What all examples share: the embedded photos as the clients' images, and the audit at the end."""

import argparse
import sys
from pathlib import Path

import numpy as np


def options(description: str, name: str) -> argparse.Namespace:
    """The options of an example: `out`, `clients` and `steps`.

    Args:
      description: the example's docstring, whose first line is shown by `--help`.
      name: of its default folder in `runs`.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    parser.add_argument("--clients", type=int, default=9, help="as many as the page names (usually 9), for a verdict")
    parser.add_argument("--steps", type=int, default=300, help="steps of the attack")
    found = parser.parse_args()
    found.out = found.out.resolve()
    return found


def save(folder: Path, num_clients: int) -> None:
    """Writes `photos.npz`: one image per client, `images [N, 32, 32, 3]` in bytes, and `labels [N]`."""
    from jaxinvert import data

    photos = data.load("photos", split=f"train[:{num_clients}]")
    folder.mkdir(parents=True, exist_ok=True)
    images = np.rint(photos.images * 255).astype(np.uint8)
    np.savez(folder / "photos.npz", images=images, labels=photos.labels.astype(np.int64))


def audit(capture: Path, example: Path, folder: Path, steps: int) -> int:
    """Audits a captured round of the network `net:make` in the example's folder; returns the exit status."""
    from jaxinvert.cli import main

    if str(example) not in sys.path:
        sys.path.insert(0, str(example))
    search = ["--attack", "spectral", "--restarts", "1", "--steps", str(steps)]
    return main(["audit", "--capture", str(capture), "--model", "net:make", *search, "--out", str(folder)])
