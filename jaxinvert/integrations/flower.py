"""Records a Flower deployment: a strategy that writes every round's messages, and a client mod that writes the truth.

The three lines, in a server and a client of the message API (flwr >= 1.30):

    from jaxinvert.integrations import flower

    strategy = flower.Recording(FedAvg(), "captures", normalization=((0.5,) * 3, (0.5,) * 3))
    app = ClientApp(mods=[flower.truth_mod("captures", my_examples)])      # only where the auditor may have the truth

A round is then audited by `jaxinvert audit --capture captures/round-0001 --model my_net:make`. `Recording` sees what
the server sees: with secure aggregation, single updates never reach a strategy, and there is nothing to record. A
client mod must be the first of its list, so that it sees the examples and no other mod's change. What cannot be
recorded is a warning in the log; the training goes on.
"""
# pyright: reportMissingImports=false

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinvert.integrations.capture import Writer
from jaxinvert.integrations.recording import num_examples, only_warning

try:
    import flwr
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy

    from jaxinvert.integrations.flower_defense import defense_of, wrapped
    from jaxinvert.integrations.flower_truth import truth_mod
except ImportError as error:
    raise ImportError("recording Flower needs flwr >= 1.30: pip install 'jaxinvert[flower]'") from error

__all__ = ["Recording", "defense_of", "truth_mod"]

_LOG = logging.getLogger(__name__)
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
        with only_warning(f"round {server_round}"):
            self._record_sent(server_round, messages)
        return messages

    def _record_sent(self, server_round: int, messages: Sequence[Message]) -> None:
        if not messages:
            return
        facts = {"round": server_round, "framework": f"flower {flwr.__version__}", **self.facts}
        if "defense" not in facts:
            with only_warning(f"the defense in round {server_round}"):
                facts |= {"defense": found} if (found := defense_of(self.inner, self.mods)) else {}
        folder = self.folder / f"round-{server_round:04d}"
        writer = Writer(folder, kind="weights", normalization=self.normalization, facts=facts)
        sent = _arrays(messages[0])
        writer.params(sent)
        self._others = {m.metadata.dst_node_id for m in messages[1:] if not _equal(_arrays(m), sent)}
        if self._others:
            _LOG.warning("round %d: %d clients got other parameters", server_round, len(self._others))
        self._writer = writer

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Writes the clients' replies, then aggregates them."""
        replies = list(replies)
        keys = [key for one in wrapped(self.inner) if (key := getattr(one, "weighted_by_key", None))]
        for reply in replies:
            node = reply.metadata.src_node_id
            if self._writer is not None and reply.has_content() and node not in self._others:
                with only_warning(f"client {node} in round {server_round}"):
                    examples = num_examples(_count_in(reply, [*keys, "num-examples"][0]), client=str(node))
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


def _arrays(message: Message) -> dict[str, np.ndarray]:
    (record,) = message.content.array_records.values()
    return {name: array.numpy() for name, array in record.items()}


def _equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _count_in(reply: Message, key: str) -> Any:
    return next((record[key] for record in reply.content.metric_records.values() if key in record), None)
