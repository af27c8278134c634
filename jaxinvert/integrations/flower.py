"""Records a Flower deployment: a strategy that writes every round's messages, and a client mod that writes the truth.

The three lines, in a server and a client of the message API (flwr >= 1.30):

    from jaxinvert.integrations import flower

    strategy = flower.Recording(FedAvg(), "captures", normalization=((0.5,) * 3, (0.5,) * 3))
    app = ClientApp(mods=[flower.truth_mod("captures", my_examples)])      # only where the auditor may have the truth

A round is then audited by `jaxinvert audit --capture captures/round-0001 --model my_net:make`. `Recording` sees what
the server sees: with secure aggregation, single updates never reach a strategy, and there is nothing to record. A
client mod must be the first of its list, so that it sees the examples and no other mod's change.
"""
# pyright: reportMissingImports=false

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinvert.integrations.capture import Writer, write_truth

try:
    import flwr
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
    from flwr.clientapp.mod import LocalDpMod
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import (
        DifferentialPrivacyClientSideAdaptiveClipping,
        DifferentialPrivacyClientSideFixedClipping,
        Strategy,
    )
except ImportError as error:
    raise ImportError("recording Flower needs flwr >= 1.30: pip install 'jaxinvert[flower]'") from error

_LOG = logging.getLogger(__name__)
_CLIPPING = (DifferentialPrivacyClientSideAdaptiveClipping, DifferentialPrivacyClientSideFixedClipping)
Normalization = tuple[Sequence[float], Sequence[float]] | str | None


class Recording(Strategy):
    """Any strategy; what it sends and gets back is written to `folder/round-0001/` and so on.

    Args:
      strategy: the strategy, with its wrappers: this one is the outermost.
      folder: the folder of all rounds.
      normalization: of the clients' inputs, see `capture.Writer`.
      mods: the clients' mods, to read local differential privacy off them.
      facts: other facts for `capture.json`, such as `local={"learning_rate": 0.1, "epochs": 1, "batch_size": 32}`.
    """

    def __init__(
        self,
        strategy: Strategy,
        folder: Path | str,
        *,
        normalization: Normalization = None,
        mods: Sequence[Any] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.inner, self.folder, self.normalization = strategy, Path(folder), normalization
        self.mods, self.facts = tuple(mods), dict(facts or {})
        self._writer: Writer | None = None
        self._others: set[int] = set()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configures a round and writes the parameters of its messages."""
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        self._writer = None
        if messages:
            facts = {"round": server_round, "framework": f"flower {flwr.__version__}", **self.facts}
            if (defense := defense_of(self.inner, self.mods)) and "defense" not in facts:
                facts["defense"] = defense
            folder = self.folder / f"round-{server_round:04d}"
            self._writer = Writer(folder, kind="weights", normalization=self.normalization, facts=facts)
            sent = _arrays(messages[0])
            self._writer.params(sent)
            self._others = {
                message.metadata.dst_node_id for message in messages[1:] if not _equal(_arrays(message), sent)
            }
            if self._others:
                _LOG.warning("round %d: %d clients got other parameters", server_round, len(self._others))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Writes the clients' replies, then aggregates them."""
        replies = list(replies)
        for reply in replies:
            node = reply.metadata.src_node_id
            if self._writer is not None and reply.has_content() and node not in self._others:
                examples = _num_examples(reply, getattr(self.inner, "weighted_by_key", "num-examples"))
                self._writer.client(str(node), _arrays(reply), num_examples=examples)
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's own."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The strategy's own."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """The strategy's own."""
        self.inner.summary()


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
            (config,) = message.content.config_records.values()
            number: Any = config["server-round"]
            round_folder = folder / f"round-{int(number):04d}"
            inputs, labels = examples(message, context)
            write_truth(round_folder, str(context.node_id), inputs, labels, normalization=normalization)
        return call_next(message, context)

    return mod


def defense_of(strategy: Strategy, mods: Sequence[Any] = ()) -> str | None:
    """The clients' defense as `jaxinvert audit` spells it, read off Flower's own clipping and noise; `None` for none.

    Client-side clipping is `clip`; `LocalDpMod` is `clip+gaussian`. What a strategy clips or adds to the mean happens
    after the server has seen the updates, and protects nothing from it.
    """
    for mod in mods:
        if isinstance(mod, LocalDpMod):
            scale = mod.sensitivity * math.sqrt(2 * math.log(1.25 / mod.delta)) / mod.epsilon
            return f"clip+gaussian:norm={mod.clipping_norm:.6g},scale={scale:.6g}"
    return f"clip:norm={strategy.clipping_norm:.6g}" if isinstance(strategy, _CLIPPING) else None


def _arrays(message: Message) -> dict[str, np.ndarray]:
    (record,) = message.content.array_records.values()
    return {name: array.numpy() for name, array in record.items()}


def _equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _num_examples(reply: Message, key: str) -> int | None:
    counts: list[Any] = [record[key] for record in reply.content.metric_records.values() if key in record]
    return int(counts[0]) if counts and counts[0] >= 1 else None
