"""The commands `jaxinvert sweep`, which runs the jobs of a file, and `jaxinvert report`, which shows the results."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.table import Table
from rich.text import Text

from jaxinvert import files, report, search, sweeps
from jaxinvert.cli.console import EXIT_INTERRUPTED, Terminal, bad_input, cell, progress_bar, saying
from jaxinvert.jobs.limits import positive

_EXIT_FAILURES = 1


@dataclass(frozen=True)
class Sweep:
    """Run all jobs of a YAML file in batches and record each; run it again to resume, or to repeat failed jobs.

    Attributes:
      file: YAML file with fields of `jaxinvert invert` (with `_` for `-`), `grid`, `list` and `batch`, see
        `jaxinvert.sweeps.plan`.
      out: folder for the records, `summary.parquet` and `report.html`.
      engine: where to run jobs: "process" in this process, "ray" on a Ray cluster (`pip install 'jaxinvert[ray]'`).
      address: address of the Ray cluster; by default from the environment, else a new cluster on this machine.
      cpus: number of CPUs reserved for each Ray task; by default all of a machine.
      gpus: number of GPUs reserved for each Ray task.
      import_models: whether networks `module:function` that the file names may be imported, which runs their code.
      dry_run: only show the plan: jobs, programs to compile, memory, estimated time. Compiles and times each program.
    """

    file: tyro.conf.Positional[Path]
    out: Path = Path("runs/sweep")
    engine: Literal["process", "ray"] = "process"
    address: str | None = None
    cpus: float | None = None
    gpus: float = 0
    import_models: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers, also for an engine that does not use them; raises BadInputError."""
        with bad_input():
            if self.cpus is not None:
                positive(cpus=self.cpus)
            if not 0 <= self.gpus < math.inf:
                raise ValueError(f"gpus is {self.gpus}, expected a finite number of at least 0")


@dataclass(frozen=True)
class Report:
    """Show the results of a sweep, finished or not; writes `summary.parquet` and `report.html` into its folder.

    Attributes:
      folder: folder of the sweep, the `--out` of `jaxinvert sweep`.
    """

    folder: tyro.conf.Positional[Path]


def sweep(command: Sweep, command_line: str) -> int:
    """Runs the command and returns its exit status, 1 if jobs failed."""
    console = Terminal()
    with bad_input():
        plan = sweeps.read_plan(command.file, import_models=command.import_models)
    num_programs = len(plan.batches_by_program)
    told = (
        f" in {len(plan.batches)} batches, {num_programs} programs to compile; "
        f"they differ in {', '.join(plan.varied) or 'nothing'}"
    )
    console.print(Text.assemble((f"{len(plan.jobs)} jobs", "bold"), told))
    if command.dry_run:
        return _show_plan(plan, console)
    files.check_writable(command.out)
    begin, finished = time.perf_counter(), None
    with progress_bar(console) as bar:
        row = bar.add_task("jobs", total=len(plan.jobs), loss="", speed="", from_zero=True)
        bar.refresh()

        def show(batch: sweeps.Batch, progress: search.Progress) -> None:
            steps = progress.step * progress.best_loss.size
            speed = f"{steps / max(progress.seconds, 1e-9):,.0f} steps/s"
            part = progress.step / max(progress.num_steps, 1) * len(batch.jobs)
            bar.update(row, completed=done_before + part, speed=speed, refresh=True)

        done_before = 0
        with bad_input():
            engine = (
                sweeps.in_process(show)
                if command.engine == "process"
                else sweeps.on_ray(command.address, cpus=command.cpus, gpus=command.gpus)
            )
        try:
            with bad_input():
                for finished in sweeps.run(plan, command.out, engine=engine):
                    done_before = finished.done + finished.failed
                    failed = f"{finished.failed} failed" if finished.failed else ""
                    bar.update(row, completed=done_before, loss=failed, refresh=True)
        except KeyboardInterrupt:
            bar.update(row, description="interrupted", refresh=True)
            bar.stop()
            console.print(f"interrupted; finished jobs are in {command.out}; run the same command again to resume")
            return EXIT_INTERRUPTED
    assert finished is not None
    console.print(
        f"{finished.done} of {finished.total} jobs recorded, {finished.failed} failed, "
        f"{time.perf_counter() - begin:,.0f} s",
    )
    with bad_input():
        _report(command.out, console, command_line=command_line)
    return _EXIT_FAILURES if finished.failed else 0


def report_sweep(command: Report, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    with bad_input():
        _report(command.folder, Terminal(), command_line=command_line)
    return 0


def _show_plan(plan: sweeps.Plan, console: Terminal) -> int:
    """Prints the estimated memory and time of each program."""
    table = Table("attack", "model", "jobs", "batches", "jobs per batch", "peak MiB", "compile s", "run s")
    total = 0.0
    programs, estimates = plan.batches_by_program, sweeps.estimate(plan)
    with bad_input(), saying(console) as say:
        for number, batches in enumerate(programs, 1):
            of = batches[0].jobs[0].config
            say(f"measuring program {number} of {len(programs)}: {of.attacker.attack} on {of.model.name}")
            program = next(estimates)
            total += program.seconds
            run = program.seconds - program.seconds_compile
            sizes = (program.num_jobs, program.num_batches, program.width)
            costs = (f"{program.peak_bytes / 2**20:,.0f}", f"{program.seconds_compile:,.1f}", f"{run:,.1f}")
            table.add_row(cell(program.attack), cell(program.model), *map(str, sizes), *costs)
    console.print(table)
    console.print(f"about {total:,.0f} s on this machine; nothing was recorded")
    return 0


def _report(folder: Path, console: Terminal, *, command_line: str) -> None:
    """Prints the table of a sweep and writes its summary and page."""
    rows, plan = sweeps.summarize(folder), sweeps.read_plan_file(folder)
    report.save_sweep_html(
        folder / "report.html",
        rows=rows,
        varied=plan["varied"],
        records=sweeps.records_of(folder),
        failures=sweeps.failures_of(folder),
        jobs=plan["jobs"],
        title=folder.name,
        command=command_line,
    )
    if rows:
        console.print(report.sweep_table(rows, plan["varied"]))
    console.print(f"page: {folder / 'report.html'}", soft_wrap=True)
