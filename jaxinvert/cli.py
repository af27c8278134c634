"""The command line: `jaxinvert invert`, `jaxinvert list`, `jaxinvert data prepare`."""

import contextlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jaxinvert import data, job, labels, models, objectives, regularizers, report, search, store, threat_models
from jaxinvert.attacks import registry
from jaxinvert.report import wording

_EXIT_BAD_INPUT = 2
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Invert(job.JobConfig):
    """Simulate clients, observe their updates, and try to get their images back.

    Attributes:
      out: folder for `summary.json`, `reconstructions.npz`, `reconstructions.png` and `report.html`.
    """

    out: Path = Path("runs/invert")


@dataclass(frozen=True)
class List:
    """Show attacks, threat models, label rules, models, data sets, objectives and regularizers by name."""


@dataclass(frozen=True)
class Prepare:
    """Download a data set, or read its official files from a folder, and store it for `--data NAME`.

    Attributes:
      name: of the data set, see `jaxinvert list`.
      source: folder with the official files; nothing is downloaded then.
    """

    name: tyro.conf.Positional[str]
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None


class BadInputError(Exception):
    """What the user asked for is not possible; the message says why."""


Command = (
    Annotated[Invert, tyro.conf.subcommand("invert")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Prepare, tyro.conf.subcommand("data prepare")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command_line = shlex.join(["jaxinvert", *arguments])
    if arguments[:2] == ["data", "prepare"]:  # two words, one command
        arguments[:2] = ["data prepare"]
    try:
        command = tyro.cli(
            Command,
            prog="jaxinvert",
            description="Measure what a federated-learning update leaks.",
            args=arguments,
        )
        return _COMMANDS[type(command)](command, command_line)
    except (BadInputError, OSError) as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return _EXIT_BAD_INPUT
    except KeyboardInterrupt:
        with job.uninterruptible():
            Console(stderr=True).print("interrupted before anything was reconstructed; nothing was written")
        return _EXIT_INTERRUPTED


def run() -> NoReturn:
    """Runs the command line as a process.

    An interrupt can leave a compiler thread behind, which the interpreter would not survive shutting down: then the
    process ends without it.
    """
    try:
        status = main()
    except KeyboardInterrupt:
        status = _EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    if status == _EXIT_INTERRUPTED:
        os._exit(status)
    sys.exit(status)


def _invert(command: Invert, command_line: str) -> int:
    _, interrupted = invert_and_write(command, command.out, command_line=command_line)
    return _EXIT_INTERRUPTED if interrupted else 0


def invert_and_write(config: job.JobConfig, folder: Path, *, command_line: str) -> tuple[job.Outcome, bool]:
    """Runs a job with live progress, prints its table and writes its files.

    Args:
      config: the job.
      folder: where `summary.json`, `reconstructions.npz`, `reconstructions.png` and `report.html` go.
      command_line: how to run it again, for the report.

    Returns:
      The outcome, and whether the run was interrupted (then the outcome is the best so far).

    Raises:
      BadInputError: if the job is not possible.
    """
    console = Console()
    with _bad_input():
        task = job.prepare(config)
    store.check_writable(folder)
    size = "x".join(map(str, task.model.input_shape))
    console.print(
        f"[bold]{config.attack}[/] on {task.model.name}: {config.targets} targets x {config.num_private} examples, "
        f"{size} pixels",
        highlight=False,
    )
    with _progress_bar(console) as bar:
        row = bar.add_task("compiling", total=config.steps, loss="", speed="")

        def show(progress: search.Progress) -> None:
            lanes = progress.best_loss.size
            bar.update(
                row,
                description="inverting",
                completed=progress.step,
                loss=f"attack loss {np.median(progress.best_loss.min(axis=1)):.2e}",
                speed=f"{progress.step * lanes / max(progress.seconds, 1e-9):,.0f} steps/s",
            )

        with _bad_input():  # an attack that does not fit the model says so when it is traced
            execution = job.execute(config, task.program, task.observations, on_progress=show)
        if execution.interrupted:
            bar.update(row, description="interrupted")
        elif not execution.history:
            bar.update(row, description="solved", total=1, completed=1)
        else:
            bar.update(row, description="inverted")
    with job.uninterruptible():
        outcome = job.measure(config, task, execution)
        outcome.summary["command"] = command_line
        console.print(_table(outcome.summary))
        if found := outcome.summary["labels"]:
            how = "restored" if config.labels == "restored" else "found"
            exact = f"exact for {np.sum(found['exact'])} of {config.targets} targets"
            console.print(f"labels {how}: {exact}, {found['recall']:.0%} of the examples", highlight=False)
        if failed := [t for t, target in enumerate(outcome.summary["targets"]) if target["failed"]]:
            console.print(
                f"targets {failed}: no restart had a finite attack loss; their pictures show only a start",
                style="bold red",
                markup=False,
            )
        write_outcome(folder, outcome)
    console.print(f"pictures and page: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    return outcome, execution.interrupted


def command_line(config: job.JobConfig, folder: Path) -> str:
    """The command that runs `config` and writes to `folder`."""
    defaults = asdict(job.JobConfig())
    changed = {name: value for name, value in asdict(config).items() if value != defaults[name]}
    flags = [word for name, value in changed.items() for word in _words(name.replace("_", "-"), value)]
    return shlex.join(["jaxinvert", "invert", *flags, "--out", str(folder)])


def _words(flag: str, value: Any) -> list[str]:
    """A flag and its value as the command line takes them."""
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", *(str(part) for item in value.items() for part in item)]
    return [f"--{flag}", str(value)]


def write_outcome(folder: Path, outcome: job.Outcome) -> None:
    """Writes `summary.json`, `reconstructions.npz`, `reconstructions.png` and `report.html` into `folder`."""
    store.save_json(folder / "summary.json", outcome.summary)
    store.save_arrays(
        folder / "reconstructions.npz", {"truth": outcome.truth, "reconstruction": outcome.reconstruction}
    )
    report.save_reconstructions_png(
        folder / "reconstructions.png",
        truth=outcome.truth,
        reconstruction=outcome.reconstruction,
        captions=report.captions(outcome.summary),
    )
    report.save_report_html(
        folder / "report.html",
        summary=outcome.summary,
        truth=outcome.truth,
        reconstruction=outcome.reconstruction,
        history=outcome.history,
    )


def _list(command: List, command_line: str) -> int:
    del command, command_line
    console = Console()
    rows = {
        "attacks": {name: _described(recipe) for name, recipe in registry.REGISTRY.items()},
        "threat models": {name: "grants " + ", ".join(model.granted) for name, model in threat_models.LADDER.items()},
        "label rules": {name: rule.summary for name, rule in labels.REGISTRY.items()},
        "models": {name: _first_line(factory) for name, factory in models.REGISTRY.items()},
        "data sets": dict.fromkeys(data.names(), "") | {"FOLDER": "any folder of images", "FILE.npz": "arrays"},
        "objectives": {name: _first_line(objective) for name, objective in objectives.REGISTRY.items()},
        "regularizers": {name: _first_line(prior) for name, prior in regularizers.REGISTRY.items()},
    }
    for kind, entries in rows.items():
        table = Table(
            title=kind, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2)
        )
        for name, summary in entries.items():
            table.add_row(name, Text(summary))
        console.print(table)
    return 0


def _described(recipe: registry.Recipe) -> str:
    settings = ", ".join(f"{name} {value:g}" for name, value in recipe.hyperparameters.items())
    return f"{recipe.summary}; settings: {settings}" if settings else recipe.summary


def _prepare(command: Prepare, command_line: str) -> int:
    del command_line
    with _bad_input():
        where = data.prepare(command.name, source=command.source)
    Console().print(f"{command.name} is ready in {where}", highlight=False, markup=False, soft_wrap=True)
    return 0


_COMMANDS: dict[type, Callable[..., int]] = {Invert: _invert, List: _list, Prepare: _prepare}


def _table(summary: dict) -> Table:
    """The figures per image, and their median."""
    table = Table("target", "example", "class", "PSNR dB", "SSIM", "MSE", "attack loss")
    measures = ("psnr_db", "ssim", "mse")
    for image in summary["images"]:
        figures = (wording.number(image[name], name) for name in measures)
        loss = summary["targets"][image["target"]]["attack_loss"]
        table.add_row(str(image["target"]), str(image["example"]), Text(image["class_name"]), *figures, f"{loss:.2e}")
    table.add_section()
    medians = (wording.number(summary["quality"][name]["median"], name) for name in measures)
    table.add_row("median", "", "", *medians, "")
    return table


@contextlib.contextmanager
def _bad_input() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BadInputError(str(error)) from error


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _first_line(documented: object) -> str:
    """The first sentence of a docstring, looking through `functools.partial`."""
    text = inspect.getdoc(getattr(documented, "func", documented)) or ""
    return text.split("\n\n")[0].split(". ")[0].replace("\n", " ").replace("`", "")
