"""The command `jaxinvert inspect`: a client's check of the parameters that it received."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tyro
from rich.table import Table
from rich.text import Text

from jaxinvert import data, files, inspection, jobs, models
from jaxinvert.cli.console import BadInputError, Terminal, bad_input, cell
from jaxinvert.jobs.limits import check_model_name, machine_memory
from jaxinvert.observation import captures
from jaxinvert.readers.tensor_files import read_floats

EXIT_CRAFTED = 3
_ALWAYS_READ, _MOST_COMPRESSED = 256 << 20, 16


@dataclass(frozen=True)
class Inspect:
    """Check parameters that you received as a client: did a malicious server craft them to read your examples?

    Looks for imprint modules, trap weights and fishing. Of a file alone it checks the tensors; with the network it
    also runs 64 examples. Takes seconds, trains nothing, sends nothing. The exit status is 0 if nothing was found, 3
    if the parameters look crafted. Nothing found is no proof of honesty.

    Attributes:
      params: file with the parameters: safetensors, npz or Flax msgpack.
      model: your network, see `jaxinvert list models`; or `module:function`, whose module is imported and run.
      input_shape: height, width and channels of the network's inputs.
      num_classes: number of the network's classes.
      mean: mean per channel that the network subtracts from pixels in [0, 1].
      std: standard deviation per channel that it divides by.
      head: name of the last layer, such as `fc`; without the network its weights are checked only if this is given.
      data: your own images, on which the network is run: a folder, an npz file or a data set; by default photos.
      split: split of your images.
      json: JSON file for the result; by default none is written.
    """

    params: tyro.conf.Positional[Path]
    model: str | None = None
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    head: str | None = None
    data: str | None = None
    split: str = "test"
    json: Path | None = None

    def __post_init__(self) -> None:
        """Checks the fields; raises BadInputError."""
        needs = {name: getattr(self, name) for name in ("input_shape", "num_classes", "mean", "std", "data")}
        given = [name for name, value in needs.items() if value is not None]
        if self.split != type(self).split:
            given.append("split")
        if self.model is None and given:
            raise BadInputError(f"{given[0]} belongs to the network: give model, too")
        if self.model is not None and not models.is_external(self.model):
            with bad_input():
                check_model_name(self.model)


def inspect_params(command: Inspect, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    console = Terminal()
    if command.json is not None:
        files.check_writable_file(command.json)
    with bad_input():
        found = _of_tensors(command) if command.model is None else _of_network(command, console)
    with jobs.uninterruptible():
        try:
            if command.json is not None:
                files.save_json(command.json, as_json(command, found, command_line))
        finally:  # what was found is shown even if the disk is full
            show(console, found)
    return EXIT_CRAFTED if found.findings else 0


def _of_tensors(command: Inspect) -> inspection.Inspection:
    arrays = read_floats(command.params, what="parameters", max_bytes=most_bytes_of(command.params))
    found = inspection.inspect_tensors(arrays, head=command.head)
    if command.head is not None and "one-class-head" in found.skipped and "known" in found.skipped["one-class-head"]:
        raise ValueError(f"{command.params} has no layer {command.head!r} with weights of two axes")
    return found


def most_bytes_of(path: Path) -> int:
    """Bytes of tensors that a file of parameters may hold: floats hardly compress, and copies must fit in memory."""
    written = path.stat().st_size if path.is_file() else 0
    return int(max(_ALWAYS_READ, min(_MOST_COMPRESSED * written, machine_memory() / 8)))


def _of_network(command: Inspect, console: Terminal) -> inspection.Inspection:
    model = _network(command)
    params = captures.load_for_model(command.params, model, what="parameters")
    batch = inspection.with_labels_in_turn(_inputs(command, model), model.num_classes)
    if model.num_classes == 1:
        model = models.with_task(model, batch.labels)
    console.print(f"running {model.name} on {len(batch.inputs)} examples, one by one")
    return inspection.inspect(params, model, batch)


def _network(command: Inspect) -> models.Model:
    """The network; a safetensors file of ours also says its classes and its normalization."""
    facts: dict[str, Any] = _facts(command.params)
    name = str(command.model)
    if (trained := facts.get("model", name)) != name:
        raise ValueError(f"{command.params} is of model {trained}, but model is {name}")
    said = {"mean": command.mean, "std": command.std, "num_classes": command.num_classes}
    options: dict[str, Any] = {key: facts.get(key) if value is None else value for key, value in said.items()}
    if not models.is_external(name):
        return models.create(name, input_shape=command.input_shape, **options)
    model = models.import_model(name, input_shape=command.input_shape, head=command.head, **options)
    models.check_eval_mode(model)
    return model


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():  # what reads the parameters says so
        return {}
    with open(path, "rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    return models.read_facts(path) if is_safetensors else {}


def _inputs(command: Inspect, model: models.Model) -> Any:
    """The client's own images, at most 64, or natural ones."""
    if command.data is None:
        return inspection.natural_images(model.input_shape)
    height, width, _ = model.input_shape
    own = data.load(command.data, split=command.split)
    if own.images.shape[1:3] != (height, width) and height == width:
        own = data.load(command.data, split=command.split, size=height)
    if own.images.shape[1:] != model.input_shape:
        raise ValueError(
            f"images of {command.data} are {own.images.shape[1:]}, the network takes {model.input_shape}"
        )
    return jnp.asarray(own.images[: inspection.NUM_EXAMPLES])


def show(console: Terminal, found: inspection.Inspection) -> None:
    """Prints what was checked, what was found, and what to do."""
    table = Table("check", "largest in", "value", "crafted from")
    for measure in found.measures:
        style = "bold red" if measure.is_found else None
        shown = (_value(measure.check, number) for number in (measure.value, measure.limit))
        table.add_row(measure.check, cell(measure.layer), *shown, style=style)
    console.print(table)
    for name, why in found.skipped.items():
        console.print(f"not checked: {name}; {why}", soft_wrap=True)
    if found.isolated is not None:
        console.print(
            f"{found.isolated:.0%} of the examples alone activate some unit: honest or not, a server can read such "
            "examples off the update of a batch like this one",
            soft_wrap=True,
        )
    for finding in found.findings:
        place = f" in {finding.layer}" if finding.layer else ""
        title = Text.assemble((f"{finding.check}{place}: ", "bold red"), f"{finding.meaning} {finding.advice}")
        console.print(title, soft_wrap=True)
    verdict = ("these parameters look CRAFTED", "bold red") if found.findings else ("nothing was found", "bold")
    console.print(Text.assemble(verdict, "" if found.findings else ", which is no proof of honesty"))


def _value(check: str, value: float) -> str:
    return f"{value:.0%}" if inspection.CHECKS[check].is_share else f"{value:.0f}"


def as_json(command: Inspect, found: inspection.Inspection, command_line: str) -> dict[str, Any]:
    """The result for other programs."""
    return {
        "params": str(command.params),
        "model": command.model,
        "crafted": bool(found.findings),
        "measures": [measure._asdict() for measure in found.measures],
        "findings": [finding._asdict() for finding in found.findings],
        "skipped": found.skipped,
        "isolated": found.isolated,
        "command": command_line,
    }
