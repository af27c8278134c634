"""The page and the table of a sweep: figures, caps, choice of pictures, and nothing that can break or reach out."""

import io
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from jaxinvert import report
from jaxinvert.report import sweep_page
from jaxinvert.report.sweep_figures import settings_of, sweep_table
from tests.report.test_report import Page

VARIED = ("model", "seed", "settings.tv")
TRACE = (
    'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n'
    '  File "b.py", line 2, in g\n    raise X\n'
    "b.SpecialError: no memory\n  - in buffer 3\n--------------------\nFor simplicity, frames were removed.\n"
)


def a_sweep(models=("mlp", "lenet"), weights=(1e-4, 1e-2, 1.0), seeds=(0, 1, 2), num_images=2, **fields):
    """Rows, records and jobs of a sweep with random figures."""
    generator = np.random.default_rng(0)
    rows, records, jobs = [], [], {}
    for model in models:
        for weight in weights:
            for seed in seeds:
                name = f"{len(jobs):024x}"
                jobs[name] = {"model": model, "seed": seed, "settings.tv": weight, **fields}
                for i in range(num_images):
                    image = {"target": i, "example": 0, "label": i, "class_name": f"kind{i}"}
                    psnr, ssim = float(generator.uniform(5, 35)), float(generator.random())
                    rows.append({"job": name, **jobs[name], **image, "psnr_db": psnr, "ssim": ssim})
                truth = generator.random((num_images, 4, 6, 3))
                records.append(
                    SimpleNamespace(
                        name=name,
                        config={"model": model, "seed": seed, "steps": 4800, "settings": {"tv": weight}},
                        summary={
                            "device": "one core",
                            "versions": {"jax": "0.10.2"},
                            "assumptions": {"known": ["it"]},
                        },
                        arrays={"truth": truth, "reconstruction": 1 - truth},
                    )
                )
    return rows, records, jobs


def page_of(path, rows, records, *, varied=VARIED, **options):
    report.save_sweep_html(path, rows=rows, varied=varied, records=iter(records), **options)
    page = Page(path.read_text(encoding="utf-8"))
    page.text = " ".join(page.text.split())
    return page


