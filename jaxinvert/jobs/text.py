"""Jobs on text: recovers clients' token sequences from a transformer's update and compares with a guess.

Sequences consist of random tokens or of English words, and each client has its own network. `draw_text` draws the
truth, `attack_text` passes only observations to the attack, `measure_text` compares the reconstructions with the
truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.attacks import registry
from jaxinvert.attacks.closed_form.certificate import WORDS, Status
from jaxinvert.attacks.problem import TextProblem
from jaxinvert.clients import AnyClientUpdateFn, fedsgd, sending
from jaxinvert.data.words import bigram_log_probabilities, load_words
from jaxinvert.defenses.recipe import ClientFacts
from jaxinvert.defenses.registry import defended
from jaxinvert.jobs import checks, environment
from jaxinvert.jobs.assumptions import defense_in_words
from jaxinvert.jobs.groups import ClientConfig, DefenseConfig
from jaxinvert.jobs.limits import MAX_DEPTH, MAX_EXAMPLES, MAX_ROUNDS, MAX_SEED, MAX_STEPS, MAX_WIDTH, between
from jaxinvert.jobs.realism import Fact, as_dict, of_defense, of_examples, of_parameters, of_training, realism_of
from jaxinvert.jobs.streams import Stream, stream
from jaxinvert.jobs.yaml_fields import flatten, nearest
from jaxinvert.metrics import records
from jaxinvert.metrics.text import rouge
from jaxinvert.models import Model
from jaxinvert.models.lora import LORA_LAYERS, text_with_lora
from jaxinvert.models.text_transformer import TextModel, decoder, encoder
from jaxinvert.nn import at_precision
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import observe
from jaxinvert.search import best_of, run
from jaxinvert.trees import moved
from jaxinvert.types import Attack, Batch, ClientUpdateFn, Observation, Reconstruction, SolveFn

_NUM_CLASSES = 5
_GRANTED = threat_models.LADDER["C"]
_DISTRIBUTION = "the distribution of the tokens"
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
      distribution: distribution of the tokens: uniform; Zipf's, where the k-th token has a probability proportional
        to 1/k; or English words, of which a decoder predicts the next one (see `data.words`).
      targets: number of clients to attack.
      seed: random seed; determines the networks and the text.
      lora_rank: rank of low-rank adapters (LoRA), which are then all that the clients train; by default there are
        none and the clients train the network itself.
      lora_layers: dense layers that have adapters, by name ("query" for all of that name) or path.
      lora_rounds: number of rounds on other text after which the adapters are observed; in round 0 `B` is zero.
      attack: name of the attack: dager in closed form, tag, lamp or tiger by search; see `jaxinvert list
        text-attacks`.
      steps: number of optimizer steps of a search.
      restarts: number of random starts of a search; the one with the lowest attack loss is returned.
      defense: the clients' defense, to which attacks on text do not adapt.
    """

    model: Literal["decoder", "encoder"] = "decoder"
    num_sequences: int = 4
    length: int = 8
    vocabulary: int = 1000
    width: int = 64
    depth: int = 2
    distribution: Literal["uniform", "zipf", "words"] = "uniform"
    targets: int = 4
    seed: int = 0
    lora_rank: int | None = None
    lora_layers: tuple[str, ...] = LORA_LAYERS
    lora_rounds: int = 0
    attack: str = "dager"
    steps: int = 600
    restarts: int = 1
    defense: DefenseConfig = field(default_factory=DefenseConfig)

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
        between(1, MAX_EXAMPLES, restarts=self.restarts)
        between(0, MAX_STEPS, steps=self.steps)
        _ = self.entry
        self._check_defense()
        self.network()

    def _check_defense(self) -> None:
        """Raises ValueError for a defense that is made for images."""
        self.defense.check()
        checks.check_defense(self.defense, ClientConfig(), self.num_sequences)
        for name, recipe in zip(self.defense.chain.names, self.defense.chain.recipes):
            if recipe.changes_model or (recipe.changes_client and name != "dp-sgd"):
                raise ValueError(
                    f"defense {name!r} is not implemented for text: dp-sgd is, and changes of the update"
                )

    @property
    def entry(self) -> registry.Entry:
        """The registry's entry of the attack.

        Raises:
          ValueError: for an unknown name.
        """
        if self.attack not in registry.TEXT:
            known, close = ", ".join(registry.TEXT), nearest(self.attack, registry.TEXT)
            raise ValueError(f"unknown attack on text {self.attack!r}; known are {known}{close}")
        return registry.TEXT[self.attack]

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
        """The probability of every token, `[V]`; of words their frequency in public text."""
        if self.distribution == "words":
            counts = np.bincount(load_words(self.vocabulary).public, minlength=self.vocabulary)
            return counts / counts.sum()
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
    tokens, following = _sequences(config, rng, config.num_sequences)
    labels = rng.integers(0, _NUM_CLASSES, config.num_sequences) if config.model == "encoder" else following
    return Batch(jnp.asarray(tokens, jnp.int32), jnp.asarray(labels, jnp.int32))


def draw_tokens(config: TextConfig, rng: np.random.Generator, num_sequences: int) -> np.ndarray:
    """`[num_sequences, n]`: sequences of the same kind as the clients'."""
    return _sequences(config, rng, num_sequences)[0]


