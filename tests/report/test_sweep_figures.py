"""The figures and charts of a sweep."""

import re

import numpy as np
import pytest

from jaxinvert.report import charts, sweep_page
from jaxinvert.report.sweep_figures import field_names, setting_text, settings_of
from tests.report.test_sweep_report import VARIED, a_sweep


def test_figures_are_those_over_all_seeds_and_images():
    rows, _, jobs = a_sweep()
    settings = settings_of(rows, VARIED, jobs)
    assert len(settings) == 2 * 3
    for setting in settings:
        model, weight = setting.values.values()
        alike = [row for row in rows if (row["model"], row["settings.tv"]) == (model, weight)]
        psnr = np.array([row["psnr_db"] for row in alike])
        expected = {
            "median": np.median(psnr), "mean": np.mean(psnr), "min": psnr.min(), "max": psnr.max(),
            "q25": np.quantile(psnr, 0.25), "q75": np.quantile(psnr, 0.75), "share": np.mean(psnr >= 20),
            "ssim": np.median([row["ssim"] for row in alike]),
        }  # fmt: skip
        assert setting.figures == pytest.approx(expected)
        assert (setting.num_jobs, setting.num_planned, len(setting.images)) == (3, 3, 6)
    medians = [setting.figures["median"] for setting in settings]
    assert medians == sorted(medians, reverse=True)


def test_lines_of_a_chart_are_quartiles_at_every_value():
    rows, _, _ = a_sweep()
    (found,), unfit, split = sweep_page.charts_of(settings_of(rows, VARIED), VARIED)
    assert (split, unfit, found["pooled"], found["field"]) == ("model", [], [], "tv")
    assert len(found["table"]) == 2 * 3
    for kind, at, *quartiles, count in found["table"]:
        psnr = [row["psnr_db"] for row in rows if (row["model"], row["settings.tv"]) == (kind, at)]
        assert quartiles == pytest.approx(np.quantile(psnr, (0.25, 0.5, 0.75)))
        assert count == len(psnr)
    assert "log scale" in found["chart"]["x_title"]


def test_lines_keep_their_style_where_a_kind_lacks_the_field():
    rows, _, _ = a_sweep()
    best = settings_of(rows, VARIED)[0].values["model"]
    rows = [row | {"lr": 2.0 ** -row["seed"], "settings.tv": None if row["model"] == best else 0.1} for row in rows]
    rows = [row | {"settings.tv": 0.2} if row["model"] != best and row["seed"] else row for row in rows]
    found, _, _ = sweep_page.charts_of(settings_of(rows, (*VARIED, "lr")), (*VARIED, "lr"))
    legends = {one["field"]: dict(one["chart"]["legend"]) for one in found}
    assert legends["tv"].items() < legends["lr"].items()
    assert found[0]["absent"] != found[1]["absent"]


def test_line_for_an_on_off_field_only_if_there_is_no_other():
    rows, _, _ = a_sweep()
    rows = [row | {"normalized": row["seed"] == 0} for row in rows]
    settings = settings_of(rows, ("normalized", *VARIED))
    assert sweep_page.charts_of(settings, ("normalized", *VARIED))[2] == "model"
    settings = settings_of(rows, ("normalized", "settings.tv"))
    found, _, split = sweep_page.charts_of(settings, ("normalized", "settings.tv"))
    assert split == "normalized"
    assert {label for _, label in found[0]["chart"]["legend"]} == {"normalized True", "normalized False"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 2, 3], "linear scale"),
        ([-1, 0, 100], "linear scale"),
        ([0, 1], "linear scale"),
        ([0.1, 10], "log scale"),
        ([0, 1e-3, 1e-2, 1], "log scale apart from 0, at the left edge"),
    ],
)
def test_sweep_chart_stays_inside_its_plot(values, words):
    x = np.array(values, dtype=float)
    quartiles = np.array([10.0, 12.0, 20.0]) + np.arange(len(x))[:, None]
    chart = charts.sweep_chart("tv", {str(i): (x, quartiles) for i in range(6)}, reach=[10, 25])
    assert chart["x_title"] == f"tv, {words}"
    points = re.findall(
        r"([\d.-]+) ([\d.-]+)", " ".join(path for style, path in chart["paths"] if "bar" not in style)
    )
    points = np.array(points, dtype=float)
    assert points.min() >= 0
    assert points.max() <= 100
    assert chart["x"][0][1] == f"{x[0]:g}"
    assert np.all(np.diff([at for at, _ in chart["x"]]) > 0)


def test_ranges_of_equal_figures_have_a_scale():
    row = dict.fromkeys(("min", "q25", "median", "q75", "max"), 20.0)
    assert charts.psnr_ranges([row])[0] == "20 to 21 dB"
    exact = dict.fromkeys(row, 120.0)
    scale, (of_row, of_exact) = charts.psnr_ranges([row, exact])
    assert scale == "20 to ≥ 60 dB"  # one exact row does not squeeze the others
    assert dict(of_exact)["middle"] == "M100.0 50h0"
    assert charts.psnr_ranges([exact])[1] == [of_exact]
    assert dict(of_row)["whole"].startswith("M")
    assert charts.psnr_ranges([dict.fromkeys(row, np.nan)]) == ("", [[]])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "0.0001"), (None, "—"), (True, "True"), (4800, "4800"), (0.123456789, "0.123456789"), (2.0, "2")],
)
def test_values_of_fields_for_people(value, text):
    assert setting_text(value) == text


def test_short_names_of_fields():
    assert field_names(["settings.tv", "lr", "settings.lr"]) == {
        "settings.tv": "tv",
        "lr": "lr",
        "settings.lr": "settings.lr",
    }
