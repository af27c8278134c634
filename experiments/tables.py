"""Writes the committed results into the tables of the READMEs, so that no figure is ever typed.

A table stands below a line `<!-- table: FILE column column ... -->` (FILE relative to the README, a header may be
given as `column=Words_with_underscores`) and ends at the next empty line.

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
    names = [column.split("=")[0] for column in columns]
    headers = [column.split("=")[-1].replace("_", " ") for column in columns]
    lines = [headers, ["---:"] * len(columns)]
    lines += [[harness.format_value(row[name]) for name in names] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
