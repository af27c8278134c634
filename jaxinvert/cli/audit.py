"""`jaxinvert audit`: does this deployment leak, and which defense stops it?"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinvert import audit as audits
from jaxinvert import data, files, jobs, models, report
from jaxinvert.cli.console import EXIT_INTERRUPTED, BadInputError, bad_input, progress_bar
from jaxinvert.metrics import perceptual
from jaxinvert.observation import captures
from jaxinvert.search import Progress


@dataclass(frozen=True)
class Audit(jobs.JobConfig):
    """Judge whether clients' updates leak: attacks and null controls under several defenses, a verdict and a page.

    Attributes:
      data: the victims' examples. Nine targets (clients) are the fewest with which two attackers can reach every
        verdict. Split `auto` is `test`, and of the photos `train`: tiles of disjoint parts of the scenes, of which
        each class has several; the ten photos of `test` overlap, one of each class.
      attacker: the attack is by default `auto`: a closed form where one is exact, else spectral matching.
      file: YAML with any of these fields (`_` for `-`); flags that are given as well take precedence.
      defenses: each is judged by the worst of a naive and an adaptive attacker: `none`, `top-k:keep=0.1`,
        `clip+gaussian:norm=1,scale=0.01` ..., see `jaxinvert list`.
      candidates: images among which reconstructions have to pick the private ones, these included.
      accuracy_rounds: rounds of federated training on the split "train" under every defense, for its accuracy on the
        victims' split; by default none.
      leakage_rounds: after how many of them, evenly spread and 5 at most, the worst attacker attacks the same clients
        again, with the parameters that training has by then; by default none.
      lpips: measure LPIPS, too, a distance as people see it; needs `pip install 'jaxinvert[lpips]'`.
      update: files of updates that clients sent (safetensors, npz, Flax msgpack): these are audited instead of
        simulated clients, of `num_examples` each, whose defense is the only one of `defenses`.
      params: file of the parameters that these clients were sent.
      update_kind: what the files hold: before minus after or a gradient, a delta after minus before, or the weights.
      truth: npz with `inputs` and `labels` of these clients, one after the other, for scores and a verdict.
      input_shape: of one example, height, width and channels; by default that of `data`.
      num_classes: by default that of `data`.
      sampling_rate: probability with which an example takes part in one step of the whole training; with
        training_steps it gives the epsilon of dp-sgd.
      training_steps: number of steps of the whole training, for the epsilon of dp-sgd.
      delta: probability with which the guarantee of dp-sgd may fail.
      out: folder for `audit.json`, `report.html`, and what is kept so that the same audit goes on after an interrupt.
    """

    file: tyro.conf.Positional[Path | None] = None
    data: jobs.DataConfig = field(default_factory=lambda: jobs.DataConfig(targets=9, split="auto"))
    attacker: jobs.AttackerConfig = field(default_factory=lambda: jobs.AttackerConfig(attack="auto"))
    defenses: tuple[str, ...] = ("none",)
    candidates: int = 100
    accuracy_rounds: int = 0
    leakage_rounds: int = 0
    lpips: bool = False
    update: tuple[Path, ...] = ()
    params: Path | None = None
    update_kind: captures.Kind = "pseudo-gradient"
    truth: Path | None = None
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    sampling_rate: float | None = None
    training_steps: int | None = None
    delta: float = 1e-5
    out: Path = Path("runs/audit")

    def __post_init__(self) -> None:
        """Checks the fields; what is not possible is said as any other error of a command."""
        with bad_input():
            super().__post_init__()


def audit(command: Audit, command_line: str) -> int:
    """Runs the command; its exit status does not depend on the verdict."""
    console = Console()
    with bad_input():
        command = _with_split(_with_file(command))
        config = jobs.JobConfig.of(**command.flat)
        capture = _capture(command)
        if capture is not None:
            config = audits.job_of_capture(config, capture)
        settings = audits.settings_for(config, command.defenses)
        if capture is not None and len(settings) > 1:
            raise ValueError(f"captured updates have one defense, not {len(settings)}: name the one the clients had")
        training = _training(command)
        if command.lpips:
            perceptual.check_available()
        for setting in settings:  # what cannot be said is found out now, not after the attacks
            audits.privacy(next(iter(setting.attackers.values())), training)
    files.check_writable(command.out)
    num_attacks = sum(len(setting.attackers) for setting in settings)
    console.print(
        f"[bold]{len(settings)} settings[/], {num_attacks} attacks with their controls, on {config.data.targets} "
        f"{'captured' if capture else 'simulated'} clients of {config.data.num_examples} examples",
        highlight=False,
    )
    begin = time.perf_counter()
    with progress_bar(console) as bar:
        row = bar.add_task("preparing", total=config.search.steps, loss="", speed="")
        bar.refresh()

        def show(what: str, progress: Progress | None) -> None:
            done = 0 if progress is None else progress.step
            speed = "" if progress is None else _speed(progress)
            bar.update(row, description=what, completed=done, speed=speed, refresh=True)

        try:
            with bad_input():
                if capture is None:
                    found = audits.audit(
                        settings,
                        num_candidates=command.candidates,
                        accuracy_rounds=command.accuracy_rounds,
                        leakage_rounds=command.leakage_rounds,
                        with_lpips=command.lpips,
                        folder=command.out,
                        on_progress=show,
                    )
                else:
                    found = _of_capture(command, settings[0], capture, show)
        except KeyboardInterrupt:
            bar.update(row, description="interrupted", refresh=True)
            bar.stop()
            console.print(f"interrupted; what is finished stays, and the same command goes on: {command.out}")
            return EXIT_INTERRUPTED
        bar.update(row, description="audited", completed=config.search.steps, refresh=True)
    page = command.out / "report.html"
    with jobs.uninterruptible():
        if isinstance(found, dict):
            record = audits.record_of_capture(found)
            files.save_json(command.out / "audit.json", {**record, "command": command_line})
            report.save_capture_html(page, found=found, title=config.model.name, command=command_line)
            _print_explained(found, console)
        else:
            record = audits.record(found, training)
            files.save_json(command.out / "audit.json", {**record, "command": command_line})
            report.save_audit_html(page, audited=found, record=record, title=config.model.name, command=command_line)
            _print_verdicts(found, console)
    console.print(f"{time.perf_counter() - begin:,.0f} s; page: {page}", highlight=False, soft_wrap=True)
    return 0


def _capture(command: Audit) -> audits.Capture | None:
    """The captured files, if there are any.

    Raises:
      ValueError: if only a part of them is named, or training is asked for, which takes simulated clients.
    """
    if not command.update:
        if command.params is not None or command.truth is not None:
            raise ValueError("params and truth are those of captured updates: name these by update, too")
        return None
    if command.params is None:
        raise ValueError("captured updates need the parameters that the clients were sent: params")
    for name in ("accuracy_rounds", "leakage_rounds"):
        if getattr(command, name):
            raise ValueError(
                f"{name} is {getattr(command, name)}, but captured clients cannot be trained: leave it out"
            )
    return audits.Capture(command.params, command.update, command.update_kind, command.truth)


def _of_capture(
    command: Audit, setting: audits.Scenario, capture: audits.Capture, show: audits.Show
) -> list[audits.Audited] | dict[str, tuple[jobs.JobConfig, audits.Explained]]:
    """Judges captured updates if their truth is known, and says what can be said if not.

    Raises:
      ValueError: for files that do not fit the model.
    """
    shape, num_classes, others, mean, std = command.input_shape, command.num_classes, None, None, None
    if shape is None or num_classes is None:
        others = data.load(command.data.name, split=command.data.split, size=command.data.size)
        shape, num_classes = shape or others.images.shape[1:], num_classes or others.num_classes
        if command.model.normalized:
            mean, std = others.mean, others.std
        if others.images.shape[1:] != tuple(shape):
            others = None
    model = models.create(command.model.name, input_shape=shape, num_classes=num_classes, mean=mean, std=std)
    if capture.truth is None:
        return {
            name: (config, audits.explain_capture(config, capture, model, folder=command.out, on_progress=show))
            for name, config in setting.attackers.items()
        }
    options = {
        "num_candidates": command.candidates,
        "with_lpips": command.lpips,
        "folder": command.out,
        "on_progress": show,
    }
    return [audits.audit_capture(setting, capture, model, others, **options)]


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
    defaults = jobs.flatten(Audit())
    flags = {name: value for name, value in jobs.flatten(command).items() if value != defaults[name]}
    try:
        return jobs.build(Audit, {**jobs.typed(Audit, jobs.read_yaml(command.file)), **flags})
    except (ValueError, BadInputError) as error:
        raise ValueError(f"{command.file}: {error}") from error


def _with_split(command: Audit) -> Audit:
    """The command with the split that `auto` stands for."""
    if command.data.split != "auto":
        return command
    tiles = command.data.name == "photos" and command.data.size in (None, 32)  # there are no larger ones
    return command.replace(split="train" if tiles else "test")


def _speed(progress: Progress) -> str:
    return f"{progress.step * progress.best_loss.size / max(progress.seconds, 1e-9):,.0f} steps/s"


def _print_explained(found: dict[str, tuple[jobs.JobConfig, audits.Explained]], console: Console) -> None:
    """What was explained of every captured update."""
    for name, (_, one) in found.items():
        table = Table("client", "update explained", "random update explained", title=f"{name} attacker")
        for client, (share, noise) in enumerate(zip(one.share, one.share_of_noise)):
            table.add_row(str(client), f"{share:.1%}", f"{noise:.1%}")
        console.print(table)
    console.print("no true images were given, so there is no verdict: look at the page, or give --truth")


def _print_verdicts(audited: list[audits.Audited], console: Console) -> None:
    """The figures, and a verdict on every setting."""
    console.print(_table(audited))
    for one in audited:
        console.print(Text.assemble((f"{one.name}: ", "bold"), f"{one.verdict.headline} {one.verdict.certainty}"))


def _table(audited: list[audits.Audited]) -> Table:
    """One row for every setting and attacker."""
    table = Table("setting", "attacker", "verdict", "identified", "above control dB", "median dB", "worst dB")
    for one in audited:
        for name, attacked in one.attackers.items():
            psnr = attacked.scores.psnr_db
            found, gain = attacked.identified, attacked.excess
            table.add_row(
                Text(one.name),
                name,
                one.verdict.level if name == one.worst else "",
                f"{found.count} of {found.total}",
                f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})",
                f"{np.median(psnr):.1f}",
                f"{psnr.max():.1f}",
            )
    return table
