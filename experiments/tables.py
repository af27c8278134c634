"""Writes the committed results into the tables of the documentation, so that no figure is ever typed.

A table stands below a line `<!-- table: FILE column column ... -->` and ends at the next empty line; FILE is relative
to the page. Beside plain columns there are

    column=Words_with_underscores   the same under another header
    column==value                   no column: only the rows where it is so
    rule/exact                      a column for each value of `rule`, filled with `exact`

A table whose file is not there yet says so. A line `<!-- published: FOLDER -->` stands above the table of
`experiments.published`, a line `<!-- attack: NAME -->` above what an attack's docstring and declaration say: when it
works and fails, what it reads, and its settings.

Command:  python -m experiments.tables
"""

import json
import re
from pathlib import Path

from experiments import harness
from experiments.published import published
from jaxinvert import attacks
from jaxinvert.attacks import registry

ROOT = Path(__file__).parents[1]
DETAILS = tuple(sorted((ROOT / "experiments" / "details").glob("*.md")))
DOCUMENTS = (ROOT / "experiments" / "README.md", *DETAILS, *sorted((ROOT / "docs").rglob("*.md")))
_TABLE = re.compile(r"(<!-- table: (?P<file>\S+) (?P<columns>[^>]+) -->\n)(?P<table>(?:.+\n)*)")
_ATTACK = re.compile(r"(<!-- attack: (?P<name>\S+) -->\n)(?P<text>(?:.+\n)*)")
_PUBLISHED = re.compile(r"(<!-- published: (?P<folder>\S+) -->\n)(?P<table>(?:.+\n)*)")


def main() -> None:
    """Rewrites every table, and what is said of attacks, in place."""
    for document in DOCUMENTS:
        document.write_text(filled(document), encoding="utf-8")


def filled(document: Path) -> str:
    """The document's text with its tables made anew from the result files that they name."""

    def table(match: re.Match) -> str:
        file = document.parent / match["file"]
        if not file.exists():
            return f"{match[1]}*not measured yet*\n"
        results = json.loads(file.read_text(encoding="utf-8"))
        return match[1] + markdown(results["rows"], match["columns"].split())

    def all_published(match: re.Match) -> str:
        return match[1] + published(document.parent / match["folder"])

    def of_attack(match: re.Match) -> str:
        return match[1] + conditions(match["name"])

    text = _TABLE.sub(table, document.read_text(encoding="utf-8"))
    return _ATTACK.sub(of_attack, _PUBLISHED.sub(all_published, text))


def conditions(name: str) -> str:
    """When an attack works and fails, what it reads and can do, and its settings, as a Markdown list.

    Args:
      name: as registered, or that of a function of `attacks`.

    Raises:
      ValueError: if its docstring does not say when it works or fails.
    """
    attack = registry.REGISTRY.get(name) or registry.entry_of(getattr(attacks, name.replace("-", "_")))
    for paragraph, said in (("Works", attack.works), ("Fails", attack.fails)):
        if not said:
            raise ValueError(f"{name}: its docstring has no paragraph '{paragraph}: ...'")
    lines = [f"- *Works* {attack.works}", f"- *Fails* {attack.fails}"]
    if registry.is_declared(attack.attack):
        reads = ", ".join(f"`{field}`" for field in attack.needs)
        lines.append(f"- *Reads* {'; '.join((reads, *attack.abilities))}.")
    if attack.hyperparameters:
        settings = ", ".join(f"`{setting}` {value:g}" for setting, value in attack.hyperparameters.items())
        lines.append(f"- *Settings* {settings}.")
    return "\n".join(lines) + "\n"


def markdown(rows: list[dict], columns: list[str]) -> str:
    """The rows as a Markdown table of some columns."""
    conditions = [column.split("==") for column in columns if "==" in column]
    rows = [row for row in rows if all(str(row[name]) == value for name, value in conditions)]
    columns = [column for column in columns if "==" not in column]
    if spreads := [column for column in columns if "/" in column.split("=")[0]]:
        (spread,) = spreads
        columns.remove(spread)
        rows, values = spread_out(rows, [column.split("=")[0] for column in columns], *spread.split("/"))
        columns += values
    names = [column.split("=")[0] for column in columns]
    headers = [column.split("=")[-1].replace("_", " ") for column in columns]
    lines = [headers, ["---:"] * len(columns)]
    lines += [[harness.format_value(row.get(name)) for name in names] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread_out(rows: list[dict], group_by: list[str], key: str, value: str) -> tuple[list[dict], list[str]]:
    """One row for each group, with `row[value]` under the name `row[key]`; also returns those names."""
    groups: dict[tuple, dict] = {}
    for row in rows:
        group = {name: row[name] for name in group_by}
        cells = groups.setdefault(tuple(group.values()), group)
        if str(row[key]) in cells:
            raise ValueError(f"{group} has several rows for {key} {row[key]!r}: name more columns")
        cells[str(row[key])] = row[value]
    return list(groups.values()), list(dict.fromkeys(str(row[key]) for row in rows))


if __name__ == "__main__":
    main()
