"""Jobs on text: recovers clients' token sequences from a transformer's update by DAGER and compares with a guess.

Sequences consist of random tokens, and each client has its own network. `draw_text` draws the truth, `attack_text`
passes only observations to the attack, `measure_text` compares the reconstructions with the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.attacks.closed_form.certificate import WORDS, Status
from jaxinvert.attacks.closed_form.dager import dager
from jaxinvert.attacks.problem import TextProblem
from jaxinvert.clients import fedsgd, sending
from jaxinvert.jobs import environment
from jaxinvert.jobs.groups import ClientConfig, DefenseConfig
from jaxinvert.jobs.limits import MAX_DEPTH, MAX_EXAMPLES, MAX_ROUNDS, MAX_SEED, MAX_WIDTH, between
from jaxinvert.jobs.realism import Fact, as_dict, of_defense, of_examples, of_parameters, of_training, realism_of
from jaxinvert.jobs.yaml_fields import flatten
from jaxinvert.metrics import records
from jaxinvert.models.lora import LORA_LAYERS, text_with_lora
from jaxinvert.models.text_transformer import TextModel, decoder, encoder
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import observe
from jaxinvert.trees import moved
from jaxinvert.types import Batch, ClientUpdateFn, Observation, Reconstruction, SolveFn

_NUM_CLASSES = 5
_GRANTED = threat_models.LADDER["C"]
_RATE = 1.0
"""The server's learning rate in rounds before the observed one."""


@dataclass(frozen=True)
class TextConfig:
    """The configuration of a job on text.

    Attributes:
      model: the clients' untrained transformer: a decoder predicts random tokens at every position, an encoder one of
        five classes.
      num_sequences: number of sequences in each client's batch.
      length: number of tokens in every sequence.
      vocabulary: number of different tokens.
      width: embedding width of the transformer; the attack needs fewer distinct tokens per batch, counted with their
        positions, than this width.
      depth: number of blocks of the transformer; with one block, at most one sequence per batch can be recovered.
      distribution: distribution of the tokens: uniform, or Zipf's, where the k-th token has a probability
        proportional to 1/k.
      targets: number of clients to attack.
      seed: random seed; determines the networks and the text.
      lora_rank: rank of low-rank adapters (LoRA), which are then all that the clients train; by default there are
        none and the clients train the network itself.
      lora_layers: dense layers that have adapters, by name ("query" for all of that name) or path.
      lora_rounds: number of rounds on other text after which the adapters are observed; in round 0 `B` is zero.
    """

    model: Literal["decoder", "encoder"] = "decoder"
    num_sequences: int = 4
    length: int = 8
    vocabulary: int = 1000
    width: int = 64
    depth: int = 2
    distribution: Literal["uniform", "zipf"] = "uniform"
    targets: int = 4
    seed: int = 0
    lora_rank: int | None = None
    lora_layers: tuple[str, ...] = LORA_LAYERS
    lora_rounds: int = 0

    def __post_init__(self) -> None:
        """Checks the fields."""
        between(1, MAX_EXAMPLES, num_sequences=self.num_sequences, targets=self.targets)
        between(0, MAX_SEED, seed=self.seed)
        between(1, MAX_WIDTH, width=self.width, length=self.length)
        between(1, MAX_DEPTH, depth=self.depth)
        between(1, MAX_EXAMPLES, vocabulary=self.vocabulary)
        between(1, MAX_WIDTH, lora_rank=self.lora_rank)
        between(0, MAX_ROUNDS, lora_rounds=self.lora_rounds)
        if self.lora_rank is None:
            for name, default in (("lora_layers", LORA_LAYERS), ("lora_rounds", 0)):
                if (value := getattr(self, name)) != default:
                    raise ValueError(f"{name} is {value}, which only lora_rank uses")
        self.network()

    def network(self) -> TextModel:
        """The clients' network.

        Raises:
          ValueError: for sizes that are not possible.
        """
        options = {
            "vocabulary_size": self.vocabulary,
            "length": self.length,
            "width": self.width,
            "depth": self.depth,
        }
        model = decoder(**options) if self.model == "decoder" else encoder(num_classes=_NUM_CLASSES, **options)
        if self.lora_rank is None:
            return model
        return text_with_lora(model, self.lora_rank, layers=self.lora_layers)

    @property
    def granted(self) -> threat_models.ThreatModel:
        """What the attacker is granted."""
        return _GRANTED

    @property
    def token_probabilities(self) -> np.ndarray:
        """The probability of every token, `[V]`."""
        zipf = self.distribution == "zipf"
        weights = 1 / np.arange(1, self.vocabulary + 1) if zipf else np.ones(self.vocabulary)
        return weights / weights.sum()


class AttackedText(NamedTuple):
    """A client's batch as reconstructed, with the truth, which is not passed to the attack."""

    truth: Batch
    found: Reconstruction


def draw_text(config: TextConfig, number: int, *, earlier: int = 0) -> Batch:
    """Draws a client's sequences `[B, n]` and labels: `[B, n]` for a decoder, `[B]` for an encoder.

    Args:
      config: the configuration.
      number: of the client.
      earlier: of a round on other text, from 1; 0 for the private text.
    """
    rounds = (earlier,) if earlier else ()
    rng = np.random.default_rng((config.seed, config.num_sequences, config.length, number, *rounds))
    tokens = draw_tokens(config, rng, config.num_sequences)
    labels = (
        rng.integers(0, _NUM_CLASSES, config.num_sequences) if config.model == "encoder" else rng.permuted(tokens)
    )
    return Batch(jnp.asarray(tokens, jnp.int32), jnp.asarray(labels, jnp.int32))


