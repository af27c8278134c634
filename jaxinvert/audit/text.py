"""The audit of clients with text: an attack on text and its null controls.

The controls are those of `discrete.guesses`, and:

| control       | the "reconstruction" of a client's sequences                                        |
|---------------|--------------------------------------------------------------------------------------|
| random update | the same attack on normal noise with the norm of each tensor of the update          |
| other client  | the same attack on the next client's update                                         |

DAGER is a closed form without a prior; what the bigrams of LAMP know shows in the guesses by frequency and on random
updates. No attack reads labels, and none adapts to a defense.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinvert import jobs
from jaxinvert.audit.clientwise import Clients, attack_and_score_clients
from jaxinvert.audit.discrete import DiscreteGround, DiscreteScores, Field, discrete_ground, guesses
from jaxinvert.audit.kept import Store
from jaxinvert.audit.measures import TEXT
from jaxinvert.audit.plan import scenarios
from jaxinvert.audit.results import Audited, Scenario
from jaxinvert.audit.running import Show
from jaxinvert.audit.weighing import judged
from jaxinvert.defenses.registry import NONE
from jaxinvert.jobs import text
from jaxinvert.jobs.groups import DefenseConfig
from jaxinvert.jobs.text import TextConfig
from jaxinvert.types import Observation

_CANDIDATES = 1


def text_settings(config: TextConfig, defenses: Sequence[str] = (NONE,)) -> list[Scenario[TextConfig]]:
    """One scenario for each defense, with a naive attacker: attacks on text do not adapt.

    Args:
      config: the clients and the attack, without a defense.
      defenses: written as in `plan`.

    Raises:
      ValueError: for an invalid defense, one that is not implemented for text, or an empty list.
    """

    def adapted(naive: TextConfig) -> TextConfig:
        raise ValueError(f"{naive.attack} does not adapt to defenses")

    return scenarios(
        defenses,
        lambda name, numbers: replace(config, defense=DefenseConfig(name, numbers)),
        adapted,
        plain=config.defense.name == NONE,
    )


def audit_text(
    settings: Sequence[Scenario[TextConfig]],
    *,
    num_candidates: int = 100,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> list[Audited[TextConfig, DiscreteScores, DiscreteGround]]:
    """Runs the attack and its null controls, and judges the evidence.

    Args:
      settings: see `text_settings`.
      num_candidates: number of sequences, private ones and others from the same distribution.
      folder: stores the reconstructions, so that the same audit resumes after an interrupt.
      on_progress: called repeatedly with the current step.
    """
    audited = []
    for setting in settings:
        found, ground = {}, None
        for attacker, config in setting.attackers.items():

            def show(what: str, _: Any) -> None:
                on_progress(f"{setting.name}, {attacker}: {what}", None)  # noqa: B023  only called in this iteration

            show("preparing", None)
            ground = text_ground(config, num_candidates)
            rng = np.random.default_rng((config.seed, config.targets))
            guessed = guesses(ground, ground.candidates, ground.private, rng)
            found[attacker] = attack_and_score_clients(
                clients_of(config), guessed, ground, folder and Store(folder), show
            )
        assert ground is not None
        audited.append(judged(setting.name, ground, found)._replace(note=setting.note))
    return audited


def text_ground(config: TextConfig, num_candidates: int) -> DiscreteGround:
    """The clients' sequences, and other sequences from the same distribution."""
    shape = (config.targets, config.num_sequences)
    private = np.concatenate([text.draw_text(config, client).inputs for client in range(config.targets)])
    rng = np.random.default_rng((config.seed, *shape, config.length, _CANDIDATES))
    others = text.draw_tokens(config, rng, max(0, num_candidates - len(private)))
    rows = np.concatenate([private, others])
    return discrete_ground(
        rows,
        np.zeros(len(rows), int),
        shape=shape,
        fields=[Field(f"token {position}") for position in range(config.length)],
        measure=TEXT,
        rng=rng,
    )


def clients_of(config: TextConfig) -> Clients:
    """The clients of a job and the attack, which reads no labels."""
    task, fields = text.prepare_text(config), jobs.flatten(config, of=TextConfig)

    def observation(client: int) -> Observation:
        return text.observe_text(config, task, client, text.draw_text(config, client))

    key, assumptions = jax.random.key(config.seed), text.assumptions(config)
    return Clients(config, fields, key, task.solve, observation, np.asarray, None, assumptions)
