"""Writes one self-contained HTML page about captured updates whose true images are not available."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit import Explained
from jaxinvert.files import save_bytes
from jaxinvert.report.pictures import as_byte_pairs, data_uri
from jaxinvert.report.templates import render
from jaxinvert.report.wording import flattened

_MAX_PICTURES, _MAX_CONTROLS = 60, 12
_LEFT = 0.5
"""An update is reproduced if no more is left unexplained than this share of what is left of any random update."""


class Figure(NamedTuple):
    """A reconstruction as a `data:` URI, its client, example and class, and the explained share of the update."""

    address: str
    client: int
    example: int
    label: int | None
    share: float


def save_capture_html(
    path: str | PathLike[str],
    *,
    found: Mapping[str, tuple[jobs.JobConfig, Explained]],
    title: str = "",
    command: str = "",
) -> None:
    """Writes one self-contained HTML page.

    Args:
      path: the file to write.
      found: for each attacker, the job and its result.
      title: name of the captured updates.
      command: command that reproduces the result.
    """
    config, first = next(iter(found.values()))
    reproduced = int(np.sum(1 - first.share <= _LEFT * (1 - first.share_of_noise.max())))
    attackers = [
        {
            "name": name,
            "height": one.reconstruction.shape[2],
            "share": one.share.tolist(),
            "share_of_noise": one.share_of_noise.tolist(),
            "figures": _figures(one.reconstruction, one.labels, one.share)[:_MAX_PICTURES],
            "controls": _figures(one.on_noise, None, one.share_of_noise)[:_MAX_CONTROLS],
        }
        for name, (_, one) in found.items()
    ]
    fields: dict[str, Any] = {name: value for name, value in vars(config).items()}
    page = render(
        "capture.html.jinja",
        attackers=attackers, reproduced=reproduced, headline=_headline(reproduced, len(first.share)),
        title=title, command=command, assumptions=first.assumptions,
        config=flattened(fields), machine=[("device", jobs.device_name()), *flattened(jobs.versions())],
    )  # fmt: skip
    save_bytes(Path(path), page)


def _headline(reproduced: int, total: int) -> str:
    """What a person can conclude: how many updates are reproduced better than any random one."""
    if total == 1:
        said = "The captured update is" if reproduced else "The captured update is not"
    else:
        said = f"{'All' if reproduced == total else f'{reproduced:,} of' if reproduced else 'None of'} {total:,}"
        said += f" captured updates {'is' if reproduced < 2 else 'are'}"
    which = "it" if reproduced == 1 else "them"
    return f"{said} reproduced by pictures{f': treat {which} as leaked' if reproduced else ''}"


def _figures(images: np.ndarray, labels: np.ndarray | None, share: np.ndarray) -> list[Figure]:
    """All pictures of all clients, in order."""
    pixels, _ = as_byte_pairs(images.reshape(-1, *images.shape[2:]), images.reshape(-1, *images.shape[2:]))
    size = images.shape[1]
    return [
        Figure(
            data_uri(one),
            i // size,
            i % size,
            None if labels is None else int(labels[i // size, i % size]),
            float(share[i // size]),
        )
        for i, one in enumerate(pixels)
    ]