def draw_tokens(config: TextConfig, rng: np.random.Generator, num_sequences: int) -> np.ndarray:
    """`[num_sequences, n]`: sequences of random tokens."""
    return rng.choice(config.vocabulary, (num_sequences, config.length), p=config.token_probabilities)


class TextTask(NamedTuple):
    """The clients' network, their training and the attack on one client, compiled once for all clients."""

    model: TextModel
    client: ClientUpdateFn
    solve: SolveFn


def prepare_text(config: TextConfig) -> TextTask:
    """Builds network, client and attack of a job."""
    model = config.network()
    client = jax.jit(sending(fedsgd(model.loss_fn), frozen=model.frozen))
    return TextTask(model, client, jax.jit(dager(TextProblem(client, model, config.num_sequences))))


def observe_text(config: TextConfig, task: TextTask, number: int, batch: Batch) -> Observation:
    """Everything that the attacker sees of client `number`, which trains its own network on the batch."""
    params = task.model.init(jax.random.key(config.seed + number))
    for earlier in range(1, config.lora_rounds + 1):
        update = task.client(params, draw_text(config, number, earlier=earlier))
        params = moved(params, update, _RATE)
    return observe(task.client, params, batch, threat_model=_GRANTED)


def attack_text(config: TextConfig, *, on_progress: Callable[[int], None] = lambda done: None) -> list[AttackedText]:
    """Simulates and attacks one client after the other; after an interrupt, returns the finished ones.

    Args:
      config: the configuration.
      on_progress: called with the number of finished clients.
    """
    task, attacked = prepare_text(config), []
    try:
        for number in range(config.targets):
            batch = draw_text(config, number)
            observation = observe_text(config, task, number, batch)
            attacked.append(AttackedText(batch, jax.device_get(task.solve(jax.random.key(0), observation))))
            on_progress(len(attacked))
    except KeyboardInterrupt:
        if not attacked:
            raise
    return attacked


def same_text(found: Batch, truth: Batch) -> bool:
    """Whether all sequences and labels agree, up to order and exchange of labels with equal preceding tokens."""
    return _content(found) == _content(truth)


def _content(batch: Batch) -> tuple[list, list]:
    """All sequences, sorted, and all labels with the tokens that precede them, sorted."""
    tokens, labels = np.asarray(batch.inputs).tolist(), np.asarray(batch.labels)
    if labels.ndim == 1:
        return sorted(tokens), sorted(zip(tokens, labels.tolist()))
    labeled = [
        (row[: position + 1], label)
        for row, of_row in zip(tokens, labels.tolist())
        for position, label in enumerate(of_row)
    ]
    return sorted(tokens), sorted(labeled)


def measure_text(config: TextConfig, attacked: list[AttackedText]) -> dict[str, Any]:
    """The summary of the attacked clients, with a baseline: the content of the file that the command writes."""
    matched, guessed = [], []
    for number, (truth, found) in enumerate(attacked):
        guess = draw_tokens(config, np.random.default_rng((config.seed, number)), config.num_sequences)
        for tokens, correct in ((found.inputs, matched), (guess, guessed)):
            quality = records.evaluate_records(tokens, truth.inputs, np.zeros(config.length))
            correct.append(quality.correct)
    exact = [same_text(Batch(found.inputs, jnp.asarray(found.labels)), truth) for truth, found in attacked]
    return {
        "config": flatten(config, of=TextConfig),
        "rates": {
            "dager": {**_rates(matched), "batches": float(np.mean(exact))},
            "guess: drawn": {**_rates(guessed), "batches": None},
        },
        "targets": [
            {
                "exact": is_exact,
                "certified": bool(found.info["certified"]),
                "status": WORDS[Status(int(found.info["status"]))],
                "rank": int(found.info["rank"]),
                "found": found.inputs,
                "truth": truth.inputs,
            }
            for is_exact, (truth, found) in zip(exact, attacked)
        ],
        "interrupted": len(attacked) < config.targets,
        "assumptions": assumptions(config),
        "versions": environment.versions(),
        "device": environment.device_name(),
    }


def assumptions(config: TextConfig) -> dict[str, Any]:
    """What the attacker knows and does not know, and how the clients train, in words."""
    return {
        "known": [threat_models.MEANINGS[name] for name in ("update", "params", "num_examples")],
        "unknown": ["the sequences", threat_models.MEANINGS["labels"], "the distribution of the tokens"],
        "client": "FedSGD: one gradient of the mean loss over the batch; no defense",
        "realism": as_dict(
            realism_of(
                of_examples(config.num_sequences),
                of_training(ClientConfig(), config.num_sequences),
                of_parameters(),
                Fact("labels", "not used", "neither"),
                Fact("text", "random tokens, not language", "neither"),
                of_defense(DefenseConfig(), adaptive=False),
            )
        ),
    }


def _rates(correct: list[np.ndarray]) -> dict[str, float]:
    """The shares of correct tokens, in sequences matched one-to-one, and of correct whole sequences."""
    stacked = np.stack(correct)
    return {"tokens": float(stacked.mean()), "sequences": float(stacked.all(axis=-1).mean())}
