"""How realistic a job's assumptions are: each fact of the deployment, and whom it favors.

A figure from a client that no deployment has is an upper bound at best. Batches of one example, granted labels,
networks before training and BatchNorm in evaluation mode make attacks succeed that fail on deployed clients:

| fact                    | favors the attacker                        | as deployed                     |
|-------------------------|--------------------------------------------|---------------------------------|
| examples per update     | one                                        | several                         |
| training                | one gradient; a known order of local steps | local steps in an unknown order |
| parameters              | random, before training                    | trained                         |
| BatchNorm               | running statistics (eval mode)             | batch statistics (train mode)   |
| labels                  | granted                                    | restored or optimized           |
| rounds                  | several on the same examples               | one                             |
| prior                   | trained on the victims' scenes             | public images, or none          |

A defense that the attacker does not adapt to favors the client: an adaptive attacker may reach more.

Captured updates are of a deployment. Its number of examples, training, parameters and BatchNorm are facts, which
favor nobody. What the attacker was granted beyond the update still favors the attacker.

References:
  Huang et al.: Evaluating gradient inversion attacks and defenses in federated learning. NeurIPS 2021.
"""

from typing import Any, Literal, NamedTuple

import jax

from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.groups import ClientConfig, DefenseConfig
from jaxinvert.models import Model
from jaxinvert.priors import generators

Side = Literal["attacker", "client", "neither"]


class Fact(NamedTuple):
    """One fact of a deployment.

    Attributes:
      name: what it is about, such as "labels".
      value: what was assumed, in words.
      favors: whom the assumption favors, compared with usual deployments.
    """

    name: str
    value: str
    favors: Side


class Realism(NamedTuple):
    """How realistic the assumptions of a job are.

    Attributes:
      kind: "diagnostic upper bound" if a fact favors the attacker, else "as deployed".
      facts: all facts.
    """

    kind: Literal["diagnostic upper bound", "as deployed"]
    facts: tuple[Fact, ...]


def realism(config: JobConfig, model: Model, *, captured: bool = False) -> Realism:
    """Collects the facts of a job on images.

    Args:
      config: the job.
      model: the clients' network.
      captured: whether the updates are captured ones: then clients, network and training are those of a deployment.
    """
    return realism_of(
        of_examples(config.num_private, captured=captured),
        of_training(config.client, config.data.num_examples, captured=captured),
        of_parameters(captured=captured, trained=config.model.checkpoint is not None),
        *_batch_norm(config, model, captured=captured),
        _labels(config),
        *_rounds(config),
        *_prior(config, captured=captured),
        of_defense(config.defense, adaptive=config.attacker.adaptive),
    )


def realism_of(*facts: Fact) -> Realism:
    """A diagnostic upper bound if any fact favors the attacker, else as deployed."""
    favored = any(fact.favors == "attacker" for fact in facts)
    return Realism("diagnostic upper bound" if favored else "as deployed", facts)


def as_dict(card: Realism) -> dict[str, Any]:
    """The card for a summary: `kind`, and `facts` with `name`, `value` and `favors`."""
    return {"kind": card.kind, "facts": [fact._asdict() for fact in card.facts]}


def of_examples(count: int, *, captured: bool = False) -> Fact:
    """How many examples an update is computed from."""
    return Fact("examples per update", f"{count:,}", "attacker" if count == 1 and not captured else "neither")


def of_training(client: ClientConfig, num_examples: int, *, captured: bool = False) -> Fact:
    """How a client with `num_examples` examples trains."""
    if client.kind == "fedsgd":
        return Fact("training", "one gradient (FedSGD)", "neither" if captured else "attacker")
    steps = client.local_training(num_examples).num_steps
    words = f"{steps:,} local step{'s' if steps > 1 else ''} (FedAvg)"
    if client.num_examples_per_step(num_examples) == num_examples:  # there is no order to know
        return Fact("training", words, "neither")
    known = client.local_order == "known"
    return Fact("training", f"{words}, order {client.local_order}", "attacker" if known else "neither")


def of_parameters(*, captured: bool = False, trained: bool = False) -> Fact:
    """Where the network's parameters are from."""
    if captured:
        return Fact("parameters", "those that the server sent", "neither")
    if trained:
        return Fact("parameters", "from a checkpoint", "neither")
    return Fact("parameters", "random, before training", "attacker")


def of_defense(config: DefenseConfig, *, adaptive: bool) -> Fact:
    """Whether the attacker adapts to the clients' defense."""
    if not config.chain.names:
        return Fact("defense", "none", "neither")
    if adaptive:
        return Fact("defense", "known to the attacker, who adapts", "neither")
    return Fact("defense", "the attacker does not adapt", "client")


def prior_saw_victims(config: JobConfig, *, captured: bool = False) -> bool:
    """Whether the attacker's generator may have been trained on parts of scenes that the simulated clients hold.

    Captured clients are not simulated: what they hold is unknown, and no image of the data set.
    """
    if captured:
        return False
    shipped = config.attacker.generator_file == generators.DEFAULT
    return shipped and config.data.name == "photos" and not config.data.holds_private_tiles


def _batch_norm(config: JobConfig, model: Model, *, captured: bool) -> list[Fact]:
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if not (isinstance(shapes, dict) and shapes.get("batch_stats")):
        return []
    train = config.model.batch_norm == "train"
    mode = Fact(
        "BatchNorm",
        "batch statistics (train mode)" if train else "running statistics (eval mode)",
        "neither" if train or captured else "attacker",
    )
    sent = "sent by the clients and known" if config.granted.batch_stats else "not used by the attacker"
    return [mode, Fact("running statistics", sent, "neither")]


def _labels(config: JobConfig) -> Fact:
    if config.granted.labels:
        return Fact("labels", "granted", "attacker")
    how = {"known": "not used", "restored": "restored from the update", "joint": "optimized with the images"}
    return Fact("labels", how[config.attacker.labels], "neither")


def _rounds(config: JobConfig) -> list[Fact]:
    rounds = config.observation.rounds
    return [Fact("rounds", f"{rounds} on the same examples", "attacker")] if rounds > 1 else []


def _prior(config: JobConfig, *, captured: bool) -> list[Fact]:
    saw = prior_saw_victims(config, captured=captured)
    return [Fact("prior", "generator trained on the victims' scenes", "attacker")] if saw else []
