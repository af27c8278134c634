"""The name of a job: a hash of all that determines its result."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

from jaxinvert.job.config import JobConfig

_FORMAT = 1


def job_name(config: JobConfig, digests: dict[Path, str] | None = None) -> str:
    """The hash of all that determines a job's result: fields, hyper-parameters, and the files that they name.

    Args:
      config: the job.
      digests: of files that were hashed before; is added to.

    Raises:
      ValueError: if a file is not there.
    """
    digests = {} if digests is None else digests
    paths = [config.checkpoint] if config.checkpoint else []
    paths += [Path(config.data)] if Path(config.data).is_file() else []
    for path in paths:
        if path not in digests:
            digests[path] = digest(path)
    plain = {field.name: getattr(config, field.name) for field in fields(JobConfig)}  # none of a subclass's
    content = {
        "format": _FORMAT,
        "config": {**plain, "settings": config.hyperparameters(), "tv": None, "lr": None},
        "files": [digests[path] for path in paths],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
      ValueError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
