"""What an audit attacked, in one sentence: the data, the clients, the network and the attack."""

from collections.abc import Mapping
from typing import Any

from jaxinvert.report.wording import number, plural


def about_images(
    config: Mapping[str, Any], record: Mapping[str, Any], *, closed: bool = False, captured: bool = False
) -> str:
    """What an audit of images attacked.

    Args:
      config: the flat configuration of the attacker in the headline.
      record: the record of the audit, see `jaxinvert.audit.record`.
      closed: whether the attack was solved in closed form, without steps.
      captured: whether the updates are captured ones, so that the data set only gave further candidates.
    """
    clients = _clients(record, "image", "captured" if captured else "simulated")
    source = ""
    if not captured and config.get("data"):
        whole = str(config.get("split")).startswith("test")
        pictures = f" ({'' if whole else 'tiles of '}photographs that come with jaxinvert)"
        source = f" of the data set {config['data']}{pictures if config['data'] == 'photos' else ''}"
    effort = "in closed form" if closed else _effort(config)
    return _sentence(clients + source, f"network {config.get('model')}", f"attack {config.get('attack')}, {effort}")


def about_items(config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What an audit of records or text attacked; see `about_images`."""
    kind = record["kind"]
    if kind == "record":
        source, network = f" of the table {config.get('table')}", "network of dense layers"
        effort = f", {plural(config['steps'], 'step')}" if "steps" in config else ""
        return _sentence(_clients(record, kind) + source, network, f"attack TabLeak{effort}")
    network = f"untrained transformer ({config.get('model')})"
    return _sentence(f"{_clients(record, kind)} of random tokens", network, "attack DAGER, in closed form")


def _clients(record: Mapping[str, Any], item: str, kind: str = "simulated") -> str:
    each = " each" if record["num_clients"] > 1 else ""
    return f"{plural(record['num_clients'], f'{kind} client')} with {plural(record['num_examples'], item)}{each}"


def _effort(config: Mapping[str, Any]) -> str:
    restarts, steps = config.get("restarts"), config.get("steps")
    return f"{plural(restarts, 'restart')} of {number(steps)} steps"


def _sentence(*parts: str) -> str:
    return f"Audited: {'; '.join(parts)}."
