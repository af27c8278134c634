"""The command `jaxinvert audit`: whether a deployment leaks, and which defense prevents it."""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from jaxinvert import audit as audits
from jaxinvert import jobs, report
from jaxinvert.audit.reading import digest_of
from jaxinvert.cli.auditing import finish, identity, print_plan, show_finished, show_forecast, with_progress
from jaxinvert.cli.captured import capture_of, judge_capture, with_round
from jaxinvert.cli.console import EXIT_INTERRUPTED, Terminal, alone_in, bad_input
from jaxinvert.cli.fields import DELTA, check_numbers, said, training_of
from jaxinvert.cli.unused import note_of_audit, refuse_without_epsilon, refuse_without_truth
from jaxinvert.metrics import perceptual
from jaxinvert.observation import captures
from jaxinvert.report.wording import plural


@dataclass(frozen=True)
class Audit(jobs.JobConfig):
    """Judge whether clients' updates leak: run attacks and null controls under each defense, and give a verdict.

    The private data are images; `jaxinvert audit table` and `jaxinvert audit text` do the same for records and text.

    Attributes:
      data: private data of the simulated clients. Every verdict is possible with as many targets (clients) as the
        page names (usually 9). Split `auto` means `test`, but `private` for the photos: its tiles are disjoint
        parts of the scenes, several per class, while the ten photos of `test` overlap, one per class.
      attacker: the attack. The default `auto` uses a closed form where one is exact, else whitened
        or spectral matching.
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
      dry_run: only measure some steps, rounds and examples of every setting, and print how long the audit would take.
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
    delta: float = DELTA
    dry_run: bool = False
    out: Path = Path("runs/audit")

    def __post_init__(self) -> None:
        """Checks the fields, unless a file or a captured round will give some of them."""
        if self.file is None and self.capture is None:
            with bad_input():
                super().__post_init__()


def audit(command: Audit, command_line: str) -> int:
    """Runs the command; its exit status does not depend on the verdict."""
    console = Terminal()
    with bad_input():
        given = said(command, command_line)
        command = _with_split(with_round(command, command_line))
        check_numbers(command)
        config = jobs.JobConfig.of(**command.flat)
        capture = capture_of(command)
        if capture is not None and command.dry_run:
            raise ValueError("dry_run measures simulated clients, but the updates are captured: leave it out")
        if capture is not None:
            refuse_without_truth(command, capture)
            config, capture = audits.job_of_capture(config, capture, defenses=command.defenses)
        settings = audits.settings_for(config, command.defenses)
        if capture is not None and len(settings) > 1:
            raise ValueError(f"captured updates have one defense, not {len(settings)}: name the one that was used")
        training = training_of(command.sampling_rate, command.training_steps, command.delta)
        if command.lpips:
            perceptual.check_available()
        # also reports invalid values before the attacks
        privacies = [audits.privacy(next(iter(setting.attackers.values())), training) for setting in settings]
        refuse_without_epsilon(training, privacies, command.defenses)
    with bad_input():
        name = identity(_parts(command, settings, capture))
    kind = "captured" if capture else "simulated"
    clients = f"{plural(config.data.targets, f'{kind} client')} of {plural(config.data.num_examples, 'example')}"

    def run(show: audits.Show) -> list[audits.Audited] | dict[str, tuple[jobs.JobConfig, audits.Explained]]:
        if capture is not None:
            return judge_capture(command, settings[0], capture, show)
        return audits.audit(
            settings,
            num_candidates=command.candidates,
            accuracy_rounds=command.accuracy_rounds,
            leakage_rounds=command.leakage_rounds,
            with_lpips=command.lpips,
            with_attack_free=command.attack_free,
            folder=command.out,
            on_progress=show,
        )

    with alone_in(command.out, *audits.INSIDE):
        if show_finished(console, command.out, name):
            return 0
        print_plan(console, settings, clients)
        if command.dry_run:
            return _forecast(command, settings, console)
        begin = time.perf_counter()
        found = with_progress(console, command.out, config.search.steps, run)
        if found is None:
            return EXIT_INTERRUPTED
        note_of_audit(given.keys(), found)
        of_page = {"title": config.model.name, "command": command_line}
        if isinstance(found, dict):
            record, save = audits.record_of_capture(found), partial(report.save_capture_html, found=found, **of_page)
        else:
            record = audits.record(found, training)
            save = partial(
                report.save_audit_html, audited=found, record=record, captured=capture is not None, **of_page
            )
        finish(console, command.out, record, save, name=name, command_line=command_line, begin=begin)
    return 0


def _forecast(command: Audit, settings: list[audits.Scenario], console: Terminal) -> int:
    parts = audits.forecast(
        settings,
        accuracy_rounds=command.accuracy_rounds,
        leakage_rounds=command.leakage_rounds,
        with_attack_free=command.attack_free,
        folder=command.out,
    )
    return show_forecast(console, parts)


def _parts(command: Audit, settings: list[audits.Scenario], capture: audits.Capture | None) -> list[Any]:
    """What determines the record of this audit; files count by their contents."""
    fields = {name: value for name, value in jobs.flatten(command).items() if name not in ("out", "file", "dry_run")}
    digests: dict[Path, str] = {}
    attackers = [
        (setting.name, setting.note, attacker, jobs.job_name(one, digests))
        for setting in settings
        for attacker, one in setting.attackers.items()
    ]
    return [fields, attackers, None if capture is None else [digest_of(capture), capture.notes, capture.rate]]


def _with_split(command: Audit) -> Audit:
    """The command with split `auto` replaced by the split that it stands for."""
    if command.data.split != "auto":
        return command
    tiles = command.data.name == "photos" and command.data.size in (None, 32)  # there are no larger tiles
    return command.replace(split="private" if tiles else "test")
