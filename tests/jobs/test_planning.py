"""Chunk sizes are measured; the fastest that fits is taken."""

import pytest

from jaxinvert import cli, jobs
from jaxinvert.jobs import planning

CONFIG = jobs.JobConfig.of(model="mlp", size=12, targets=2, restarts=2, steps=30)


@pytest.fixture(scope="module")
def task():
    return jobs.prepare(CONFIG)


def costs_of(task, **options):
    return jobs.chunk_costs(CONFIG, lambda form: jobs.Program(form, task.model), task.observations, **options)


@pytest.mark.slow
def test_every_size_is_compiled_and_timed(task):
    costs = costs_of(task)
    assert [cost.chunk for cost in costs] == [1, 2, 4][: len(costs)]
    assert all(cost.fits and cost.steps_per_second > 0 and cost.peak_bytes > 0 for cost in costs)
    assert jobs.fastest(costs) == max(costs, key=lambda cost: cost.steps_per_second).chunk


@pytest.mark.slow
def test_what_does_not_fit_is_not_taken(task):
    (one, *_) = costs_of(task)
    enough_for_one = int(1.2 * one.peak_bytes)
    cost = jobs.ChunkCost(8, 2 * enough_for_one, False, 0.0, 0.0)
    assert jobs.fastest([one, cost]) == 1
    (refused,) = costs_of(task, memory=one.peak_bytes // 2)
    assert not refused.fits
    with pytest.raises(ValueError, match="not enough memory: one lane needs"):
        jobs.fastest([refused])


def test_the_plan_of_a_command(tmp_path, capsys):
    arguments = ["invert", "--model", "mlp", "--size", "12", "--targets", "1", "--restarts", "1", "--steps", "3"]
    assert cli.main([*arguments, "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "fastest: --chunk 1" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert cli.main([*arguments[:1], "--attack", "dense-layer", *arguments[1:-2], "--plan"]) == 2
    assert "closed form" in capsys.readouterr().err


def test_a_plan_measures_no_more_than_it_can_save(task, monkeypatch):
    """A short job keeps the chunk that it takes by itself, whose program it needs anyway; a long one tries others."""
    programs = {}

    def program_for(form):
        return programs.setdefault(form.search.chunk, jobs.Program(form, task.model))

    (cost,) = jobs.chunk_costs(CONFIG, program_for, task.observations, only_if_worth=True)
    usual = programs[None].search().lanes_side_by_side(task.observations)
    assert cost.chunk == usual
    assert programs[usual].num_traces == 1

    def fake(form, *_, **__):
        return planning.ChunkCost(form.search.chunk, 0, True, 1.0, 10.0 * form.search.chunk)

    monkeypatch.setattr(planning, "_cost", fake)
    long = jobs.chunk_costs(CONFIG.replace(steps=10**6), program_for, task.observations, only_if_worth=True)
    assert len(long) > 1
    assert long[0].chunk == usual