def _sequences(config: TextConfig, rng: np.random.Generator, num_sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences `[num_sequences, n]` and the tokens that a decoder predicts."""
    if config.distribution == "words":
        words = load_words(config.vocabulary).private
        starts = rng.integers(0, len(words) - config.length, num_sequences)
        windows = words[starts[:, None] + np.arange(config.length + 1)]
        return windows[:, :-1], windows[:, 1:]
    tokens = guess_tokens(config, rng, num_sequences)
    return tokens, rng.permuted(tokens)


def guess_tokens(config: TextConfig, rng: np.random.Generator, num_sequences: int) -> np.ndarray:
    """`[num_sequences, n]`: independent tokens by their frequency, which need no update."""
    return rng.choice(config.vocabulary, (num_sequences, config.length), p=config.token_probabilities)


class TextTask(NamedTuple):
    """The clients' network, their training and the attack on one client, compiled once for all clients.

    Attributes:
      model: the network.
      client: the client without its defense, as the attacker simulates it.
      send: `(params, batch, key) -> update`, with its defense.
      solve: the attack.
    """

    model: TextModel
    client: ClientUpdateFn
    send: AnyClientUpdateFn
    solve: SolveFn


def prepare_text(config: TextConfig) -> TextTask:
    """Builds network, client and attack of a job."""
    model = config.network()
    client = at_precision(jax.jit(sending(fedsgd(model.loss_fn), frozen=model.frozen)), "highest")
    facts = ClientFacts(cast(Model, model), config.num_sequences)  # what these defenses read of a model, it has
    send = at_precision(jax.jit(defended(config.defense.chain, facts, config.defense.parameters, client)), "highest")
    bigrams = None
    if config.distribution == "words":
        public = load_words(config.vocabulary).public
        bigrams = jnp.asarray(bigram_log_probabilities(public, config.vocabulary))
    problem = TextProblem(client, model, config.num_sequences, bigrams)
    attack = config.entry.build(problem, horizon=float(config.steps))
    if isinstance(attack, Attack):
        attack = best_of(run(attack, num_steps=config.steps), num_restarts=config.restarts)
    return TextTask(model, client, send, jax.jit(attack))


def observe_text(config: TextConfig, task: TextTask, number: int, batch: Batch) -> Observation:
    """Everything that the attacker sees of client `number`, which trains its own network on the batch."""
    params = task.model.init(jax.random.key(config.seed + number))
    for earlier in range(1, config.lora_rounds + 1):
        update = task.client(params, draw_text(config, number, earlier=earlier))
        params = moved(params, update, _RATE)
    key = jax.random.fold_in(stream(config.seed, Stream.CLIENTS), number)
    return observe(task.send, params, batch, threat_model=_GRANTED, client_key=key)


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
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            attacked.append(AttackedText(batch, jax.device_get(task.solve(key, observation))))
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
        guess = guess_tokens(config, np.random.default_rng((config.seed, number)), config.num_sequences)
        for tokens, scored in ((found.inputs, matched), (guess, guessed)):
            scored.append(score_text(tokens, truth.inputs))
    exact = [same_text(Batch(found.inputs, jnp.asarray(found.labels)), truth) for truth, found in attacked]
    return {
        "config": flatten(config, of=TextConfig),
        "rates": {
            config.attack: {**_means(matched), "batches": float(np.mean(exact))},
            "guess: drawn": {**_means(guessed), "batches": None},
        },
        "targets": [
            {
                "exact": is_exact,
                **_certificate(found),
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
    reads_bigrams = config.attack == "lamp" and config.distribution == "words"
    public = ["how often words follow each other in public text of the same kind"] if reads_bigrams else []
    return {
        "known": [*(threat_models.MEANINGS[name] for name in ("update", "params", "num_examples")), *public],
        "unknown": ["the sequences", threat_models.MEANINGS["labels"], *([] if public else [_DISTRIBUTION])],
        "client": "; ".join(
            [
                "FedSGD: one gradient of the mean loss over the batch",
                *_adapters_in_words(config),
                defense_in_words(config.defense, adaptive_attacker=False),
            ]
        ),
        "realism": as_dict(
            realism_of(
                of_examples(config.num_sequences),
                of_training(ClientConfig(), config.num_sequences),
                of_parameters(),
                Fact("labels", "not used", "neither"),
                Fact("text", "words" if config.distribution == "words" else "random tokens, not language", "neither"),
                of_defense(config.defense, adaptive=False),
            )
        ),
    }


def _adapters_in_words(config: TextConfig) -> list[str]:
    if config.lora_rank is None:
        return []
    layers = ", ".join(config.lora_layers)
    return [f"only adapters of rank {config.lora_rank} are trained, of {layers}, after {config.lora_rounds} rounds"]


def score_text(found: Any, truth: Any) -> dict[str, float]:
    """Shares of right tokens and whole sequences, and ROUGE, of sequences `[B, n]` matched one-to-one."""
    found, truth = np.asarray(found), np.asarray(truth)
    quality = records.evaluate_records(found, truth, np.zeros(truth.shape[1]))
    right = quality.correct
    shares = {"tokens": float(right.mean()), "sequences": float(right.all(axis=-1).mean())}
    return {**shares, **rouge(found[quality.permutation], truth)}


def _means(scored: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scored])) for name in scored[0]}


def _certificate(found: Reconstruction) -> dict[str, Any]:
    """What a closed form says of its result; a search says only its attack loss."""
    if "status" not in found.info:
        return {"certified": False, "status": "found by search, without a certificate", "rank": None}
    return {
        "certified": bool(found.info["certified"]),
        "status": WORDS[Status(int(found.info["status"]))],
        "rank": int(found.info["rank"]),
    }
