"""The command `jaxinvert tokens`: attacks clients with text."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from jaxinvert import files, jobs
from jaxinvert.cli.console import Terminal, bad_input
from jaxinvert.cli.scores import client_bar, finish
from jaxinvert.jobs import text


@dataclass(frozen=True)
class Tokens(text.TextConfig):
    """Simulate clients that train a transformer on text, and try to reconstruct it (DAGER, TAG, LAMP or TIGER).

    DAGER is in closed form; TAG, LAMP and TIGER search.

    Attributes:
      json: JSON file for all results, with reconstructed and true sequences; by default none is written.
    """

    json: Path | None = None

    def __post_init__(self) -> None:
        """Checks the fields; raises BadInputError."""
        with bad_input():
            super().__post_init__()


def invert_tokens(command: Tokens, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    console = Terminal()
    if command.json is not None:
        files.check_writable_file(command.json)
    told = (
        f" on a {command.model} of width {command.width}: {command.targets} clients x "
        f"{command.num_sequences} sequences x {command.length} tokens of {command.vocabulary:,}"
    )
    console.print(Text.assemble((command.attack, "bold"), told))
    with client_bar(console, command.targets) as show:
        attacked = text.attack_text(command, on_progress=show)
    with jobs.uninterruptible():
        summary = text.measure_text(command, attacked)
        counts = Counter(target["status"] for target in summary["targets"]).most_common()
        remarks = [Text(f"{count} of {len(summary['targets'])} clients {status}") for status, count in counts]
        return finish(console, summary, remarks, json_file=command.json, command_line=command_line)
