"""The audit of clients with text: DAGER and its null controls.

The controls are those of `discrete.guesses`, and:

| control       | the "reconstruction" of a client's sequences                                        |
|---------------|--------------------------------------------------------------------------------------|
| random update | the same attack on normal noise with the norm of each tensor of the update          |
| other client  | the same attack on the next client's update                                         |

DAGER is a closed form without a prior, so there is nothing that it could show without an update. It reads no labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinvert import jobs
from jaxinvert.audit.clientwise import Clients, attack_and_score_clients
from jaxinvert.audit.discrete import DiscreteGround, DiscreteScores, Field, discrete_ground, guesses
from jaxinvert.audit.kept import Store
from jaxinvert.audit.measures import TEXT
from jaxinvert.audit.plan import NAIVE, UNDEFENDED
from jaxinvert.audit.results import Audited, Scenario
from jaxinvert.audit.running import Show
from jaxinvert.audit.weighing import judged
from jaxinvert.defenses.registry import NONE
from jaxinvert.jobs import text
from jaxinvert.jobs.text import TextConfig
from jaxinvert.types import Observation

_CANDIDATES = 1


def text_settings(config: TextConfig, defenses: Sequence[str] = (NONE,)) -> list[Scenario[TextConfig]]:
    """The only scenario: clients with text have no defense.

    Raises:
      ValueError: for any defense.
    """
    if list(defenses) != [NONE]:
        raise ValueError(
            f"defenses are {list(defenses)}, but for text none is implemented: neither clients with one nor DAGER "
            "against one; expected only 'none'"
        )
    return [Scenario(UNDEFENDED, {NAIVE: config})]


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
    """The clients of a job and DAGER, which reads no labels."""
    task, fields = text.prepare_text(config), jobs.flatten(config, of=TextConfig)

    def observation(client: int) -> Observation:
        return text.observe_text(config, task, client, text.draw_text(config, client))

    key, assumptions = jax.random.key(config.seed), text.assumptions(config)
    return Clients(config, fields, key, task.solve, observation, np.asarray, None, assumptions)
