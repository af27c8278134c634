"""The command `jaxinvert invert`: runs one job, prints its table and writes its files."""

import contextlib
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from jaxinvert import files, jobs, report, search
from jaxinvert.attacks.closed_form.certificate import WORDS, Status
from jaxinvert.cli.console import EXIT_INTERRUPTED, Terminal, alone_in, bad_input, cell, progress_bar, saying
from jaxinvert.cli.unused import note_of_closed_form
from jaxinvert.report import wording


@dataclass(frozen=True)
class Invert(jobs.JobConfig):
    """Simulate clients, observe their updates, and try to reconstruct their images.

    Attributes:
      out: folder for `summary.json`, `reconstructions.npz`, `reconstructions.png` and `report.html`.
      plan: measure speed and memory for several values of `--chunk` first, as long as that can save more time than it
        takes, then run with the fastest that fits.
      dry_run: only measure speed and memory for several values of `--chunk`, and print how long the job would take.
    """

    out: Path = Path("runs/invert")
    plan: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Checks the fields; raises BadInputError."""
        with bad_input():
            super().__post_init__()


def invert(command: Invert, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    config: jobs.JobConfig = command
    files.check_writable(command.out)
    with bad_input():
        if command.plan and command.search.chunk is not None:
            raise ValueError(f"chunk is {command.search.chunk}, but plan chooses the fastest: leave one of them out")
        task = jobs.prepare(config)
        note_of_closed_form(command, task, command_line)
    if command.plan or command.dry_run:
        config, task = planned(config, task, Terminal(), only_if_worth=not command.dry_run)
    if command.dry_run:
        return 0
    _, interrupted = invert_and_write(config, command.out, command_line=command_line, task=task)
    return EXIT_INTERRUPTED if interrupted else 0


def planned(
    config: jobs.JobConfig, task: jobs.Task, console: Terminal, *, only_if_worth: bool
) -> tuple[jobs.JobConfig, jobs.Task]:
    """Prints speed and memory of several chunk sizes; returns the job with the fastest that fits, already compiled.

    Args:
      config: the job.
      task: the prepared job.
      console: where to print.
      only_if_worth: leave out measurements that take longer than they can save, see `jobs.chunk_costs`.

    Raises:
      BadInputError: if none fits, or the attack has no lanes.
    """
    programs: dict[int | None, jobs.Program] = {}

    def program_for(form: jobs.JobConfig) -> jobs.Program:
        chunk = form.search.chunk
        if chunk is not None and chunk not in programs:
            say(f"measuring --chunk {chunk}")
        return programs.setdefault(chunk, jobs.Program(form, task.model))

    with bad_input(), saying(console) as say:
        costs = jobs.chunk_costs(config, program_for, task.observations, only_if_worth=only_if_worth)
        chunk = jobs.fastest(costs)
    table = Table("chunk", "peak MiB", "compile s", "steps/s", "run s")
    lane_steps = (config.search.steps + 1) * config.data.targets * config.search.restarts
    for cost in costs:
        figures = (f"{cost.seconds_compile:,.1f}", f"{cost.steps_per_second:,.0f}")
        seconds = f"{lane_steps / cost.steps_per_second:,.1f}" if cost.fits else "does not fit"
        style = "bold" if cost.chunk == chunk else None
        table.add_row(str(cost.chunk), f"{cost.peak_bytes / 2**20:,.0f}", *figures, seconds, style=style)
    console.print(table)
    console.print(f"fastest: --chunk {chunk}")
    return config.replace(chunk=chunk), task._replace(program=programs[chunk])


def invert_and_write(
    config: jobs.JobConfig, folder: Path, *, command_line: str, task: jobs.Task | None = None
) -> tuple[jobs.Outcome, bool]:
    """Runs a job with live progress, prints its table and writes its files.

    Args:
      config: the job.
      folder: folder for `summary.json`, `reconstructions.npz`, `reconstructions.png` and `report.html`.
      command_line: the command, for the report.
      task: the prepared job; by default it is prepared here.

    Returns:
      The outcome, and whether the run was interrupted; the outcome is then the best so far.

    Raises:
      BadInputError: if the job is not possible.
    """
    console = Terminal()
    with bad_input():
        task = task or jobs.prepare(config)
    with alone_in(folder, "state"):
        size = "x".join(map(str, task.model.input_shape))
        told = f" on {task.model.name}: {config.data.targets} targets x {config.num_private} examples, {size} pixels"
        console.print(Text.assemble((config.attacker.attack, "bold"), told))
        execution = _with_progress(config, task, folder / "state", console)
        with jobs.uninterruptible():
            outcome = jobs.measure(config, task, execution)
            outcome.summary["command"] = command_line
            try:
                write_outcome(folder, outcome)
                if not execution.interrupted:
                    jobs.forget_state(folder / "state", config)
            finally:  # figures are shown even if the disk is full
                _show(config, execution, outcome, console)
    if execution.interrupted:
        console.print("run the same command again to resume")
    console.print(f"pictures and page: {folder / 'report.html'}", soft_wrap=True)
    return outcome, execution.interrupted


def _with_progress(config: jobs.JobConfig, task: jobs.Task, state_folder: Path, console: Terminal) -> jobs.Execution:
    """Runs the attack with a progress bar.

    Raises:
      BadInputError: if the attack does not fit the model, which is noticed when it is traced.
    """
    with progress_bar(console) as bar:
        row = bar.add_task("compiling", total=config.search.steps, loss="", speed="")
        bar.refresh()

        def show(progress: search.Progress) -> None:
            lanes = progress.best_loss.size
            bar.update(
                row,
                description="inverting",
                completed=progress.step,
                loss=f"attack loss {np.median(progress.best_loss.min(axis=1)):.2e}",
                speed=f"{progress.step * lanes / max(progress.seconds, 1e-9):,.0f} steps/s",
                refresh=True,
            )

        with bad_input():
            execution = jobs.execute(
                config, task.program, task.observations, on_progress=show, state_folder=state_folder
            )
        if execution.interrupted:
            bar.update(row, description="interrupted", refresh=True)
        elif not execution.history:
            bar.update(row, description="solved", total=1, completed=1, refresh=True)
        else:
            bar.update(row, description="inverted", refresh=True)
    return execution


def _show(config: jobs.JobConfig, execution: jobs.Execution, outcome: jobs.Outcome, console: Terminal) -> None:
    """Prints the table of an outcome and what is to be said about it."""
    console.print(_table(outcome.summary))
    if execution.choice is not None:
        console.print(f"chosen: {execution.choice}")
    if found := outcome.summary["labels"]:
        how = "restored" if config.attacker.labels == "restored" else "found"
        exact = f"exact for {np.sum(found['exact'])} of {config.data.targets} targets"
        console.print(f"labels {how}: {exact}, {found['recall']:.0%} of the examples")
    console.print(f"realism: {jobs.realism_in_words(outcome.summary['assumptions'])}")
    if statuses := [target["status"] for target in outcome.summary["targets"] if "status" in target]:
        counts = Counter(statuses)
        console.print(f"certified: {counts[Status.CERTIFIED]} of {config.data.targets} targets")
        for status in sorted(counts.keys() - {Status.CERTIFIED}):
            console.print(f"{counts[status]} targets {WORDS[status]}")
    if failed := [t for t, target in enumerate(outcome.summary["targets"]) if target["failed"]]:
        console.print(
            f"targets {failed}: no restart had a finite attack loss; their pictures show only the start",
            style="bold red",
        )


def command_line(config: jobs.JobConfig, folder: Path) -> str:
    """The command that runs `config` and writes to `folder`."""
    defaults = jobs.JobConfig().flat
    changed = {name: value for name, value in config.flat.items() if value != defaults[name]}
    flags = [word for name, value in changed.items() for word in _words(name.replace("_", "-"), value)]
    return shlex.join(["jaxinvert", "invert", *flags, "--out", str(folder)])


def _words(flag: str, value: Any) -> list[str]:
    """The words of a flag and its value on the command line."""
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", *(str(part) for item in value.items() for part in item)]
    return [f"--{flag}", str(value)]


def write_outcome(folder: Path, outcome: jobs.Outcome) -> None:
    """Writes `summary.json`, `reconstructions.npz`, `reconstructions.png` and `report.html` into `folder`."""
    pictures: dict[str, Any] = {"truth": outcome.truth, "reconstruction": outcome.reconstruction}
    captions = report.captions(outcome.summary)
    with contextlib.ExitStack() as stack:  # the others are written even if one cannot be; the last is called first
        stack.callback(
            report.save_report_html,
            folder / "report.html",
            summary=outcome.summary,
            history=outcome.history,
            **pictures,
        )
        stack.callback(report.save_reconstructions_png, folder / "reconstructions.png", captions=captions, **pictures)
        stack.callback(files.save_arrays, folder / "reconstructions.npz", pictures)
        stack.callback(files.save_json, folder / "summary.json", outcome.summary)


def _table(summary: dict) -> Table:
    """A table of the quality of each image, and the medians."""
    table = Table("target", "example", "class", "PSNR dB", "SSIM", "MSE", "attack loss")
    measures = ("psnr_db", "ssim", "mse")
    for image in summary["images"]:
        figures = (wording.number(image[name], name) for name in measures)
        loss = summary["targets"][image["target"]]["attack_loss"]
        table.add_row(str(image["target"]), str(image["example"]), cell(image["class_name"]), *figures, f"{loss:.2e}")
    table.add_section()
    medians = (wording.number(summary["quality"][name]["median"], name) for name in measures)
    table.add_row("median", "", "", *medians, "")
    return table
