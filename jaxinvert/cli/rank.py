"""`jaxinvert rank`: what the ranks of a job's first update say, before an expensive attack."""

from dataclasses import dataclass

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinvert import job
from jaxinvert.analytic.rank import rank_report
from jaxinvert.cli.console import bad_input


@dataclass(frozen=True)
class Rank(job.JobConfig):
    """Show in seconds what the first client's update gives away by its ranks, and which closed forms apply.

    It takes the arguments of `invert`, and attacks nothing.
    """


def rank(command: Rank, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    del command_line
    with bad_input():
        task = job.prepare(command)
    update = jax.tree.map(lambda leaf: leaf[0], task.observations.update)
    found = rank_report(update, batch_shape=task.truth.inputs.shape[1:])
    console = Console()
    tensors = Table("tensor", "inputs", "outputs", "rank")
    for tensor in found.tensors:
        tensors.add_row(Text(tensor.name), *map(str, tensor.shape), str(tensor.rank))
    console.print(tensors)
    console.print(
        f"at least {found.least_examples} examples; {found.num_equations:,} numbers for {found.num_unknowns:,} "
        f"unknown pixels: {'enough' if found.num_equations >= found.num_unknowns else 'too few for a unique answer'}",
        highlight=False,
    )
    closed_forms = Table("closed form", "applies", "why")
    for form in found.closed_forms:
        closed_forms.add_row(form.attack, "yes" if form.applies else "no", Text(form.reason))
    console.print(closed_forms)
    return 0
