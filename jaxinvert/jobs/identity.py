"""Job names: a hash of everything that determines a job's result."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxinvert import models
from jaxinvert.data import folders
from jaxinvert.files import expanded
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.environment import versions

_FORMAT = 1
_MAX_FOLDER_BYTES = 64 << 30
"""A folder with more bytes of images is not hashed: it would take minutes."""
_ALWAYS_BEFORE = {
    "dropout": "eval",
    "head": None,
    "frozen": (),
    "personal": (),
    "lora_rank": None,
    "lora_layers": ("query", "value"),
    "local_momentum": 0.9,
    "precision": "highest",  # on a CPU, every precision is
}
"""What every job meant before these fields existed; stays as it is when a default changes."""


def job_name(config: JobConfig, digests: dict[Path, str] | None = None) -> str:
    """A hash of everything that determines a job's result: fields, versions, and contents of the named files.

    For a user's own model, the module's file is hashed, but not its imports.

    Args:
      config: the job.
      digests: cache of file digests; new digests are added.

    Raises:
      ValueError: if a file cannot be read.
    """
    digests = {} if digests is None else digests
    named = [config.model.checkpoint] if config.model.checkpoint else []
    named += [config.attacker.generator_file] if config.attacker.generator_file else []
    named += [models.source_of(config.model.name)] if models.is_external(config.model.name) else []
    paths = [*named, expanded(config.data.name)]
    for path in paths:
        if path not in digests and (path in named or path.exists()):
            digests[path] = digest(path)
    content = {
        "format": _FORMAT,
        "versions": versions(),
        "config": fields_of(config),
        "files": [digests.get(path) for path in paths],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]


def fields_of(config: JobConfig) -> dict[str, Any]:
    """The fields that are part of a job's name; without those that mean what every job meant before they existed."""
    plain = config.flat
    hyperparameters = {name: float(value) for name, value in config.attacker.hyperparameters.items()}
    plain |= {"settings": hyperparameters, "tv": None, "lr": None}
    if config.attacker.generator_file is None:  # keeps names from before generators existed
        del plain["generator"]
    for name, value in _ALWAYS_BEFORE.items():
        if plain[name] == value:
            del plain[name]
    if not config.defense.chain.names:  # keeps names from before defenses existed
        for name in ("defense", "defense_settings", "adaptive"):
            del plain[name]
    else:
        plain["defense_settings"] = {name: float(value) for name, value in config.defense.parameters.items()}
    return plain


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's images, which is what a data set reads of it.

    Raises:
      ValueError: if it cannot be read, is a device or pipe, whose reading may never end, or is a folder with too much
        in it, which is then refused before it is read.
    """
    try:
        if path.is_dir():
            inside = folders.list_images(path)
            if (size := sum(file.stat().st_size for file in inside)) > _MAX_FOLDER_BYTES:
                limit = f"expected at most {_MAX_FOLDER_BYTES >> 30} GiB; name a smaller folder"
                raise ValueError(f"{path} holds {size / 2**30:,.0f} GiB of images, {limit}")
            names = b"".join(os.fsencode(file.relative_to(path)) + f"\0{digest(file)}\n".encode() for file in inside)
            return hashlib.sha256(names).hexdigest()
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise ValueError(f"{path} is neither a file nor a folder")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
