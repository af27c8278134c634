"""The table of commands, which says what each does without importing it, so that `jaxinvert --help` is quick."""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    Attributes:
      module: the module in `jaxinvert.cli` that implements it.
      kind: the name of the dataclass of its arguments there.
      runs: the name of the function there that takes such a dataclass and the command line, and returns the status.
      summary: what it does; the first sentence of the dataclass's docstring.
      example: a command line.
      usual: options that `--help` explains; the others are listed by name. Empty: it explains all.
    """

    module: str
    kind: str
    runs: str
    summary: str
    example: str
    usual: tuple[str, ...] = ()

    def load(self) -> tuple[type, Callable[..., int]]:
        """Imports the command; returns the dataclass and the function."""
        module = importlib.import_module(f"jaxinvert.cli.{self.module}")
        return getattr(module, self.kind), getattr(module, self.runs)


_CLIENTS = ("data", "num-examples", "targets", "model")
_TEXT = ("model", "num-sequences", "length", "vocabulary", "width", "distribution", "targets", "lora-rank")
_RECORDS = ("table", "num-examples", "targets", "widths", "client", "members", "steps")

COMMANDS: dict[str, Command] = {
    "invert": Command(
        "invert",
        "Invert",
        "invert",
        "Simulate clients, observe their updates, and try to reconstruct their images.",
        "jaxinvert invert --attack spectral --targets 4 --restarts 2 --steps 300",
        (*_CLIENTS, "client", "defense", "attack", "restarts", "steps", "out"),
    ),
    "rank": Command(
        "rank",
        "Rank",
        "rank",
        "Show the ranks of updates, which closed-form attacks apply, and what a linear estimate would reach.",
        "jaxinvert rank --model mlp-1024 --num-examples 8 --targets 1",
        (*_CLIENTS, "split", "size", "client", "defense", "checkpoint", "linear-examples"),
    ),
    "rank text": Command(
        "rank_text",
        "RankText",
        "rank_text",
        "Show the ranks of updates on text, how many tokens they hold at least, and whether span checks are exact.",
        "jaxinvert rank text --lora-rank 8 --num-sequences 1",
        (*_TEXT, "lora-rounds", "lora-layers"),
    ),
    "inspect": Command(
        "inspect",
        "Inspect",
        "inspect_params",
        "Check parameters that you received as a client: did a malicious server craft them to read your examples?",
        "jaxinvert inspect received.safetensors --model lenet",
    ),
    "records": Command(
        "records",
        "Records",
        "invert_records",
        "Simulate clients with tabular data, and try to reconstruct their records by many searches (TabLeak).",
        "jaxinvert records --table wine --num-examples 4 --targets 2",
        (*_RECORDS, "defense", "adaptive", "json"),
    ),
    "tokens": Command(
        "tokens",
        "Tokens",
        "invert_tokens",
        "Simulate clients that train a transformer on text, and try to reconstruct it (DAGER, TAG, LAMP or TIGER).",
        "jaxinvert tokens --model decoder --num-sequences 4 --targets 2",
        (*_TEXT, "attack", "steps", "defense", "json"),
    ),
    "audit": Command(
        "audit",
        "Audit",
        "audit",
        "Judge whether clients' updates leak: run attacks and null controls under each defense, and give a verdict.",
        "jaxinvert audit --steps 300 --defenses none gaussian:scale=0.03",
        (*_CLIENTS, "defenses", "attack", "steps", "capture", "dry-run", "out"),
    ),
    "audit table": Command(
        "audit_discrete",
        "AuditTable",
        "audit_discrete",
        "Judge whether the updates of clients with tabular data leak records: TabLeak, null controls, and a verdict.",
        "jaxinvert audit table --table wine --defenses none gaussian:scale=0.1",
        (*_RECORDS, "defenses", "dry-run", "out"),
    ),
    "audit text": Command(
        "audit_discrete",
        "AuditText",
        "audit_discrete",
        "Judge whether the updates of clients with text leak sequences: an attack, null controls, and a verdict.",
        "jaxinvert audit text --model encoder --num-sequences 2 --width 128",
        (*_TEXT, "attack", "steps", "defenses", "dry-run", "out"),
    ),
    "sweep": Command(
        "sweep",
        "Sweep",
        "sweep",
        "Run all jobs of a YAML file in batches and record each; run it again to resume, or to repeat failed jobs.",
        "jaxinvert sweep sweep.yaml --dry-run",
    ),
    "report": Command(
        "sweep",
        "Report",
        "report_sweep",
        "Show the results of a sweep, finished or not; writes `summary.parquet` and `report.html` into its folder.",
        "jaxinvert report runs/sweep",
    ),
    "list": Command(
        "listing",
        "List",
        "show_list",
        "Show attacks, defenses, threat models, label rules, models, data sets, checks and other things by name.",
        "jaxinvert list attack spectral",
    ),
    "data prepare": Command(
        "preparing",
        "Prepare",
        "prepare",
        "Download a data set, or read its official files from a folder, and store it for `--data NAME`.",
        "jaxinvert data prepare cifar10",
    ),
    "completion": Command(
        "completion",
        "Completion",
        "show_completion",
        "Print a script with which a shell completes commands, options and names of `jaxinvert`.",
        "jaxinvert completion bash > ~/.jaxinvert-completion",
    ),
}

SECTIONS = {
    "attack": ("invert", "rank", "rank text", "records", "tokens"),
    "audit": ("audit", "audit table", "audit text"),
    "client": ("inspect",),
    "many jobs": ("sweep", "report"),
    "names and data": ("list", "data prepare", "completion"),
}
"""The commands by what they are for, as `jaxinvert --help` shows them."""
