"""The command `jaxinvert audit`: whether a deployment leaks, and which defense prevents it."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinvert import audit as audits
from jaxinvert import files, jobs, report
from jaxinvert.cli.captured import capture_of, judge_capture, with_round
from jaxinvert.cli.console import EXIT_INTERRUPTED, bad_input, progress_bar
from jaxinvert.cli.fields import check_numbers, training_of
from jaxinvert.metrics import perceptual
from jaxinvert.observation import captures
from jaxinvert.search import Progress


@dataclass(frozen=True)
class Audit(jobs.JobConfig):
    """Judge whether clients' updates leak: run attacks and null controls under each defense, and give a verdict.

    The private data are images; `jaxinvert audit table` and `jaxinvert audit text` do the same for records and text.

    Attributes:
      data: private data of the simulated clients. With two attackers, at least nine targets (clients) are needed for
        every verdict to be possible. Split `auto` means `test`, but `train` for the photos: its tiles are disjoint
        parts of the scenes, several per class, while the ten photos of `test` overlap, one per class.
      attacker: the attack. The default `auto` uses a closed form where one is exact, else spectral matching.
      file: YAML file with any of these fields (`_` for `-`); flags take precedence over it.
      defenses: defenses to compare, such as `none`, `top-k:keep=0.1`, `clip+gaussian:norm=1,scale=0.01`; each is
        judged by the worst of a naive and an adaptive attacker; see `jaxinvert list`.
      candidates: number of images, including the private ones, among which reconstructions have to pick out the
        private ones.
      accuracy_rounds: rounds of federated training under every defense, on the split "train", to measure its accuracy
        on images that are not trained on; 0 = no training.
      leakage_rounds: number of evenly spaced points during the training of accuracy_rounds, at most 5, at which the
        worst attacker attacks the same clients again with the current parameters; 0 = none.
      lpips: also measure LPIPS, a perceptual distance; needs `pip install 'jaxinvert[lpips]'`.
      attack_free: also compute what each setting's updates allow by their derivative, before any attack.
      capture: folder of a captured round, see `jaxinvert.integrations`; its `capture.json` gives all the facts below
        that flags do not change.
      clients: names of the clients of the captured round to audit; by default all with the same number of examples.
      update: files with captured updates, one per client (safetensors, npz, Flax msgpack), to audit instead of
        simulated clients; each is from `num_examples` examples, and `defenses` names the one defense that was used.
      params: file of the parameters that the server sent to the clients of the captured updates.
      update_kind: what the files of captured updates hold: parameters before minus after training or a gradient
        (pseudo-gradient), parameters after minus before (delta), or parameters after training (weights).
      truth: npz with the true `inputs` and `labels` of the clients of the captured updates, concatenated over
        clients; needed for scores and a verdict.
      mean: per-channel means that the clients of captured updates subtract from pixels in [0, 1]; by default none.
      std: per-channel standard deviations by which they divide.
      input_shape: height, width and channels of one example of captured updates; by default those of `data`.
      num_classes: number of classes of the model of captured updates; by default that of `data`.
      sampling_rate: probability that an example takes part in one step of the whole training; together with
        training_steps it determines the epsilon of dp-sgd.
      training_steps: number of steps of the whole training; together with sampling_rate it determines the epsilon of
        dp-sgd.
      delta: probability that the differential-privacy guarantee of dp-sgd may fail.
      out: folder for `audit.json`, `report.html`, and the state from which the same audit resumes after an interrupt.
    """

    file: tyro.conf.Positional[Path | None] = None
    data: jobs.DataConfig = field(default_factory=lambda: jobs.DataConfig(targets=9, split="auto"))
    attacker: jobs.AttackerConfig = field(default_factory=lambda: jobs.AttackerConfig(attack="auto"))
    defenses: tuple[str, ...] = ("none",)
    candidates: int = 100
    accuracy_rounds: int = 0
    leakage_rounds: int = 0
    lpips: bool = False
    attack_free: bool = True
    capture: Path | None = None
    clients: tuple[str, ...] = ()
    update: tuple[Path, ...] = ()
    params: Path | None = None
    update_kind: captures.Kind = "pseudo-gradient"
    truth: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    sampling_rate: float | None = None
    training_steps: int | None = None
    delta: float = 1e-5
    out: Path = Path("runs/audit")

    def __post_init__(self) -> None:
        """Checks the fields, unless a file or a captured round will give some of them."""
        if self.file is None and self.capture is None:
            with bad_input():
                super().__post_init__()


def audit(command: Audit, command_line: str) -> int:
    """Runs the command; its exit status does not depend on the verdict."""
    console = Console()
    with bad_input():
        command = _with_split(with_round(command, command_line))
        check_numbers(command)
        config = jobs.JobConfig.of(**command.flat)
        capture = capture_of(command)
        if capture is not None:
            config, capture = audits.job_of_capture(config, capture)
        settings = audits.settings_for(config, command.defenses)
        if capture is not None and len(settings) > 1:
            raise ValueError(f"captured updates have one defense, not {len(settings)}: name the one that was used")
        training = training_of(command.sampling_rate, command.training_steps, command.delta)
        if command.lpips:
            perceptual.check_available()
        for setting in settings:  # reports invalid values before the attacks
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
                        with_attack_free=command.attack_free,
                        folder=command.out,
                        on_progress=show,
                    )
                else:
                    found = judge_capture(command, settings[0], capture, show)
        except KeyboardInterrupt:
            bar.update(row, description="interrupted", refresh=True)
            bar.stop()
            console.print(f"interrupted; the state is saved, and the same command resumes: {command.out}")
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


def _with_split(command: Audit) -> Audit:
    """The command with split `auto` replaced by the split that it stands for."""
    if command.data.split != "auto":
        return command
    tiles = command.data.name == "photos" and command.data.size in (None, 32)  # there are no larger tiles
    return command.replace(split="private" if tiles else "test")


def _speed(progress: Progress) -> str:
    return f"{progress.step * progress.best_loss.size / max(progress.seconds, 1e-9):,.0f} steps/s"


def _print_explained(found: dict[str, tuple[jobs.JobConfig, audits.Explained]], console: Console) -> None:
    """Prints the share of every captured update that the reconstruction explains."""
    for name, (_, one) in found.items():
        table = Table("client", "update explained", "random update explained", title=f"{name} attacker")
        for client, (share, noise) in enumerate(zip(one.share, one.share_of_noise)):
            table.add_row(str(client), f"{share:.1%}", f"{noise:.1%}")
        console.print(table)
    console.print("no true images were given, so there is no verdict: inspect the page, or give --truth")


def _print_verdicts(audited: list[audits.Audited], console: Console) -> None:
    """Prints the table, and the verdict on every scenario."""
    console.print(_table(audited))
    for one in audited:
        console.print(Text.assemble((f"{one.name}: ", "bold"), f"{one.verdict.headline} {one.verdict.certainty}"))


def _table(audited: list[audits.Audited]) -> Table:
    """A table with one row for every scenario and attacker."""
    table = Table("setting", "attacker", "verdict", "identified", "above control dB", "median dB", "max dB")
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
