"""The command `jaxinvert rank text`: what clients' updates allow on text before any attack, by their ranks."""

from collections import Counter
from dataclasses import dataclass

import jax

from jaxinvert.attacks.closed_form.adapters import AdapterRank, adapter_ranks, attention_ranks
from jaxinvert.cli.console import Terminal, bad_input, cell, saying
from jaxinvert.jobs import text


@dataclass(frozen=True)
class RankText(text.TextConfig):
    """Show the ranks of updates on text, how many tokens they hold at least, and whether span checks are exact.

    Takes the arguments of `tokens`; runs no attack. Clients that train low-rank adapters only (`--lora-rank`) are
    read by the ranks of both factors, others by the gradients of the first attention.
    """

    def __post_init__(self) -> None:
        """Checks the fields; raises BadInputError."""
        with bad_input():
            super().__post_init__()


def rank_text(command: RankText, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    del command_line
    console = Terminal()
    with bad_input(), saying(console) as say:
        say("simulating the clients")
        task = text.prepare_text(command)
        updates = [
            jax.device_get(text.observe_text(command, task, number, text.draw_text(command, number)).update)
            for number in range(command.targets)
        ]
    total = command.num_sequences * command.length
    console.print(
        f"clients: {command.targets}; each has {total:,} tokens, of which equal ones at a position count once"
    )
    if command.lora_rank is None:
        show_adapters(console, [attention_ranks(update) for update in updates])
    else:
        show_adapters(console, [adapter_ranks(update) for update in updates])
    return 0


def show_adapters(console: Terminal, reports: list[tuple[AdapterRank, ...]]) -> None:
    """Prints a line for the layers of each group, over all clients of one model; nothing without a group."""
    for of_layer in zip(*reports):
        first = of_layer[0]
        names = f"{first.layer} ({', '.join(first.names)})" if first.names else first.layer
        ranks = [f"rank {_span([one.rank_a for one in of_layer])} of at most {first.columns}"]
        if first.rank:
            ranks[0] = f"adapters of rank {first.rank}, A's updates have {ranks[0]}"
            ranks.append(f"B's {_span([one.rank_b for one in of_layer])} of {first.rank}")
        exact = sum(one.is_exact for one in of_layer)
        of_all = {0: "none", len(reports): "all"}.get(exact, f"{exact} of {len(reports)}")
        console.print(cell(f"{names}: {', '.join(ranks)}"), soft_wrap=True)
        console.print(cell(f"  span checks are exact for: {of_all}"), soft_wrap=True)
        for words, count in Counter(one.words for one in of_layer).most_common(3):
            console.print(cell(f"  {count} of {len(reports)}: {words}"), soft_wrap=True)


def _span(numbers: list[int | None]) -> str:
    """The smallest and largest number as text."""
    known = sorted({number for number in numbers if number is not None})
    ends = " to ".join(f"{number:,}" for number in dict.fromkeys([known[0], known[-1]])) if known else ""
    return ", ".join(filter(None, [ends, "not finite" if None in numbers else ""]))
