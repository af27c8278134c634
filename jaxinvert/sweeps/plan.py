"""Reads sweep files and plans the batches in which their jobs are computed.

A sweep file is YAML. Its fields are those of `JobConfig`. `grid` gives the product of its values, `list` gives
alternatives, and every entry of a list may contain both::

    model: lenet
    steps: 300
    grid:
      tv: [1e-4, 1e-3, 1e-2]
      seed: [0, 1, 2]
    list:
      - attack: inverting-gradients
        grid: {lr: [0.03, 0.1]}
      - attack: see-through-gradients

Jobs that differ only in numbers (`jobs.compiled_form`) share one compiled program and are computed in batches. The
batches and their widths depend on the file alone, not on the progress of an earlier run or on the engine. Therefore a
resumed sweep yields the same records.
"""

import itertools
import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxinvert.jobs import JobConfig, compiled_form, job_name, read_yaml, typed
from jaxinvert.models import is_external

MAX_JOBS = 100_000
"""A plan of more jobs is refused before it is built, which takes a millisecond per job."""
_LANES_PER_BATCH = 64


class Job(NamedTuple):
    """One job of a sweep.

    Attributes:
      name: 24 hexadecimal digits, a hash of everything that determines the result.
      config: the job.
    """

    name: str
    config: JobConfig


class Batch(NamedTuple):
    """Jobs that are computed by one call of one compiled program.

    Attributes:
      jobs: at least one; all have the same compiled form and number of steps.
      width: number of jobs that the program takes; a smaller batch is padded with its last job.
    """

    jobs: tuple[Job, ...]
    width: int


class Plan(NamedTuple):
    """The jobs and batches of a sweep.

    Attributes:
      jobs: without duplicates, in the order of the file.
      batches: the same jobs in batches; batches of one program are consecutive.
      varied: the fields in which jobs differ; hyperparameters as `settings.NAME`, a defense's as `defense.NAME`.
    """

    jobs: tuple[Job, ...]
    batches: tuple[Batch, ...]
    varied: tuple[str, ...]

    @property
    def batches_by_program(self) -> list[list[Batch]]:
        """The batches grouped by compiled program, one for each compiled form and width."""
        together: dict[tuple[str, int], list[Batch]] = {}
        for batch in self.batches:
            together.setdefault((_identity(compiled_form(batch.jobs[0].config)), batch.width), []).append(batch)
        return list(together.values())


def read_plan(file: Path | str, *, import_models: bool = False) -> Plan:
    """Reads a sweep file, see the module docstring.

    Paths in it are relative to the working directory.

    Args:
      file: the YAML file.
      import_models: whether the file may name networks `module:function`, whose modules are imported and run.

    Raises:
      ValueError: if the file is no YAML of this form, has an invalid field, value or job, or names a module that may
        not be imported.
    """
    content = read_yaml(file)
    batch = content.pop("batch", None)
    if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
        raise ValueError(f"{file}: batch is {batch!r}, expected a whole number of at least 1")
    try:
        if (found := count_jobs(content)) > MAX_JOBS:
            raise ValueError(f"it has {found:,} jobs, more than {MAX_JOBS:,}")
        if not import_models and (named := _modules(content)):
            raise ValueError(
                f"it names the network {named[0]!r}, whose module would be imported and run: give --import-models if "
                "you trust the file and the module"
            )
        return make_plan(expand(content), batch=batch)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def expand(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the fields of every job of a block: its own fields, combined with its grid and the blocks of its list.

    Raises:
      ValueError: if `grid` or `list` is malformed.
    """
    own, grid, blocks = _parts(block)
    for values in itertools.product(*grid.values()):
        for item in blocks:
            inner = expand(item) if item else [{}]
            for fields_of_item in inner:
                yield {**own, **dict(zip(grid, values)), **fields_of_item}


def _modules(block: Mapping[str, Any]) -> list[str]:
    """The networks `module:function` that a block names, for its own jobs, in its grid or in its list."""
    own, grid, blocks = _parts(block)
    named = [value for value in (own.get("model"), *grid.get("model", ())) if is_external(str(value))]
    return [*map(str, named), *(name for item in blocks if item for name in _modules(item))]


def count_jobs(block: Mapping[str, Any]) -> int:
    """The number of jobs that `expand` yields, without building them.

    Raises:
      ValueError: see `expand`.
    """
    _, grid, blocks = _parts(block)
    return math.prod(map(len, grid.values())) * sum(count_jobs(item) if item else 1 for item in blocks)


def _parts(block: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list], list[dict[str, Any]]]:
    """A block's own fields, its grid and the blocks of its list, checked."""
    grid, blocks = block.get("grid", {}), block.get("list", [{}])
    own = {name: value for name, value in block.items() if name not in ("grid", "list")}
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ValueError(f"grid is {reprlib.repr(grid)}, expected lists of values, such as 'tv: [1e-3, 1e-2]'")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(item, dict) for item in blocks):
        raise ValueError(f"list is {reprlib.repr(blocks)}, expected entries such as '- attack: dlg'")
    if twice := sorted(map(str, own.keys() & grid.keys())):
        raise ValueError(f"{twice[0]} is given twice, as {reprlib.repr(own.get(twice[0]))} and in the grid")
    return own, grid, blocks