def table_text(table, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_page_and_table_show_the_figures(tmp_path):
    rows, records, jobs = a_sweep()
    page = page_of(tmp_path / "x.html", rows, records, jobs=jobs, title="some.yaml", command="jaxinvert again")
    best = settings_of(rows, VARIED)[0].figures
    words = f"best {best['median']:.1f} {{}} {best['mean']:.1f} {best['q25']:.1f} {best['q75']:.1f} "
    words += f"{best['min']:.1f} {best['max']:.1f} {best['ssim']:.3f} {100 * best['share']:.0f} % 6 3"
    values = settings_of(rows, VARIED)[0].values
    assert words.format(f"{values['model']} {values['settings.tv']:g}") in page.text
    assert "At best, none of 6 reconstructions is recognizable" in page.text
    assert f"the highest median PSNR, {best['median']:.1f} dB" in page.text
    for words in (
        "18 of 18 jobs done, none failed, none missing",
        "some.yaml",
        "jaxinvert again",
        "one core",
        "0.10.2",
    ):
        assert words in page.text
    assert "steps 4,800" in page.text  # what all jobs share
    assert "Incomplete" not in page.text
    lines = table_text(sweep_table(rows, VARIED, limit=4))
    assert f"{best['median']:.1f}" in lines
    assert f"{best['q25']:.1f} to {best['q75']:.1f}" in lines
    assert "2 more settings in summary.parquet" in lines
    assert len(re.findall("mlp|lenet", lines)) == 4


def test_a_figure_that_is_missing_is_neither_counted_nor_hidden(tmp_path):
    rows, records, _ = a_sweep(weights=(1e-4, 1.0), num_images=4)
    strange = (None, math.nan, math.inf, "text")
    for row, value in zip(rows[:4], strange):
        row["psnr_db"] = row["ssim"] = value
    for row in rows[12:24]:  # the second setting
        row["psnr_db"] = None
    page = page_of(tmp_path / "x.html", rows, records)
    settings = settings_of(rows, VARIED)
    first = next(s for s in settings if s.images[0][0] is rows[0])
    others = [row["psnr_db"] for row in rows[4:12]]
    assert first.num_unmeasured == 3
    assert first.figures["median"] == pytest.approx(np.median([*others, 120]))  # what is infinite is the cap
    assert first.figures["share"] == pytest.approx((1 + np.sum(np.array(others) >= 20)) / 12)
    assert first.figures["ssim"] == pytest.approx(np.median([row["ssim"] for row in rows[4:12]]))
    assert settings[-1].num_unmeasured == 12
    assert "9 of 12" in page.text
    assert "0 of 12" in page.text
    assert "≥ 120" in page.text
    assert not re.search("nan|inf", " ".join(path["d"] for path in page.all("path")))
    assert "NaN" in table_text(sweep_table(rows, VARIED))


def test_a_sweep_without_any_psnr(tmp_path):
    rows, records, _ = a_sweep()
    page = page_of(tmp_path / "x.html", [row | {"psnr_db": None} for row in rows], records)
    assert "36 reconstructions; not measured whether they are recognizable" in page.text
    assert not page.all("img")


def test_a_single_job(tmp_path):
    rows, records, jobs = a_sweep(models=["mlp"], weights=[1e-4], seeds=[0], num_images=1)
    page = page_of(tmp_path / "x.html", rows, records, varied=(), jobs=jobs)
    assert "The private image is not recognizable in its reconstruction" in page.text
    assert "1 of 1 job done" in page.text
    assert "The only image" in page.text
    assert "The order depends" not in page.text
    assert len(page.all("img")) == 2
    assert f"{rows[0]['psnr_db']:.1f}" in table_text(sweep_table(rows, ()))


@pytest.mark.parametrize("varied", [(), ("seed",)])
def test_nothing_varied_but_the_seed(tmp_path, varied):
    rows, records, _ = a_sweep(models=["mlp"], weights=[1e-4])
    page = page_of(tmp_path / "x.html", rows, records, varied=varied)
    assert len(settings_of(rows, varied)) == 1
    headline = "reconstructions is recognizable" if varied else "private images is recognizable in its reconstruction"
    assert f"None of 6 {headline}" in page.text
    assert ("Only the seed was varied." in page.text) == bool(varied)


def test_no_job_finished(tmp_path):
    jobs = {
        "a": {"model": "mlp", "seed": 0, "settings.tv": 0.1},
        "b": {"model": "mlp", "seed": 1, "settings.tv": 0.1},
    }
    failure = {"name": "a", "config": {"model": "mlp", "seed": 0, "settings": {"tv": 0.1}}, "traceback": TRACE}
    page = page_of(tmp_path / "x.html", [], [], jobs=jobs, failures=[failure])
    assert "No job of this sweep has finished" in page.text
    assert "0 of 2 jobs done, 1 failed, 1 missing." in page.text
    assert sweep_table([], VARIED).row_count == 0


def test_failures_with_what_went_wrong_and_the_whole_traceback(tmp_path):
    rows, records, jobs = a_sweep()
    finished = [row for row in rows if int(row["job"], 16) >= 4]
    failures = [
        {"name": name, "config": {**jobs[name], "settings": {"tv": 1e-4}}, "traceback": trace}
        for name, trace in zip(jobs, (TRACE, TRACE, "Traceback\nOtherError: <b>", TRACE))
        if name != list(jobs)[1]
    ]
    failures.append({"name": "of an earlier plan", "config": {}, "traceback": TRACE})
    failures.append({"name": finished[0]["job"], "config": {}, "traceback": TRACE})  # it finished since
    page = page_of(tmp_path / "x.html", finished, records, jobs=jobs, failures=failures)
    assert "14 of 18 jobs done, 3 failed, 1 missing." in page.text
    assert "2 jobs: b.SpecialError: no memory" in page.text
    assert "1 job: OtherError: <b>" in page.text
    assert 'File "b.py", line 2, in g' in page.text
    assert "model mlp" in page.text
    assert "earlier plan" not in page.text
    assert "2 of 3" in page.text  # seeds
    assert "1 more setting without a finished job" in page.text


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        (TRACE, "b.SpecialError: no memory"),
        ("Traceback:\nValueError: x\n", "ValueError: x"),
        ("", "no traceback was recorded"),
    ],
)
def test_exception_line(trace, line):
    assert sweep_page.exception_line(trace) == line


def test_many_failures_make_no_large_page(tmp_path):
    failures = [
        {"name": str(i), "config": {"model": "mlp"}, "traceback": f"{'x' * 50_000}\nError: {i % 40}"}
        for i in range(4000)
    ]
    page = page_of(tmp_path / "x.html", [], [], failures=failures)
    assert len(page.source) < 1_000_000
    assert len(page.all("details")) == 30 + 2  # and the folded sections
    assert "4,000 jobs failed, with 40 different errors" in page.text
    assert "and 88 more" in page.text
    assert "the start is omitted" in page.text


def test_a_huge_sweep_makes_no_large_page(tmp_path):
    rows, records, jobs = a_sweep(weights=np.geomspace(1e-6, 1, 400).tolist(), seeds=[0], num_images=1)
    page = page_of(tmp_path / "x.html", rows, records, jobs=jobs)
    assert "The best 200 of 800 settings; 600 are omitted. summary.parquet has every image" in page.text
    assert len([1 for cell in page.all("th") if cell["scope"] == "row"]) == 200
    assert len(page.all("img")) == 2 * 2
    assert "Neighboring values are pooled" in page.text
    assert len(page.source) < 400_000


