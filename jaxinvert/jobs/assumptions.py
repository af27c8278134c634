"""Text descriptions of a job's assumptions: what the attacker knows, how clients train, which defense they use."""

from collections.abc import Mapping
from typing import Any

from jaxinvert.attacks import adaptive
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.deployment import NUM_DRAWS
from jaxinvert.jobs.groups import ClientConfig, DefenseConfig, ModelConfig
from jaxinvert.jobs.realism import as_dict, prior_saw_victims, realism
from jaxinvert.models import Model
from jaxinvert.observation.threat_models import MEANINGS, ThreatModel


def assumptions(config: JobConfig, model: Model, *, captured: bool = False) -> dict[str, Any]:
    """The assumptions of a job in words: threat model, known and unknown facts, clients, labels, and their realism.

    Args:
      config: the job.
      model: the clients' network.
      captured: whether the updates are captured ones.
    """
    observation, attacker = config.observation, config.attacker
    sentences = [training_in_words(config.client, config.data.num_examples)]
    if observation.aggregate > 1:
        sentences.append(f"the server sees the mean of {observation.aggregate} clients' updates")
    if observation.rounds > 1:
        sentences.append(f"{observation.rounds} rounds on the same batch, server rate {config.server_rate:g}")
    sentences += [
        defense_in_words(config.defense, adaptive_attacker=attacker.adaptive),
        f"BatchNorm, if any, in {config.model.batch_norm} mode",
        "dropout, if any, off"
        if config.model.dropout == "eval"
        else f"dropout drawn by the clients; the attacker averages {NUM_DRAWS} draws of its own",
        *_roles_in_words(config.model),
    ]
    several_steps = config.num_examples_per_step < config.data.num_examples
    order_guessed = ", with a guessed order across local steps" if several_steps else ""
    how_labels = {
        "known": "granted" if config.granted.labels else "not granted and not used",
        "restored": f"restored from the update by the rule {config.chosen_label_rule}{order_guessed}",
        "joint": "optimized jointly with the images",
    }
    meanings = dict(MEANINGS)
    if config.data.name == "photos":
        meanings["surrogate"] += (
            " (tiles of other photographs)" if config.data.holds_private_tiles else " (tiles of the same scenes)"
        )
    known, unknown = knowledge(
        config.granted,
        defended=bool(config.defense.chain.names),
        several_rounds=observation.rounds > 1,
        captured=captured,
    )
    generator = attacker.generator_file
    prior = [f"what images look like: generator {generator.name}"] if generator else []
    if prior_saw_victims(config, captured=captured):
        prior.append("parts of the victims' own scenes: the generator was trained on them")
    return {
        "threat_model": observation.threat_model,
        "known": [*(meanings[field] for field in known), *prior],
        "unknown": ["the images", *(meanings[field] for field in unknown)],
        "client": "; ".join(sentences),
        "labels": how_labels[attacker.labels],
        "realism": as_dict(realism(config, model, captured=captured)),
    }


def _roles_in_words(model: ModelConfig) -> list[str]:
    sentences = [f"layers not trained: {', '.join(model.frozen)}"] if model.frozen else []
    if model.lora_rank is not None:
        sentences.append(f"only adapters of rank {model.lora_rank} are trained, of {', '.join(model.lora_layers)}")
    return sentences + ([f"layers not sent: {', '.join(model.personal)}"] if model.personal else [])


def realism_in_words(assumptions: Mapping[str, Any]) -> str:
    """How realistic assumptions are, followed by the facts that favor the attacker or the client.

    Args:
      assumptions: as returned by `assumptions`.
    """
    card = assumptions["realism"]
    sides = [
        f"favoring the {side}: {', '.join(one['name'] + ' ' + one['value'] for one in facts)}"
        for side in ("attacker", "client")
        if (facts := [fact for fact in card["facts"] if fact["favors"] == side])
    ]
    return "; ".join([card["kind"], *sides])


def knowledge(
    granted: ThreatModel, *, defended: bool, several_rounds: bool = False, captured: bool = False
) -> tuple[list[str], list[str]]:
    """The fields of an observation that are granted and those that are withheld, without those that do not exist.

    Args:
      granted: the threat model.
      defended: whether the clients have a defense.
      several_rounds: whether there were earlier rounds.
      captured: whether the updates are captured ones, for which no public images of the same kind are read.
    """
    absent = {"surrogate"} if captured else set()
    if not defended:
        absent.add("defense")
    if not several_rounds:
        absent |= {"earlier_params", "earlier_updates"}
    known, unknown = ([f for f in fields if f not in absent] for fields in (granted.granted, granted.withheld))
    return known, unknown


def training_in_words(client: ClientConfig, num_examples: int) -> str:
    """Describes how a client with `num_examples` examples trains."""
    if client.kind == "fedsgd":
        return "FedSGD: one gradient of the mean loss over the batch"
    rate, num_steps = client.local_training(num_examples)
    decay = f" and weight decay {client.local_weight_decay:g}" if client.local_weight_decay else ""
    return (
        f"FedAvg: {num_steps} local steps of {client.num_examples_per_step(num_examples)} examples, "
        f"{client.local_optimizer} with rate {rate:g}{decay}, order {client.local_order}"
    )


def defense_in_words(defense: DefenseConfig, *, adaptive_attacker: bool) -> str:
    """Describes the clients' defense and how the attacker adapts to it."""
    if not defense.chain.names:
        return "no defense"
    parameters = ", ".join(f"{name} {value:g}" for name, value in defense.parameters.items())
    attacker = (
        f"to which the attacker adapts: {adaptive.counter_summary(defense.chain)}"
        if adaptive_attacker
        else "to which the attacker does not adapt"
    )
    return f"defense {defense.name}{f' ({parameters})' if parameters else ''}, {attacker}"