def make_plan(jobs: Iterator[Mapping[str, Any]] | Sequence[Mapping[str, Any]], *, batch: int | None = None) -> Plan:
    """Checks the fields of jobs and arranges them in batches.

    Args:
      jobs: fields of `JobConfig`, one mapping per job; duplicates are computed once.
      batch: maximal number of jobs per call; by default as many as give 64 restarts x targets.

    Raises:
      ValueError: for an invalid job, which the message names, for no jobs, or for more than `MAX_JOBS`.
    """
    unique: dict[str, Job] = {}
    digests: dict[Path, str] = {}
    for number, chosen in enumerate(jobs):
        if number == MAX_JOBS:
            raise ValueError(f"there are more than {MAX_JOBS:,} jobs")
        try:
            config = JobConfig.of(**typed(JobConfig, chosen))
        except ValueError as error:
            raise ValueError(f"job {number} {reprlib.repr(dict(chosen))}: {error}") from error
        name = job_name(config, digests)
        unique.setdefault(name, Job(name, config))
    if not unique:
        raise ValueError("there are no jobs")
    together: dict[str, dict[int, list[Job]]] = {}
    for one in unique.values():
        together.setdefault(_identity(compiled_form(one.config)), {}).setdefault(one.config.search.steps, []).append(
            one
        )
    batches = []
    for by_steps in together.values():
        config = next(iter(by_steps.values()))[0].config
        most = batch or max(1, _LANES_PER_BATCH // (config.data.targets * config.search.restarts))
        longest = max(map(len, by_steps.values()))
        width = -(-longest // -(-longest // most))  # batches of equal size, as far as possible
        for group in by_steps.values():
            batches += [Batch(tuple(group[i : i + width]), width) for i in range(0, len(group), width)]
    return Plan(tuple(unique.values()), tuple(batches), _varied([job.config for job in unique.values()]))


def varied_values(config: JobConfig, varied: Sequence[str]) -> dict[str, Any]:
    """The values of the fields that `Plan.varied` names."""
    flat = _flat(config)
    return {name: flat.get(name) for name in varied}


def _varied(configs: Sequence[JobConfig]) -> tuple[str, ...]:
    rows = [_flat(config) for config in configs]
    names = dict.fromkeys(name for row in rows for name in row)
    return tuple(name for name in names if len({_canonical(row.get(name)) for row in rows}) > 1)


def _flat(config: JobConfig) -> dict[str, Any]:
    """All fields; hyperparameters, given or default, as `settings.NAME`, defense parameters as `defense.NAME`."""
    plain = config.flat
    for name in ("settings", "tv", "lr", "defense_settings"):  # included below
        del plain[name]
    plain |= {f"settings.{name}": value for name, value in config.attacker.hyperparameters.items()}
    return plain | {f"defense.{name}": value for name, value in config.defense.parameters.items()}


def _identity(config: JobConfig) -> str:
    return _canonical(config.flat)


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)
