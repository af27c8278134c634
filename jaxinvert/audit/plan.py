"""The scenarios of an audit: one deployment with each of several defenses, and the attackers of each.

A defense is written `NAME`, `NAME:parameter=value,parameter=value`, or as a chain
`top-k+gaussian:keep=0.1,scale=0.01`.
"""

from collections.abc import Callable, Mapping, Sequence

from jaxinvert.audit.results import Job, Scenario
from jaxinvert.defenses.registry import NONE
from jaxinvert.jobs import JobConfig
from jaxinvert.observation.threat_models import check_needs

NAIVE, ADAPTIVE = "naive", "adaptive"
UNDEFENDED = "no defense"
"""Name of the scenario without a defense."""


def settings_for(config: JobConfig, defenses: Sequence[str] = (NONE,)) -> list[Scenario]:
    """One scenario for each defense, with a naive attacker and, where one exists, an adaptive attacker.

    Args:
      config: the deployment and the attack, without a defense.
      defenses: written as described in the module's docstring.

    Raises:
      ValueError: for an invalid defense, one that is named twice, or an empty list.

    >>> [[*setting.attackers] for setting in settings_for(JobConfig(), ["none", "top-k:keep=0.1"])]
    [['naive'], ['naive', 'adaptive']]
    """

    def defended(name: str, numbers: dict[str, float]) -> JobConfig:
        return config.replace(defense=name, defense_settings=numbers)

    def adapted(naive: JobConfig) -> JobConfig:
        adaptive = naive.replace(adaptive=True)
        check_needs(adaptive.granted, adaptive.needs, attack=f"an adaptive {adaptive.attacker.attack}")
        return adaptive

    plain = config.defense.name == NONE and not config.attacker.adaptive
    return scenarios(defenses, defended, adapted, plain=plain)


def scenarios(
    defenses: Sequence[str],
    defended: Callable[[str, dict[str, float]], Job],
    adapted: Callable[[Job], Job],
    *,
    plain: bool,
) -> list[Scenario[Job]]:
    """One scenario for each defense, of jobs of any kind.

    Args:
      defenses: written as described in the module's docstring.
      defended: the job of a naive attacker, from the name of a defense and its parameters.
      adapted: the job of an adaptive attacker, from the naive one's; raises ValueError where there is none.
      plain: whether the audit's job is given without a defense and without an adaptive attacker.

    Raises:
      ValueError: for an invalid defense, one that is named twice, an empty list, or a job that is not plain.
    """
    if not plain:
        raise ValueError("an audit takes its defenses from the list `defenses`, and its attackers follow from them")
    if not defenses or len(set(defenses)) < len(defenses):
        raise ValueError(f"defenses are {list(defenses)}, expected at least one, and each only once")
    return [_scenario(text, defended, adapted) for text in defenses]


def _scenario(
    text: str, defended: Callable[[str, dict[str, float]], Job], adapted: Callable[[Job], Job]
) -> Scenario[Job]:
    name, numbers = parse_defense(text)
    naive = defended(name, numbers)
    if name == NONE:
        return Scenario(UNDEFENDED, {NAIVE: naive})
    title = title_of(name, numbers)
    try:
        return Scenario(title, {NAIVE: naive, ADAPTIVE: adapted(naive)})
    except ValueError as error:
        return Scenario(title, {NAIVE: naive}, f"without an adaptive attacker: {error}")


def title_of(name: str, numbers: Mapping[str, float]) -> str:
    """The name of a defense for people.

    >>> title_of("top-k", {"keep": 0.1})
    'top-k (keep 0.1)'
    """
    given = ", ".join(f"{number} {value:g}" for number, value in numbers.items())
    return f"{name} ({given})" if given else name


def parse_defense(text: str) -> tuple[str, dict[str, float]]:
    """Parses a defense into its name and its parameters.

    Raises:
      ValueError: if the text does not have the form of the module's docstring.

    >>> parse_defense("top-k:keep=0.1")
    ('top-k', {'keep': 0.1})
    """
    name, colon, numbers = text.partition(":")
    try:
        pairs = [part.split("=") for part in numbers.split(",")] if colon else []
        parsed = {key.strip(): float(value) for key, value in pairs}
    except ValueError as error:
        raise ValueError(f"defense {text!r} is not of the form NAME:parameter=value,parameter=value") from error
    if len(parsed) < len(pairs):
        raise ValueError(f"defense {text!r} sets a parameter twice")
    return name.strip(), parsed
