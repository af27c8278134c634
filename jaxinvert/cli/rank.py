"""The command `jaxinvert rank`: what a job's updates allow without an attack: closed forms, and a linear estimate."""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np
from rich.table import Table

from jaxinvert import audit, jobs
from jaxinvert.attacks.closed_form.adapters import adapter_ranks
from jaxinvert.attacks.closed_form.rank import RankReport, rank_report
from jaxinvert.cli.console import Terminal, bad_input, cell, saying
from jaxinvert.cli.rank_text import show_adapters
from jaxinvert.cli.unused import note_of_rank
from jaxinvert.jobs.limits import at_least


@dataclass(frozen=True)
class Rank(jobs.JobConfig):
    """Show the ranks of updates, which closed-form attacks apply, and what a linear estimate would reach.

    Takes the arguments of `invert`; runs no attack. Ranks and closed forms take seconds. A single update to which a
    closed form applies is a leak. If updates differ, the reason shown is that of such an update. The attack-free
    figure is the PSNR in dB that the derivative of the update admits at the true images, by default of the first
    example of every client; it is an estimate, not a bound. Its compilation takes longest for deep networks.

    Attributes:
      linear_examples: number of examples per client, the first ones of its batch, for the attack-free figure; 0 for
        none. Each costs about as much as 50 steps of an attack.
    """

    linear_examples: int = 1

    def __post_init__(self) -> None:
        """Checks the fields; raises BadInputError."""
        with bad_input():
            super().__post_init__()
            at_least(0, linear_examples=self.linear_examples)


def rank(command: Rank, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    note_of_rank(command, command_line)
    console = Terminal()
    with bad_input(), saying(console) as say:
        say("simulating the clients")
        task = jobs.prepare(command)
    updates = jax.device_get(task.observations.update)
    apart = [
        jax.tree.map(lambda leaf, client=client: leaf[client], updates) for client in range(command.data.targets)
    ]
    reports = [rank_report(update, batch_shape=task.truth.inputs.shape[1:]) for update in apart]
    show(console, reports, passes=command.client.local_epochs, not_counted=jobs.not_a_sum_of_gradients(command))
    show_adapters(console, [adapter_ranks(update) for update in apart])
    if command.linear_examples:
        with bad_input(), saying(console) as say:
            say("measuring the attack-free figure, whose compilation may take minutes")
            found = audit.attack_free(command, task, most_examples=command.linear_examples)
        show_attack_free(console, found)
    return 0


def show(console: Terminal, reports: list[RankReport], *, passes: int = 1, not_counted: str = "") -> None:
    """Prints one combined report for all clients of one model.

    Args:
      console: where to.
      reports: one per client.
      passes: how often a client visits each example, which adds to the rank each time.
      not_counted: why ranks do not count examples; empty if they do.
    """
    first = reports[0]
    tensors = Table("tensor", "inputs", "outputs", "rank")
    for number, tensor in enumerate(first.tensors):
        ranks = (report.tensors[number].rank for report in reports)
        tensors.add_row(cell(tensor.name), *map(str, tensor.shape), cell(_span(ranks, unknown="not finite")))
    console.print(tensors)
    least = _span(-(-report.least_examples // passes) for report in reports)
    examples = f"ranks do not count examples: {not_counted}" if not_counted else f"each has at least {least} examples"
    enough = sum(report.num_equations >= report.num_unknowns for report in reports)
    console.print(
        f"clients: {len(reports)}; {examples}; "
        f"{_span(report.num_equations for report in reports)} equations for {first.num_unknowns:,} unknown pixels, "
        f"enough for a unique solution: {_of_all(enough, reports)}",
        soft_wrap=True,
    )
    closed_forms = Table("closed form", "applies to", "why")
    for number, form in enumerate(first.closed_forms):
        of_form = [report.closed_forms[number] for report in reports]
        leaks = [one for one in of_form if one.applies]
        closed_forms.add_row(form.attack, _of_all(len(leaks), reports), cell((leaks or of_form)[0].reason))
    console.print(closed_forms)


def show_attack_free(console: Terminal, found: audit.AttackFree) -> None:
    """Prints the attack-free figure: median and range over the measured examples of all clients."""
    if found.psnr_db is None or found.low_db is None or found.high_db is None:
        return console.print(f"attack-free figure: none; {found.reason}", soft_wrap=True)
    low, high = np.median(found.low_db), np.median(found.high_db)
    lines = [
        f"attack-free figure: {_median_and_range(found.psnr_db)}; by {audit.NUM_STEPS} steps it is only known to lie "
        f"between {low:.1f} and {high:.1f} dB (medians)",
        f"  {found.words}",
    ]
    if found.unbiased_db is not None:
        most = _median_and_range(found.unbiased_db)
        lines.append(f"  attacks without bias reach {most} at most, {found.unbiased_words}")
    for line in lines:
        console.print(line, soft_wrap=True)


def _median_and_range(decibels: np.ndarray) -> str:
    spread = f" ({decibels.min():.1f} to {decibels.max():.1f} over {decibels.size} examples)"
    return f"{np.median(decibels):.1f} dB{spread if decibels.size > 1 else ''}"


def _span(numbers: Iterable[int | None], *, unknown: str = "") -> str:
    """The smallest and largest number as text, followed by `unknown` if a number is `None`."""
    numbers = list(numbers)
    known = sorted({number for number in numbers if number is not None})
    ends = " to ".join(f"{number:,}" for number in dict.fromkeys([known[0], known[-1]])) if known else ""
    return ", ".join(filter(None, [ends, unknown if None in numbers else ""]))


def _of_all(count: int, reports: list[RankReport]) -> str:
    return {0: "none", len(reports): "all"}.get(count, f"{count} of {len(reports)}")
