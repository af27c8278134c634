"""Flower's own strategies and messages, recorded: all that is sent and comes back, and nothing changes."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs pip install 'jaxinvert[flower]'")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from jaxinvert.integrations import flower
from jaxinvert.observation.captures import open_round

NODES = [2**63 + 5, 7]
SENT = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "conv.bias": np.zeros(2, np.float32)}
BOTH = ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def as_in_a_task(monkeypatch):
    """Messages can be made in a task of Flower only, which its newer versions say in a class."""
    try:
        from flwr.supercore.task_identity import TaskIdentity as identity
    except ImportError:
        return
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(identity, name, 1)


def a_round(strategy, *, counts=(3, 4), key="num-examples", start=0):
    """One round with two nodes, each of which adds its number to what it got."""
    grid = SimpleNamespace(get_node_ids=lambda: NODES)
    sent = {name: value + start for name, value in SENT.items()}
    messages = list(strategy.configure_train(1, ArrayRecord(dict(map(to_array, sent.items()))), ConfigRecord(), grid))
    replies = []
    for number, message in enumerate(messages):
        arrays = {name: array.numpy() + number for name, array in message.content["arrays"].items()}
        content = {"arrays": ArrayRecord(dict(map(to_array, arrays.items())))}
        content["metrics"] = MetricRecord({key: counts[number]})
        replies.append(Message(content=RecordDict(content), reply_to=message))
    return strategy.aggregate_train(1, iter(replies))


def to_array(item):
    from flwr.app import Array

    return item[0], Array(item[1])


def test_a_round_is_recorded_and_unchanged(tmp_path):
    facts = {"local": {"learning_rate": 0.1}}
    recorded, _ = a_round(flower.Recording(FedAvg(), tmp_path, normalization=BOTH, facts=facts))
    plain, _ = a_round(FedAvg())
    for name in SENT:
        np.testing.assert_array_equal(recorded[name].numpy(), plain[name].numpy())
    found = open_round(tmp_path / "round-0001")
    assert [*found.updates] == sorted(map(str, NODES), key=int)
    assert sorted(found.facts.clients.values()) == [3, 4]
    assert (found.facts.kind, found.facts.round, found.facts.local.learning_rate) == ("weights", 1, 0.1)
    assert found.facts.normalization == BOTH
    assert found.facts.framework.startswith("flower 1.")
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(found.params)["conv.weight"], SENT["conv.weight"])
    sums = sorted(float(load_file(path)["conv.bias"].sum()) for path in found.updates.values())
    assert sums == [0.0, 2.0]


def test_clipping_and_noise_are_the_defense_that_they_are(tmp_path):
    private = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 1.0, clipping_norm=2.5, num_sampled_clients=2)
    messages = flower.Recording(private, tmp_path).configure_train(
        1, ArrayRecord(dict(map(to_array, SENT.items()))), ConfigRecord(), SimpleNamespace(get_node_ids=lambda: NODES)
    )
    assert len(list(messages)) == 2
    facts = (tmp_path / "round-0001" / "capture.json").read_text()
    assert '"clip:norm=2.5"' in facts
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=2.0, delta=1e-5)
    scale = 0.1 * np.sqrt(2 * np.log(1.25e5)) / 2
    assert flower.defense_of(FedAvg(), [mod]) == f"clip+gaussian:norm=1,scale={scale:.6g}"
    assert flower.defense_of(FedAvg()) is None


class Wrapper(FedAvg):
    """A user's own wrapper, which holds the strategy under a name of its own."""

    def __init__(self, around):
        super().__init__()
        self.around = around


def clipped(strategy, norm):
    return DifferentialPrivacyClientSideFixedClipping(strategy, 1.0, clipping_norm=norm, num_sampled_clients=2)


def test_a_defense_is_found_inside_other_strategies_and_beside_other_mods():
    private = clipped(FedAvg(), 2.5)
    server_side = DifferentialPrivacyServerSideFixedClipping(private, 1.0, clipping_norm=9.0, num_sampled_clients=2)
    assert flower.defense_of(Wrapper(server_side)) == "clip:norm=2.5"
    assert flower.defense_of(clipped(private, 1.5)) == "clip:norm=1.5"  # the outermost sends its norm
    noise = LocalDpMod(clipping_norm=4.0, sensitivity=0.1, epsilon=2.0, delta=1e-5)
    assert flower.defense_of(private, [noise, fixedclipping_mod]).startswith("clip+gaussian:norm=2.5,")
    for mods in ([fixedclipping_mod, noise], [noise, noise]):
        with pytest.raises(ValueError, match="after LocalDpMod has added noise"):
            flower.defense_of(private, mods)


def test_what_cannot_be_recorded_is_a_warning_and_the_training_goes_on(tmp_path, caplog):
    noise = LocalDpMod(clipping_norm=4.0, sensitivity=0.1, epsilon=2.0, delta=1e-5)
    strategy = Wrapper(FedAvg(weighted_by_key="n"))
    strategy.weighted_by_key = "n"
    recorded, _ = a_round(flower.Recording(strategy, tmp_path, mods=[noise, noise]), counts=(0.5, 4), key="n")
    assert recorded is not None
    assert "says that it has 0.5 examples" in caplog.text
    assert "the defense in round 1 was not recorded" in caplog.text
    assert sorted(open_round(tmp_path / "round-0001").facts.clients.values(), key=str) == [4, None]
    mod = flower.truth_mod(tmp_path, lambda message, context: 1 / 0)
    message = Message(
        content=RecordDict({"config": ConfigRecord({"server-round": 4})}), message_type="train", dst_node_id=7
    )
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
    assert mod(message, context, lambda message, context: "the reply") == "the reply"
    assert "the truth of client 7 was not recorded: ZeroDivisionError" in caplog.text


def test_a_second_run_into_the_same_folder_is_not_mixed_with_the_first(tmp_path, caplog):
    a_round(flower.Recording(FedAvg(), tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "round-0001").iterdir()}
    recorded, _ = a_round(flower.Recording(FedAvg(), tmp_path), start=1)
    assert recorded is not None
    assert "params.safetensors holds something else, such as from another run" in caplog.text
    assert {path.name: path.read_bytes() for path in (tmp_path / "round-0001").iterdir()} == before


def test_the_truth_is_written_beside_it(tmp_path):
    inputs = np.random.default_rng(0).uniform(size=(2, 3, 8, 8)).astype(np.float32)
    mod = flower.truth_mod(tmp_path, lambda message, context: ((inputs - 0.5) / 0.25, [1, 2]), normalization=BOTH)
    content = RecordDict({"config": ConfigRecord({"server-round": 4})})
    message = Message(content=content, message_type="train", dst_node_id=7)
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
    assert mod(message, context, lambda message, context: "the reply") == "the reply"
    with np.load(tmp_path / "round-0004" / "truth-7.npz") as truth:
        np.testing.assert_allclose(truth["inputs"], inputs.transpose(0, 2, 3, 1), atol=1e-6)
        assert truth["labels"].tolist() == [1, 2]
