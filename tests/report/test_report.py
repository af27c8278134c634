"""The picture grid and the page: what they show, and that nothing in them can break or reach out."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
from PIL import Image

from jaxinvert import data, metrics, report
from jaxinvert.report import charts, templates

VOID = {"meta", "img", "br", "path"}


class Page(HTMLParser):
    """Checks that tags are balanced and that no table can be wider than the page; collects elements and text."""

    def __init__(self, source: str):
        super().__init__()
        self.source, self.open, self.elements, self.text = source, [], [], ""
        self.classes = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":  # the chart of the risk has a fixed layout, and blocks for cells on a narrow screen
            assert {"scroll", "risk"} & set(" ".join(self.classes).split())
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(dict(attrs).get("class") or "")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += " " + " ".join(data.split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def size_of(source):
    with Image.open(source) as image:
        return image.size


def pictures(count=4, height=8, width=8, channels=3):
    generator = np.random.default_rng(0)
    truth = generator.random((count, height, width, channels))
    return truth, np.clip(truth + 0.05 * generator.normal(size=truth.shape), 0, 1)


def summary_of(truth, reconstruction, *, num_targets=2, num_restarts=3):
    mse = ((truth - reconstruction) ** 2).mean(axis=(1, 2, 3))
    psnr = -10 * np.log10(mse)
    batch = len(truth) // num_targets
    stats = {name: float(getattr(np, name)(psnr)) for name in ("mean", "median", "min", "max")}
    return {
        "config": {"attack": "inverting_gradients", "model": "lenet", "data": "photos", "num_examples": batch}
        | {"targets": num_targets, "restarts": num_restarts, "seed": 12345, "settings": {"tv": 1e-4}},
        "images": [
            {"target": i // batch, "example": i % batch, "label": i, "class_name": f"kind{i}"}
            | {"psnr_db": float(psnr[i]), "ssim": 0.9, "mse": float(mse[i])}
            for i in range(len(truth))
        ],
        "quality": {"psnr_db": stats | {"q25": 1.0, "q75": 2.0}, "ssim": {"median": 0.9}},
        "targets": [
            {"attack_loss": 0.01, "winner": 0, "restart_losses": [0.01 * 2**r for r in range(num_restarts)]}
            for _ in range(num_targets)
        ],
        "assumptions": {"known": ["the labels"], "unknown": ["the images"]},
        "selected_by": "attack_loss",
        "command": "jaxinvert invert --data photos",
        "num_steps": 4800,
        "seconds_compile": 4.25,
        "seconds_run": 192.3,
        "versions": {"jax": "0.10.2"},
        "device": "cpu",
        "interrupted": False,
    }


def history_of(num_targets=2, num_restarts=3, reports=5):
    loss = np.geomspace(1, 1e-3, reports)[:, None, None] * np.arange(1, num_restarts + 1)
    return {"step": 10 * np.arange(reports), "best_loss": np.repeat(loss, num_targets, axis=1)}


def page_of(path, *, summary=None, count=4, history=None, **shape):
    truth, reconstruction = pictures(count, **shape)
    summary = summary_of(truth, reconstruction) if summary is None else summary
    report.save_report_html(path, summary=summary, truth=truth, reconstruction=reconstruction, history=history)
    return Page(path.read_text(encoding="utf-8"))


def test_png_enlarges_pixels_without_smoothing(tmp_path):
    truth = np.array([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 2, 1)
    report.save_reconstructions_png(tmp_path / "x.png", truth=truth, reconstruction=1 - truth)
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("L"))
    # One pair is drawn with 256-pixel tiles (2 x 128), at the margin of 24 and below the header of 22.
    left, right = pixels[46:302, 24:280], pixels[46:302, 286:542]
    expected = np.kron(truth[0, :, :, 0] * 255, np.ones((128, 128)))
    np.testing.assert_array_equal(left, expected)
    np.testing.assert_array_equal(right, 255 - expected)
    assert pixels.shape == (46 + 256 + 24, 24 + 518 + 24)
    report.save_reconstructions_png(tmp_path / "x.png", truth=truth, reconstruction=1 - truth, side=128)
    assert size_of(tmp_path / "x.png") == (24 + 2 * 128 + 6 + 24, 46 + 128 + 24)
    with pytest.raises(ValueError, match="side -1, expected at least 1"):
        report.save_reconstructions_png(tmp_path / "x.png", truth=truth, reconstruction=truth, side=-1)


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_a_landscape_grid(tmp_path, count, channels):
    truth, reconstruction = pictures(count, 28, 28, channels)
    captions = [f"photo: number {i} · 41.2 dB · SSIM 0.99" for i in range(count)]
    options = {"captions": captions, "title": "Inverting Gradients"}
    report.save_reconstructions_png(tmp_path / "x.png", truth=truth, reconstruction=reconstruction, **options)
    width, height = size_of(tmp_path / "x.png")
    assert 1 <= width / height <= 4
    assert width * height >= count * 2 * 140 * 140


def test_png_wraps_at_columns_and_says_what_it_left_out(tmp_path):
    truth, reconstruction = pictures(10)
    sizes = []
    for name, options in {"all": {}, "capped": {"max_pairs": 5}}.items():
        path = tmp_path / f"{name}.png"
        report.save_reconstructions_png(path, truth=truth, reconstruction=reconstruction, columns=5, **options)
        sizes.append(size_of(path))
    (width, full), (same_width, capped) = sizes
    assert width == same_width == 24 + 5 * (2 * 128 + 6 + 28) - 28 + 24
    assert full - capped == 128 + 22 - 31  # a row less (tile and gap), a line more


def test_png_survives_odd_pixels_and_captions(tmp_path):
    truth = np.full((2, 300, 20, 3), np.nan)
    truth[1] = np.inf
    captions = ["x" * 10_000 + "\n\n\udc80", ""]
    report.save_reconstructions_png(tmp_path / "x.png", truth=truth, reconstruction=-truth, captions=captions)
    assert max(size_of(tmp_path / "x.png")) < 800


def test_shapes_are_checked(tmp_path):
    truth, reconstruction = pictures()
    for save in (
        report.save_reconstructions_png,
        lambda path, **kwargs: report.save_report_html(path, summary={}, **kwargs),
    ):
        for wrong in (reconstruction[:2], reconstruction[..., 0]):
            with pytest.raises(ValueError, match=r"expected two equal \[N, H, W, C\]"):
                save(tmp_path / "x", truth=truth, reconstruction=wrong)
        with pytest.raises(ValueError, match="expected two equal"):
            save(tmp_path / "x", truth=truth[:0], reconstruction=truth[:0])
    with pytest.raises(ValueError, match="captions has 1 entries, expected 0 or 4"):
        report.save_reconstructions_png(tmp_path / "x", truth=truth, reconstruction=reconstruction, captions=["a"])
    with pytest.raises(ValueError, match=r"expected \[P\] and \[P, T, R\]"):
        page_of(tmp_path / "x", history={"step": [0, 1], "best_loss": np.ones((3, 1, 1))})
    assert not (tmp_path / "x").exists()


def test_page_needs_nothing_from_elsewhere(tmp_path):
    page = page_of(tmp_path / "x.html", history=history_of())
    assert not re.search(r"https?:|url\(|@import|<script|<link|javascript:", page.source)
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(tags)
    for image in page.all("img"):
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert size_of(io.BytesIO(base64.b64decode(data))) == (8, 8)
    (policy,) = [meta for meta in page.all("meta") if "http-equiv" in meta]
    assert policy["content"].startswith("default-src 'none'")


def test_page_is_accessible(tmp_path):
    page = page_of(tmp_path / "x.html", history=history_of())
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1", "title")] == [1] * 5
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in page.elements if "aria-labelledby" in attrs} == set(ids)


def test_page_says_what_was_measured(tmp_path):
    truth, reconstruction = pictures()
    summary = summary_of(truth, reconstruction)
    for row, psnr in zip(summary["images"], (41.23, 30.0, 29.99, 12.0)):
        row["psnr_db"] = psnr
    summary["quality"]["psnr_db"]["median"] = 29.995
    page = page_of(tmp_path / "x.html", summary=summary, history=history_of())
    assert "All 4 private images are recognizable in their reconstructions" in " ".join(page.text.split())
    assert "Median PSNR 30.0 dB" in page.text
    assert "2 client updates, each computed from 2 images, 3 restarts, 4,800 optimizer steps." in page.text
    for words in (
        "41.2 dB · SSIM 0.900 · HaarPSI 0.9",
        "kind3",
        "the labels",
        "jaxinvert invert --data photos",
        "3 min 12 s",
    ):
        assert words in page.text
    assert "12345" in page.text
    assert "settings.tv" in page.text
    assert "the worst restart ended at 4 times the loss of the best" in page.text
    assert "Interrupted" not in page.text
    assert "Selected by" not in page.text


def headline_of(path, truth, reconstruction):
    report.save_report_html(path, summary={}, truth=truth, reconstruction=reconstruction)
    source = path.read_text(encoding="utf-8")
    Page(source)
    return re.search("<h1>(.*)</h1>", source)[1]


def test_the_headline_says_what_a_person_recognizes_whatever_the_psnr(tmp_path):
    photos = data.load("photos", split="test").images
    faint = 0.4 * (photos - 0.5) + 0.5
    noisy = np.clip(photos + 0.2 * np.random.default_rng(0).normal(size=photos.shape), 0, 1)
    flat = np.broadcast_to(photos.mean(axis=(1, 2), keepdims=True), photos.shape)
    assert metrics.psnr(faint, photos).max() < 20  # below any threshold of PSNR, and below some flat pictures
    assert metrics.psnr(flat, photos).max() > 17
    path = tmp_path / "x.html"
    assert headline_of(path, photos, faint) == "All 10 private images are recognizable in their reconstructions"
    assert headline_of(path, photos, noisy) == "All 10 private images are recognizable in their reconstructions"
    assert headline_of(path, photos, flat) == "None of 10 private images is recognizable in its reconstruction"
    one = photos[:1]
    assert headline_of(path, one, faint[:1]) == "The private image is recognizable in its reconstruction"
    assert headline_of(path, one, flat[:1]) == "The private image is not recognizable in its reconstruction"
    mixed = np.concatenate([photos[:3], flat[3:]])
    assert headline_of(path, photos, mixed) == "3 of 10 private images are recognizable in their reconstructions"
    mixed = np.concatenate([photos[:1], flat[1:]])  # one of ten passes by chance in one case of ten
    assert headline_of(path, photos, mixed) == (
        "1 of 10 private images is recognizable in its reconstruction, no more than by chance"
    )
    tiny = np.zeros((2, 3, 3, 1))
    assert headline_of(path, tiny, tiny) == "2 private images attacked; not measured whether they are recognizable"


def test_what_is_folded_is_printed(tmp_path):
    page = page_of(tmp_path / "x.html", history=history_of())
    assert "details::details-content { content-visibility:visible" in re.search(
        r"@media print \{ details.*", page.source
    )[0]  # fmt: skip
    folded = re.findall(r"<summary><h2 id=\"(\w+)\"", page.source)
    assert folded == ["search", "images", "again", "machine"]


def test_page_says_when_a_run_was_interrupted_or_selected_by_truth(tmp_path):
    summary = summary_of(*pictures()) | {"interrupted": True, "selected_by": "psnr"}
    page = page_of(tmp_path / "x.html", summary=summary)
    assert "Interrupted." in page.text
    assert "Selected by psnr." in page.text
    assert "without using the originals" not in page.text


def test_page_of_a_closed_form_attack(tmp_path):
    summary = summary_of(*pictures()) | {
        "selected_by": "closed form",
        "num_steps": 0,
        "steps_per_second": None,
    }
    summary["targets"] = [{"attack_loss": math.nan, "valid": [True, False]}] * 2
    summary["assumptions"]["client"] = "one gradient of the mean loss"
    page = page_of(tmp_path / "x.html", summary=summary, history={})
    assert "2 client updates, each computed from 2 images, solved in closed form." in page.text
    assert "one gradient of the mean loss" in page.text
    for words in ("Selected by", "No finite attack loss", "Spread over restarts", "0 optimizer steps"):
        assert words not in page.text


def test_median_curve_leaves_out_targets_without_a_finite_loss():
    history = history_of(num_targets=2)
    history["best_loss"][:, 0] = np.nan
    chart = charts.loss_chart(history)
    assert chart is not None
    assert chart["legend"][0] == ("thick", "median of 1 target, each with its best restart so far")
    assert chart["paths"][-1] == ("thick", chart["paths"][3][1])


def test_a_template_is_compiled_once(monkeypatch):
    def compiled_again(*_, **__):
        raise AssertionError("a template was compiled again")

    first = templates.render("parts.html.jinja")
    monkeypatch.setattr(jinja2.Environment, "compile", compiled_again)
    assert templates.render("parts.html.jinja") == first


def test_page_escapes_every_string(tmp_path):
    evil = "</style><script>alert('1')</script>\"'><img src=x onerror=alert(1)>"

    def poisoned(value):
        if isinstance(value, dict):
            return {(evil + key if key in ("tv", "jax") else key): poisoned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return evil + value if isinstance(value, str) else value

    truth, reconstruction = pictures()
    summary = summary_of(truth, reconstruction)
    clean = page_of(tmp_path / "clean.html", summary=summary)
    page = page_of(tmp_path / "x.html", summary=poisoned(summary) | {"selected_by": "attack_loss"})
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count("<script>") > 10


def test_page_takes_a_path_that_is_not_unicode(tmp_path):
    summary = summary_of(*pictures()) | {"command": ["jaxinvert", "invert", "--data", "my \udcff folder"]}
    assert "jaxinvert invert --data 'my ? folder'" in page_of(tmp_path / "x.html", summary=summary).text


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 100])
def test_page_of_any_size(tmp_path, count, channels):
    truth, reconstruction = pictures(count, 32, 32, channels)
    summary = summary_of(truth, reconstruction, num_targets=1 if count == 1 else 50)
    history = history_of(1 if count == 1 else 50)
    page = page_of(tmp_path / "x.html", summary=summary, count=count, history=history, height=32, width=32)
    assert len(page.all("img")) == 2 * count
    assert len(page.source) < 1_500_000
    assert ("more targets not drawn" in page.text) == (count == 100)


def test_page_shows_a_spread_of_too_many_pairs(tmp_path):
    page = page_of(tmp_path / "x.html", summary={"images": [{"psnr_db": float(i)} for i in range(130)]}, count=130)
    assert len(page.all("img")) == 2 * 120
    assert "120 of 130 pairs are shown" in page.text
    names = [image["alt"] for image in page.all("img")]
    assert "Original: image 0" in names
    assert "Original: image 129" in names


def test_page_of_an_empty_summary(tmp_path):
    page = page_of(tmp_path / "x.html", summary={})
    assert "No finite attack loss was recorded" in page.text
    assert "A gradient-inversion attack." in page.text


def test_page_shows_what_is_not_finite(tmp_path):
    summary = summary_of(*pictures())
    for row, psnr in zip(summary["images"], (math.nan, math.inf, None, 20.0)):
        row["psnr_db"] = psnr
    summary["quality"]["psnr_db"] |= {"mean": math.nan, "median": math.inf, "min": -math.inf}
    summary["targets"][0]["restart_losses"] = [math.nan, math.inf, None]
    summary["seconds_run"] = math.nan
    summary = json.loads(json.dumps(summary))
    history = history_of()
    history["best_loss"][:2] = np.inf
    history["best_loss"][:, 0] = np.nan
    page = page_of(tmp_path / "x.html", summary=summary, history=history)
    assert "Median PSNR ∞ dB" in page.text
    assert "NaN dB" in page.text
    assert "— dB" in page.text
    assert "1 above 45 dB at the right edge; 2 without a PSNR not drawn" in page.text
    assert "times the loss of the best. 3 of 6 restarts found no finite loss." in page.text
    paths = [path["d"] for path in page.all("path")]
    assert paths
    assert not re.search("nan|inf", "".join(paths))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_page_without_any_finite_loss(tmp_path, value):
    history = {"step": [0, 10], "best_loss": np.full((2, 2, 3), value)}
    assert "No finite attack loss was recorded" in page_of(tmp_path / "x.html", history=history).text
    empty = {"step": [], "best_loss": []}
    assert "No finite attack loss was recorded" in page_of(tmp_path / "x.html", history=empty).text


@pytest.mark.parametrize(
    ("offset", "scale", "words"), [(0, 1, "log scale"), (-1, 1, "linear scale"), (2, 0, "log scale")]
)
def test_loss_chart_stays_inside_its_plot(offset, scale, words):
    history = history_of(num_targets=1)
    history["best_loss"] = scale * history["best_loss"] + offset
    chart = charts.loss_chart(history)
    assert chart is not None
    assert words in chart["y_title"]
    assert len(chart["paths"]) == 3 + 1
    assert chart["paths"][-1] == ("thick", chart["paths"][0][1])
    numbers = np.array(re.findall(r"[\d.-]+ [\d.-]+", " ".join(path for _, path in chart["paths"])))
    points = np.array([point.split() for point in numbers], dtype=float)
    assert points.min() >= 0
    assert points.max() <= 100
    assert np.all(np.diff(points[:5, 1]) >= 0)  # a falling loss goes down the page
    assert all(0 <= at <= 100 for at, _ in chart["y"] + chart["x"])
