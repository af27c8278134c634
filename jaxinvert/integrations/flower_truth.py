"""A client mod for Flower that writes the true examples of every round, for the auditor."""
# pyright: reportMissingImports=false

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from jaxinvert.integrations.recording import only_warning
from jaxinvert.integrations.truth import write_truth


def truth_mod(
    folder: Path | str,
    examples: Callable[[Message, Context], tuple[Any, Any]],
    *,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Callable[[Message, Context, Callable[[Message, Context], Message]], Message]:
    """A client mod that writes the examples of every round beside what `Recording` writes.

    Args:
      folder: that of `Recording`, on a disk that both reach.
      examples: `(message, context) -> (inputs, labels)` on which the client trains, see `capture.write_truth`.
      normalization: of these inputs, to be undone.
    """
    folder = Path(folder).resolve()  # simulated clients run in folders of their own

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        if message.metadata.message_type == "train":
            with only_warning(f"the truth of client {context.node_id}"):
                (config,) = message.content.config_records.values()
                number: Any = config["server-round"]
                inputs, labels = examples(message, context)
                round_folder = folder / f"round-{int(number):04d}"
                write_truth(round_folder, str(context.node_id), inputs, labels, normalization=normalization)
        return call_next(message, context)

    return mod
