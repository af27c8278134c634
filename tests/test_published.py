"""The table of published numbers: what was scaled down is said, and equal time is no more than the loop's."""

from pathlib import Path

from experiments import published
from experiments.harness import Row

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
PAPER = {"model": "resnet50", "steps": 20_000, "num_examples": 8, "targets": 4}


def row(**changes):
    setting = "attack=see-through-gradients model=resnet50 num_examples=8 settings={'tv': 0.0, 'group': 0.0}"
    return {"full": False, "images": 32, "steps": 20_000, "setting": setting, **changes}


def test_what_was_scaled_down_is_said():
    assert published.setting_of(row(full=True), PAPER) == "as published, 32 images"
    assert published.setting_of(row(steps=400, images=1), PAPER) == "scaled: 400 of 20,000 steps, 1 image"
    smaller = row(setting="model=lenet num_examples=4")
    assert published.setting_of(smaller, PAPER) == "scaled: **lenet for resnet50**, batch of 4 for 8, 32 images"


def timed(attack, steps, seconds, gain=None):
    gains = {"gain_db": gain, "gain_low_db": gain, "gain_high_db": gain}
    which = {"case": "LeNet", "data": "slice", "seed": 0}
    return {
        **which,
        "attack": attack,
        "steps": steps,
        "seconds": seconds,
        "mean_psnr_db": 30.0,
        "clients": 3,
        **gains,
    }


def test_at_equal_time_means_no_more_seconds_than_the_full_run():
    loop = [timed("inverting-gradients", 480, 10.0), timed("inverting-gradients", 4800, 100.0)]
    ours = [
        timed("spectral", 480, 11.0, 1.0),
        timed("spectral", 1000, 50.0, 2.0),
        timed("spectral", 4800, 101.0, 3.0),
    ]
    found = published.at_equal_time(loop + ours, "LeNet", "slice")
    assert found == "30.0 (+2.0 [2.0, 2.0], 3 clients, 50% of the time)"
    assert published.at_equal_time(loop + ours[2:], "LeNet", "slice") == "-"
    assert published.at_equal_time(ours, "LeNet", "slice") == "-"


def test_every_published_number_has_its_line_in_the_order_of_the_papers():
    lines = published.published(RESULTS).splitlines()[2:]
    rows = {name: published.importlib.import_module(f"experiments.{name}").ROWS for name in published.PAPERS}
    expected = [
        (published.PAPERS[name], row.name) for name, all_rows in rows.items() for row in all_rows if row.published_db
    ]
    assert [tuple(line.split(" | ")[:2]) for line in lines] == [(f"| {paper}", name) for paper, name in expected]
    scaled = [line for line in lines if "scaled" in line]
    assert scaled
    assert not any("missed" in line for line in scaled)
    assert isinstance(rows["inverting_gradients_single"][0], Row)
