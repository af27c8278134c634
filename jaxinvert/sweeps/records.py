"""Files of a sweep: one checksummed record per job, failures, a log, and a summary table.

    DIR/plan.json             the jobs, and the fields in which they differ
    DIR/records/NAME.json     fields, results, and the checksums of this file and the next
    DIR/records/NAME.npz      truth and reconstruction [N, H, W, C], and the history of the attack loss
    DIR/failures/NAME.json    fields and traceback of a job that failed in the last run
    DIR/log.jsonl             time, device and speed of the batches
    DIR/summary.parquet       one row per image of every record

Time and device are in the log, not in the records: a job computed twice with the same plan on the same kind of
machine gives the same bytes. The arrays are written before the JSON file, whose presence means that the record is
complete.
"""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from jaxinvert import files
from jaxinvert.escaping import visible
from jaxinvert.jobs import JobConfig, Outcome, versions
from jaxinvert.readers.json_files import parse_json, printable, read_regular
from jaxinvert.sweeps.plan import Job, Plan, varied_values
from jaxinvert.sweeps.record_schema import check_failure, check_plan, check_record

_MAX_PLAN_BYTES, _MAX_RECORD_BYTES, _MAX_ARRAY_BYTES = 256 << 20, 16 << 20, 1 << 30
_MOST_COMPRESSED = 32
"""Bytes of images that a byte of a large record may hold: more than images have, less than in a hostile file."""
_VOLATILE = ("seconds_compile", "seconds_start", "seconds_run", "steps_per_second", "interrupted")


class Record(NamedTuple):
    """The result of a finished job.

    Attributes:
      name: name of the job.
      config: its fields.
      summary: `Outcome.summary` without entries that differ between runs.
      arrays: `truth`, `reconstruction` `[N, H, W, C]`, `history_step [P]`, `history_best_loss [P, T, R]`.
    """

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    arrays: dict[str, np.ndarray]


def make_record(job: Job, outcome: Outcome, *, batch_size: int) -> Record:
    """Makes the record of a job that was computed in a batch.

    Args:
      job: the job.
      outcome: its result.
      batch_size: number of jobs that the compiled program computed at once.
    """
    summary = {name: value for name, value in outcome.summary.items() if name not in (*_VOLATILE, "config")}
    history = {f"history_{name}": values for name, values in outcome.history.items()}
    arrays = {"truth": outcome.truth, "reconstruction": outcome.reconstruction, **history}
    return Record(job.name, _fields(job.config), summary | {"jobs_in_program": batch_size}, arrays)


def write_record(folder: Path, record: Record) -> None:
    """Writes a record atomically and removes the job's earlier failure.

    Raises:
      OSError: if the disk is full or not writable.
    """
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **record.arrays)
    files.save_bytes(_arrays_file(folder, record.name), packed.getvalue())
    content = files.plain(
        {
            "name": record.name,
            "config": record.config,
            "summary": record.summary,
            "arrays_sha256": hashlib.sha256(packed.getbuffer()).hexdigest(),
        }
    )
    files.save_json(_json_file(folder, record.name), {**content, "sha256": _checksum(content)})
    _failure_file(folder, record.name).unlink(missing_ok=True)


def read_record(folder: Path | str, name: str) -> Record:
    """Reads a record and verifies its checksums.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if any part of it was changed or lost.
    """
    folder = Path(folder)
    content = _read_checked(folder, name)
    file = _arrays_file(folder, name)
    written = file.stat().st_size if file.exists() else 0
    arrays = files.load_arrays(file, max_bytes=max(_MAX_ARRAY_BYTES, _MOST_COMPRESSED * written))
    shape = (len(content["summary"]["images"]), *arrays.get("truth", np.empty(0)).shape[1:])
    for part in ("truth", "reconstruction"):
        found = arrays.get(part, np.empty(0))
        if found.shape != shape or len(shape) != 4 or 0 in shape or shape[3] not in (1, 3) or found.dtype.kind != "f":
            raise ValueError(f"{part} of record {name} is {found.dtype} {found.shape}, expected floats [N, H, W, C]")
    return Record(name, content["config"], content["summary"], arrays)


