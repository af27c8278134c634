"""A sweep's folder by somebody else: wrong types are one line, whatever its checksums say."""

import io
import json

import numpy as np
import pytest

from jaxinvert import cli, files, sweeps
from jaxinvert.sweeps import records

NAMES = [f"{number:024x}" for number in range(4)]
VARIED = ["model", "settings.tv"]


def forged(folder, *, plan=None, summary=None, image=None, config=None, arrays=None, failure=None):
    """Writes a sweep of three recorded jobs and a failure; the first record has the changes and valid checksums."""
    jobs = {name: {"model": f"m{i}", "settings.tv": 10.0**-i} for i, name in enumerate(NAMES)}
    files.save_json(folder / "plan.json", {"varied": VARIED, "jobs": jobs, "versions": {"jax": "1"}})
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(json.loads((folder / "plan.json").read_text()) | plan))
    for i, name in enumerate(NAMES[:3]):
        images = [{"target": 0, "example": 0, "label": 1, "class_name": "cat", "psnr_db": 20.0 + i, "ssim": 0.5}]
        content = {"device": "one", "versions": {"jax": "1"}, "targets": [{"attack_loss": 0.5}], "images": images}
        values = {"truth": np.zeros((1, 2, 2, 3), np.float32), "reconstruction": np.ones((1, 2, 2, 3), np.float32)}
        fields = {"model": "m", "settings": {"tv": 1}}
        if i == 0:
            content |= summary or {}
            images[0] |= image or {}
            values |= arrays or {}
            fields |= config or {}
        packed = io.BytesIO()
        np.savez_compressed(packed, **values)
        write(folder, name, {"name": name, "config": fields, "summary": content}, packed.getvalue())
    entry = {"name": NAMES[3], "config": {"settings": {}}, "traceback": "ValueError: no"} | (failure or {})
    (folder / "failures").mkdir(exist_ok=True)
    (folder / "failures" / f"{NAMES[3]}.json").write_text(json.dumps(entry))
    return folder


def write(folder, name, content, arrays):
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / f"{name}.npz").write_bytes(arrays)
    content["arrays_sha256"] = records.hashlib.sha256(arrays).hexdigest()
    content = json.loads(json.dumps(content))
    text = json.dumps(content | {"sha256": records._checksum(content)})
    (folder / "records" / f"{name}.json").write_text(text)


def report(folder, capsys):
    """Exit status and output of the command."""
    status = cli.main(["report", str(folder)])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_the_unchanged_folder_is_reported(tmp_path, capsys):
    status, _ = report(forged(tmp_path), capsys)
    assert status == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 4
    assert "1 failed" in page
    assert len([*sweeps.records_of(tmp_path)]) == 3


@pytest.mark.parametrize(
    "changes",
    [
        *({"summary": {name: value}} for name in ("images", "targets") for value in (None, 1, "x", [1], {"a": 1})),
        *({"summary": {"assumptions": value}} for value in (1, [], {"known": 3}, {"realism": {"facts": 1}})),
        *({"summary": {"assumptions": {"realism": value}}} for value in (1, {"kind": 1, "facts": [{"name": 1}]})),
        *({"summary": {name: value}} for name in ("versions", "device") for value in (1, [1], {"jax": 1})),
        *({"image": {name: "x" * 3}} for name in ("target", "example", "label", "psnr_db", "ssim")),
        *({"image": {"target": value}} for value in (-1, 1, 10**9, True, None, 0.5)),
        *({"image": {name: value}} for name in ("psnr_db", "ssim", "mse") for value in ([], 1e300, True)),
        *({"image": {name: 1}} for name in ("job", "model", "unknown")),
        {"image": {"class_name": 3}},
        {"image": {"label": [[1]]}},
        *({"arrays": {"truth": np.zeros(shape)}} for shape in ((1, 2, 2, 4), (2, 2, 2, 3), (0, 2, 2, 3), ())),
        {"arrays": {"truth": np.array([["x"]])}},
        {"arrays": {"reconstruction": np.zeros((1, 2, 3, 3))}},
    ],
    ids=str,
)
def test_a_record_of_another_form_is_left_out(changes, tmp_path, capsys):
    folder = forged(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"record {NAMES[0]} ") as caught:
        sweeps.read_record(folder, NAMES[0])
    assert len(str(caught.value)) < 500
    if "arrays" not in changes:  # they are read for pictures only
        assert [record.name for record in sweeps.records_of(folder)] == NAMES[1:3]
    status, text = report(folder, capsys)
    assert status == 0
    assert "Traceback" not in text
    assert "2 of 4 jobs done" in " ".join((folder / "report.html").read_text().split())


@pytest.mark.parametrize(
    "plan",
    [
        *({"varied": value} for value in (None, 1, [1], ["model"], ["model", "model"], ["a", "b", "c"])),
        *({"jobs": value} for value in (None, 1, [NAMES[0]], {"../../etc": {}}, {NAMES[0]: 1}, {NAMES[0]: {}})),
        *(
            {"jobs": {NAMES[0]: {"model": value, "settings.tv": 1}}}
            for value in ({"a": 1}, [[1]], [{}], 1e300, 1e-300, 2**200, "x" * 20_000, "\ud800")
        ),
        {"versions": 3},
        {"versions": {"jax": 3}},
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_plan_of_another_form_is_one_line(plan, tmp_path, capsys):
    status, text = report(forged(tmp_path, plan=plan), capsys)
    assert status == 2
    assert "plan.json is damaged" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "plan",
    [
        *({"jobs": {NAMES[0]: {"model": value, "settings.tv": -1e38}}} for value in ([1, "a"], True, -1, 2**64 - 1)),
        {"jobs": {NAMES[i]: {"model": value, "settings.tv": 1} for i, value in enumerate((3, "m", None))}},
    ],
)
def test_odd_values_are_shown(plan, tmp_path, capsys):
    status, _ = report(forged(tmp_path, plan=plan), capsys)
    assert status == 0


@pytest.mark.parametrize(
    "failure", [{"name": "../x"}, {"config": {"settings": 3}}, {"config": {"settings": ["tv"]}}, {"traceback": 3}]
)
def test_a_failure_of_another_form_is_left_out(failure, tmp_path, capsys):
    folder = forged(tmp_path, failure=failure)
    assert sweeps.failures_of(folder) == []
    assert report(folder, capsys)[0] == 0


@pytest.mark.parametrize("content", [b"[" * 50_000, b'{"name": NaN}', b"\xff", b'{"a": 1, "a": 2}', b"{}", b""])
def test_damaged_records_are_left_out(content, tmp_path, capsys):
    folder = forged(tmp_path)
    (folder / "records" / f"{NAMES[0]}.json").write_bytes(content)
    (folder / "failures" / f"{NAMES[3]}.json").write_bytes(content)
    (folder / "summary.parquet").write_bytes(content)  # written, never read
    assert [record.name for record in sweeps.records_of(folder)] == NAMES[1:3]
    assert report(folder, capsys)[0] == 0
