"""`jaxinvert audit`: does this deployment leak, and which defense stops it?"""

import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinvert import audit as audits
from jaxinvert import job, report, store
from jaxinvert.cli.console import EXIT_INTERRUPTED, bad_input, progress_bar
from jaxinvert.search import Progress


@dataclass(frozen=True)
class Audit(job.JobConfig):
    """Judge whether clients' updates leak: attacks and null controls under several defenses, a verdict and a page.

    Attributes:
      file: YAML with any of these fields (`_` for `-`); flags that are given as well take precedence.
      defenses: each is judged by the worst of a naive and an adaptive attacker: `none`, `top-k:keep=0.1`,
        `clip+gaussian:norm=1,scale=0.01` ..., see `jaxinvert list`.
      candidates: images among which reconstructions have to pick the private ones, these included.
      sampling_rate: probability with which an example takes part in a step of the whole training, for the epsilon of
        dp-sgd.
      training_steps: of the whole training, for the same.
      delta: of that epsilon.
      targets: clients; eight are the fewest that can show all there is to show.
      out: folder for `audit.json`, `report.html`, and what is kept so that the same audit goes on after an interrupt.
    """

    file: tyro.conf.Positional[Path | None] = None
    defenses: tuple[str, ...] = ("none",)
    candidates: int = 100
    sampling_rate: float | None = None
    training_steps: int | None = None
    delta: float = 1e-5
    targets: int = 8
    out: Path = Path("runs/audit")


def audit(command: Audit, command_line: str) -> int:
    """Runs the command; its exit status does not depend on the verdict."""
    console = Console()
    with bad_input():
        command = _with_file(command)
        config = job.JobConfig(**{field.name: getattr(command, field.name) for field in fields(job.JobConfig)})
        settings = audits.settings_for(config, command.defenses)
        training = _training(command)
        for setting in settings:  # what cannot be said is found out now, not after the attacks
            audits.privacy(next(iter(setting.attackers.values())), training)
    store.check_writable(command.out)
    num_attacks = sum(len(setting.attackers) for setting in settings)
    console.print(
        f"[bold]{len(settings)} settings[/], {num_attacks} attacks with their controls, on {config.targets} clients "
        f"of {config.num_private} examples",
        highlight=False,
    )
    begin = time.perf_counter()
    with progress_bar(console) as bar:
        row = bar.add_task("preparing", total=config.steps, loss="", speed="")
        bar.refresh()

        def show(what: str, progress: Progress | None) -> None:
            done = 0 if progress is None else progress.step
            speed = "" if progress is None else _speed(progress)
            bar.update(row, description=what, completed=done, speed=speed, refresh=True)

        try:
            with bad_input():
                audited = audits.audit(
                    settings, num_candidates=command.candidates, folder=command.out, on_progress=show
                )
        except KeyboardInterrupt:
            bar.update(row, description="interrupted", refresh=True)
            bar.stop()
            console.print(f"interrupted; what is finished stays, and the same command goes on: {command.out}")
            return EXIT_INTERRUPTED
        bar.update(row, description="audited", completed=config.steps, refresh=True)
    with job.uninterruptible():
        record = audits.record(audited, training)
        store.save_json(command.out / "audit.json", {**record, "command": command_line})
        report.save_audit_html(
            command.out / "report.html", audited=audited, record=record, title=config.model, command=command_line
        )
    console.print(_table(audited))
    for one in audited:
        console.print(Text.assemble((f"{one.name}: ", "bold"), f"{one.verdict.headline} {one.verdict.certainty}"))
    console.print(
        f"{time.perf_counter() - begin:,.0f} s; page: {command.out / 'report.html'}", highlight=False, soft_wrap=True
    )
    return 0


def _training(command: Audit) -> audits.Training | None:
    """The training that an epsilon is about, if it is known.

    Raises:
      ValueError: if half of it is known.
    """
    if command.sampling_rate is None and command.training_steps is None:
        return None
    if command.sampling_rate is None or command.training_steps is None:
        raise ValueError("an epsilon needs both sampling_rate and training_steps")
    return audits.Training(command.sampling_rate, command.training_steps, command.delta)


def _with_file(command: Audit) -> Audit:
    """The command with the fields of its file, where no flag says otherwise.

    Raises:
      ValueError: if the file is no YAML of fields.
    """
    if command.file is None:
        return command
    defaults, given = asdict(Audit()), asdict(command)
    flags = {name: getattr(command, name) for name, value in given.items() if value != defaults[name]}
    try:
        return replace(Audit(), **{**job.typed(Audit, job.read_yaml(command.file)), **flags})
    except ValueError as error:
        raise ValueError(f"{command.file}: {error}") from error


def _speed(progress: Progress) -> str:
    return f"{progress.step * progress.best_loss.size / max(progress.seconds, 1e-9):,.0f} steps/s"


def _table(audited: list[audits.Audited]) -> Table:
    """One row for every setting and attacker."""
    table = Table("setting", "attacker", "verdict", "identified", "above control dB", "median dB", "worst dB")
    for one in audited:
        for name, attacked in one.attackers.items():
            psnr = sorted(attacked.scores.psnr_db.ravel())
            found, gain = attacked.identified, attacked.excess
            table.add_row(
                Text(one.name),
                name,
                one.verdict.level if name == one.worst else "",
                f"{found.count} of {found.total}",
                f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})",
                f"{psnr[len(psnr) // 2]:.1f}",
                f"{psnr[-1]:.1f}",
            )
    return table