class Recorded(NamedTuple):
    """Which jobs have a record.

    Attributes:
      whole: names of the jobs with a complete record.
      damaged: what is wrong with the others', by name.
    """

    whole: set[str]
    damaged: dict[str, str]


def recorded(folder: Path, names: Iterable[str]) -> Recorded:
    """Verifies the records of these jobs."""
    found = Recorded(set(), {})
    for name in names:
        try:
            _read_checked(folder, name)
            found.whole.add(name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            found.damaged[name] = str(error)
    return found


def warn_of_damage(damaged: Mapping[str, str], consequence: str) -> None:
    """Says in one line how many records are damaged, and what is wrong with the first; nothing if there are none."""
    if damaged:
        first, others = next(iter(damaged.values())), len(damaged) - 1
        more = f" (and {others} more)" if others else ""
        warnings.warn(f"{first}{more}: {consequence}", files.KeptFileWarning, stacklevel=2)


def records_of(folder: Path | str) -> Iterator[Record]:
    """Iterates over the complete records of a sweep, in the order of its plan.

    Raises:
      ValueError: if `folder` holds no sweep.
    """
    for name in read_plan_file(Path(folder))["jobs"]:
        try:
            yield read_record(folder, name)
        except (OSError, ValueError):
            continue


def write_failure(folder: Path, job: Job, traceback: str) -> None:
    """Writes the traceback of a failed job."""
    content = {"name": job.name, "config": _fields(job.config), "traceback": traceback}
    files.save_json(_failure_file(folder, job.name), content)


def failures_of(folder: Path | str) -> list[dict[str, Any]]:
    """`name`, `config` and `traceback` of the jobs that failed in the last run."""
    found = []
    for file in sorted((Path(folder) / "failures").glob("*.json")):
        with contextlib.suppress(ValueError):  # a damaged file; the job is retried anyway
            failure = _load_json(file, {"name": str, "config": dict, "traceback": str})
            check_failure(failure)
            found.append(failure)
    return found


def write_plan_file(folder: Path, plan: Plan) -> None:
    """Writes the list of jobs of the sweep, and the versions that are part of their names."""
    jobs = {job.name: varied_values(job.config, plan.varied) for job in plan.jobs}
    files.save_json(folder / "plan.json", {"varied": plan.varied, "jobs": jobs, "versions": versions()})


def refuse_another_sweep(folder: Path, plan: Plan) -> None:
    """Keeps the records of another sweep from being orphaned.

    Raises:
      ValueError: if the folder has records of jobs that are not in the plan; the message says whether versions
        differ, which are part of a job's name.
    """
    if not (folder / "plan.json").is_file():
        return
    try:
        before = read_plan_file(folder)
    except ValueError as error:
        warnings.warn(f"{error}: written anew", files.KeptFileWarning, stacklevel=2)
        return
    names = {job.name for job in plan.jobs}
    others = recorded(folder, before["jobs"].keys() - names).whole
    if not others:
        return
    then, now = before.get("versions", {}), versions()
    changed = [
        f"{name} {then.get(name, 'before 0.2.0')}, now {now[name]}" for name in now if then.get(name) != now[name]
    ]
    why = f"made with {'; '.join(changed)}" if changed else "of jobs that are not in this one"
    raise ValueError(
        f"{folder} holds {len(others)} records of a sweep {why}: choose another folder for this one"
        f"{'' if changed else ', or add its jobs to these'}"
    )


def read_plan_file(folder: Path) -> dict[str, Any]:
    """Reads `varied`, the fields in which jobs differ, and `jobs`, the values of these fields by job name.

    Raises:
      ValueError: if `folder` holds no sweep.
    """
    try:
        content = _load_json(folder / "plan.json", {"varied": list, "jobs": dict}, max_bytes=_MAX_PLAN_BYTES)
    except OSError as error:
        raise ValueError(f"{folder} holds no sweep: {error}") from error
    try:
        check_plan(content)
    except ValueError as error:
        raise ValueError(f"{folder / 'plan.json'} is damaged: {printable(str(error))}") from error
    # Values tell settings apart, so they are hashable.
    jobs = {
        name: {field: ", ".join(map(str, one)) if isinstance(one, list) else one for field, one in values.items()}
        for name, values in content["jobs"].items()
    }
    return content | {"jobs": jobs}


def append_log(folder: Path, entry: Mapping[str, Any]) -> None:
    """Appends a line to the log, on a new line even after a line that a crash truncated."""
    files.append_line(folder / "log.jsonl", json.dumps(files.plain(entry)))


def summarize(folder: Path | str) -> list[dict[str, Any]]:
    """Summarizes a sweep with one row per image: job name, fields in which jobs differ, and results; also as Parquet.

    Returns:
      The rows of `summary.parquet`, which is written if there are any.

    Raises:
      ValueError: if `folder` holds no sweep.
    """
    folder = Path(folder)
    varied = read_plan_file(folder)["jobs"]
    warn_of_damage(recorded(folder, varied).damaged, "left out")
    rows = [row for record in records_of(folder) for row in _rows(record, varied[record.name])]
    if rows:
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        table = pyarrow.table(columns)
        files.write_atomically(
            folder / "summary.parquet", lambda file: pyarrow.parquet.write_table(table, pyarrow.PythonFile(file))
        )
    return rows


def _rows(record: Record, varied: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    targets = record.summary["targets"]
    realism = (record.summary.get("assumptions") or {}).get("realism") or {}
    for image in record.summary["images"]:
        target = targets[image["target"]]
        result = {**image, "attack_loss": target.get("attack_loss"), "realism": realism.get("kind")}
        yield {"job": record.name, **varied, **result}


def _column(values: list[Any]) -> list[Any]:
    """Converts a column to one type: text if the types of the jobs differ, or Parquet has none for the values."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    fits = all(type(value) is not int or abs(value) < 2**63 for value in values)
    if len(kinds) <= 1 and kinds != {str} and fits:
        return values
    return [None if value is None else visible(value) for value in values]  # Parquet lacks lone surrogates


def _fields(config: JobConfig) -> dict[str, Any]:
    return config.flat | {"settings": config.attacker.hyperparameters}


def _read_checked(folder: Path, name: str) -> dict[str, Any]:
    """Reads the JSON of a record after verifying the checksums of it and its arrays."""
    form = {"name": str, "config": dict, "summary": dict, "arrays_sha256": str, "sha256": str}
    content = _load_json(_json_file(folder, name), form)
    checksum = content.pop("sha256")
    if checksum != _checksum(content) or content["name"] != name:
        raise ValueError(f"record {name} is not as it was written")
    try:
        check_record(content)
    except ValueError as error:
        raise ValueError(f"record {name} is damaged: {printable(str(error))}") from error
    try:
        with open(_arrays_file(folder, name), "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ValueError(f"record {name} has lost its arrays") from error
    if found != content["arrays_sha256"]:
        raise ValueError(f"the arrays of record {name} are not those that were written")
    return content


def _load_json(file: Path, form: Mapping[str, type], *, max_bytes: int = _MAX_RECORD_BYTES) -> dict[str, Any]:
    """Reads a JSON object with fields of these types.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file holds something else.
    """
    try:
        content = parse_json(read_regular(file, max_bytes=max_bytes))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(name), kind) for name, kind in form.items()):
        raise ValueError(f"{file} is damaged: it holds no {', '.join(form)}")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json_file(folder: Path, name: str) -> Path:
    return folder / "records" / f"{name}.json"


def _arrays_file(folder: Path, name: str) -> Path:
    return folder / "records" / f"{name}.npz"


def _failure_file(folder: Path, name: str) -> Path:
    return folder / "failures" / f"{name}.json"