def test_records_are_read_once_and_only_shown_pictures_from_their_arrays(tmp_path):
    rows, records, _ = a_sweep()
    opened = []

    class Watched(SimpleNamespace):
        @property
        def arrays(self):
            opened.append(self.name)
            return self.hidden

    watched = [Watched(name=r.name, config=r.config, summary=r.summary, hidden=r.arrays) for r in records]
    page = page_of(tmp_path / "x.html", rows, watched)
    assert len(page.all("img")) == 2 * 6
    shown = {
        row["job"] for _, _, images in sweep_page.chosen_pictures(settings_of(rows, VARIED)) for _, row, _ in images
    }
    assert set(opened) == shown
    assert len(shown) <= 6


def test_pictures_are_chosen_by_rank():
    rows, _, _ = a_sweep()
    settings = settings_of(rows, VARIED)
    groups = sweep_page.chosen_pictures(settings)
    assert [heading for heading, _, _ in groups] == ["Best setting", "Median setting, number 4 of 6"]
    assert [setting for _, setting, _ in groups] == [settings[0], settings[3]]
    for _, setting, images in groups:
        ordered = sorted(setting.psnr_db, reverse=True)
        assert [what for what, _, _ in images] == ["Best image", "Median image", "Worst image"]
        assert [row["psnr_db"] for _, row, _ in images] == [ordered[0], ordered[3], ordered[5]]
        assert all(row["target"] == at for _, row, at in images)


def test_a_picture_that_cannot_be_read_is_said_to_be_missing(tmp_path):
    rows, _, _ = a_sweep()
    page = page_of(tmp_path / "x.html", rows, [])
    assert page.text.count("The record of this job could not be read.") == 6


def test_page_says_what_is_not_comparable(tmp_path):
    rows, records, _ = a_sweep()
    records[0].summary["device"] = "another"
    records[1].summary["assumptions"] = {"known": ["more"]}
    rows = [row | {"size": 8 + 8 * (row["model"] == "mlp")} for row in rows]
    page = page_of(tmp_path / "x.html", rows, records, varied=(*VARIED, "size"))
    assert "Different originals. Settings differ in size" in page.text
    assert "Different machines or versions" in page.text
    assert "one core (17 jobs), another (1 job)" in page.text
    assert "Jobs make 2 different assumptions" in page.text
    assert "Known more" in page.text  # each is listed
    assert "There is no chart for size, which varies only together with model." in page.text


def test_page_escapes_every_string(tmp_path):
    evil = "</style><script>alert('1')</script>\"'><img src=x onerror=alert(1)>[bold]"
    rows, records, _ = a_sweep()
    failures = [{"name": "f", "config": {"model": "mlp"}, "traceback": "Error: x"}]
    clean = page_of(tmp_path / "clean.html", rows, records, failures=failures, title="a", command="b")

    def poisoned(value):
        if isinstance(value, dict):
            return {key: poisoned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return evil + value if isinstance(value, str) else value

    bad_rows = [row | {"model": evil + row["model"], "class_name": evil + row["class_name"]} for row in rows]
    bad_records = [
        SimpleNamespace(
            name=record.name,
            config=poisoned(record.config) | {evil: evil},
            summary=poisoned(record.summary),
            arrays=record.arrays,
        )
        for record in records
    ]
    page = page_of(tmp_path / "x.html", bad_rows, bad_records, failures=poisoned(failures), title=evil, command=evil)
    extra = [tag for tag, _ in page.elements]
    for tag in ("div", "dt", "dd"):  # one more pair of field and value
        last = len(extra) - 1 - extra[::-1].index(tag)
        del extra[last]
    assert sorted(extra) == sorted(tag for tag, _ in clean.elements)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count("<script>") > 10
    assert "[bold]" in table_text(sweep_table(bad_rows, VARIED), width=1000)


def test_page_needs_nothing_from_elsewhere_and_is_accessible(tmp_path):
    rows, records, _ = a_sweep()
    failures = [{"name": "f", "config": {"model": "mlp"}, "traceback": TRACE}]
    page = page_of(tmp_path / "x.html", rows, records, failures=failures)
    assert not re.search(r"https?:|url\(|@import|<script|<link|javascript:", page.source)
    assert not {"script", "link", "iframe", "object", "form", "a"} & {tag for tag, _ in page.elements}
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1", "title")] == [1] * 5
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(svg.get("aria-hidden") or (svg["role"] == "img" and svg["aria-label"]) for svg in page.all("svg"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in page.elements if "aria-labelledby" in attrs} == set(ids)
    headings = len([1 for cell in page.all("th") if cell["scope"] == "col"])
    assert headings == 1 + 2 + 12 + 6  # rank, fields, figures and realism; and the numbers of the chart
