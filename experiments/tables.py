"""Writes the committed results into the tables of the READMEs, so that no figure is ever typed.

A table stands below a line `<!-- table: FILE column column ... -->` and ends at the next empty line; FILE is relative
to the README. Beside plain columns there are

    column=Words_with_underscores   the same under another header
    column==value                   no column: only the rows where it is so
    rule/exact                      a column for each value of `rule`, filled with `exact`

Command:  python -m experiments.tables
"""

import json
import re
from pathlib import Path

from experiments import harness

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "experiments" / "README.md")
_TABLE = re.compile(r"(<!-- table: (?P<file>\S+) (?P<columns>[^>]+) -->\n)(?P<table>(?:.+\n)*)")


def main() -> None:
    """Rewrites every table in place."""
    for document in DOCUMENTS:
        document.write_text(filled(document), encoding="utf-8")


def filled(document: Path) -> str:
    """The document's text with its tables made anew from the result files that they name."""

    def table(match: re.Match) -> str:
        results = json.loads((document.parent / match["file"]).read_text(encoding="utf-8"))
        return match[1] + markdown(results["rows"], match["columns"].split())

    return _TABLE.sub(table, document.read_text(encoding="utf-8"))


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
