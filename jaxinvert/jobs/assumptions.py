"""What the attacker of a job knew and did not know, in words."""

from typing import Any

from jaxinvert.attacks import adaptive
from jaxinvert.defenses import registry as defenses
from jaxinvert.jobs.config import JobConfig
from jaxinvert.observation import threat_models


def assumptions(config: JobConfig) -> dict[str, Any]:
    """What the attacker knew and did not know, in words."""
    rate, num_steps = config.local_training
    size = config.num_examples_per_step
    clients = {
        "fedsgd": "FedSGD: one gradient of the mean loss over the batch",
        "fedavg": f"FedAvg: {num_steps} local steps of {size} examples, {config.local_optimizer} with rate {rate:g}"
        f"{f' and weight decay {config.local_weight_decay:g}' if config.local_weight_decay else ''}, order "
        f"{config.local_order}",
    }
    sentences = [
        clients[config.client],
        *([f"the server sees the mean of {config.aggregate} clients' updates"] if config.aggregate > 1 else []),
        *(
            [f"{config.rounds} rounds on the same batch, server rate {config.server_rate:g}"]
            if config.rounds > 1
            else []
        ),
        _defense_in_words(config),
        f"BatchNorm, if any, in {config.batch_norm} mode",
    ]
    how_labels = {
        "known": "granted" if config.granted.labels else "not granted, and not asked for",
        "restored": f"restored from the update by the rule {config.chosen_label_rule}"
        + (", their order among local steps guessed" if config.num_examples_per_step < config.num_examples else ""),
        "joint": "optimized together with the images",
    }
    meanings = dict(threat_models.MEANINGS)
    if config.data == "photos":
        meanings["surrogate"] += " (tiles of the same scenes)"
    absent = {  # nothing to know
        *(("defense",) if config.defense == defenses.NONE else ()),
        *(("earlier_params", "earlier_updates") if config.rounds == 1 else ()),
    }
    prior = [f"what images look like: generator {config.generator_file.name}"] if config.generator_file else []
    return {
        "threat_model": config.threat_model,
        "known": [*(meanings[field] for field in config.granted.granted if field not in absent), *prior],
        "unknown": ["the images", *(meanings[field] for field in config.granted.withheld if field not in absent)],
        "client": "; ".join(sentences),
        "labels": how_labels[config.labels],
    }


def _defense_in_words(config: JobConfig) -> str:
    """What the clients do to their updates, and whether the attacker makes up for it."""
    if config.defense == defenses.NONE:
        return "no defense"
    numbers = ", ".join(f"{name} {value:g}" for name, value in config.defense_numbers().items())
    attacker = (
        f"to which the attacker adapts: {adaptive.counter_summary(config.defense)}"
        if config.adaptive
        else "to which the attacker does not adapt"
    )
    return f"defense {config.defense}{f' ({numbers})' if numbers else ''}, {attacker}"
