"""The page of captured updates without truth: its headline says what to do, and random updates do not alarm."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from jaxinvert import jobs, report
from tests.report.test_report import Page


def headline_of(path, share, share_of_noise):
    pictures = np.random.default_rng(0).random((len(share), 1, 8, 8, 3))
    explained = SimpleNamespace(
        reconstruction=pictures, labels=None, share=np.array(share), on_noise=pictures,
        share_of_noise=np.array(share_of_noise), assumptions={"known": ["the update"]},
    )  # fmt: skip
    report.save_capture_html(path, found={"naive": (jobs.JobConfig(), explained)})
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert all(image["alt"] for image in page.all("img"))
    return re.search("<h1>(.*)</h1>", source)[1], page.text


@pytest.mark.parametrize(
    ("share", "noise", "expected"),
    [
        ([0.99], [0.05], "The captured update is reproduced by pictures: treat it as leaked"),
        ([0.06], [0.05], "The captured update is not reproduced by pictures"),
        ([0.99, 0.9], [0.05, 0.1], "All 2 captured updates are reproduced by pictures: treat them as leaked"),
        ([0.99, 0.1, 0.1], [0.05] * 3, "1 of 3 captured updates is reproduced by pictures: treat it as leaked"),
        ([0.1, 0.11], [0.1, 0.1], "None of 2 captured updates is reproduced by pictures"),
        ([0.97, 0.95], [0.96, 0.9], "None of 2 captured updates is reproduced by pictures"),  # so are random ones
    ],
)
def test_the_headline_says_what_to_do(tmp_path, share, noise, expected):
    headline, text = headline_of(tmp_path / "x.html", share, noise)
    assert headline == expected
    assert ("treat what these pictures show as leaked" in text.lower()) == ("treat" in expected)
    assert "No true images were given" in text
