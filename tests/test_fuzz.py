"""Mutated files through every entry, in small: see `experiments.fuzz` for the whole."""

import random

import pytest

from experiments import fuzz

ENTRIES = {entry.name: entry for entry in fuzz.entries()}
INPUTS = {
    "generator": 12,
    **dict.fromkeys(("prepared data set", "sweep's folder, page"), 40),
    **dict.fromkeys(("sweep's folder, records", "sweep, YAML", "kept attack", "kept search"), 80),
}
"""Fewer where reading is slow."""


@pytest.mark.parametrize("name", ENTRIES)
def test_hostile_files_are_refused_or_read_rightly(name):
    outcomes = [*fuzz.attempts(ENTRIES[name], range(INPUTS.get(name, 200)), seed=1)]
    faults = [outcome for outcome in outcomes if outcome.kind not in ("refused", "accepted")]
    assert not faults, "\n".join(f"input {one.number}: {one.kind}: {one.message}" for one in faults[:3])
    assert [outcome.number for outcome in outcomes if outcome.extra_bytes > 0] == []


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_mutated_is_accepted_before(name, tmp_path):
    entry = ENTRIES[name]
    for number, content in enumerate(entry.seeds):
        outcome = fuzz._attempt(entry, entry.repaired(content, random.Random(0)), tmp_path / "input", number)
        assert (outcome.kind, outcome.message) == ("accepted", "")


def test_faults_are_counted(tmp_path):
    """A reader that fails in every way."""

    def load(folder):
        content = (folder / "x.bin").read_bytes()
        if content[0] == 1:
            raise KeyError("x")
        if content[0] == 2:
            raise ValueError("refused")
        if content[0] == 3:
            while True:
                pass
        if content[0] == 4:
            return b"x" * (200 << 20)
        return content

    entry = fuzz.Entry("x", [{"x.bin": b"\0"}], load, lambda found, folder: "wrong" if found[0] == 5 else "")
    seconds, fuzz.HANG_SECONDS = fuzz.HANG_SECONDS, 1.5
    try:
        outcomes = [fuzz._attempt(entry, {"x.bin": bytes([i])}, tmp_path / "input", i) for i in range(6)]
    finally:
        fuzz.HANG_SECONDS = seconds
    assert [one.kind for one in outcomes] == ["accepted", "traceback", "refused", "hang", "accepted", "wrong"]
    if outcomes[4].peak_bytes:  # on Linux
        assert [one.extra_bytes > 0 for one in outcomes] == [False] * 4 + [True, False]
