"""Finds the code blocks of Markdown pages, and makes them small enough for tests."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^ *<!-- test: (?P<mark>\w+) -->\n)?^(?P<margin> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=margin)```",
    flags=re.DOTALL | re.MULTILINE,
)
_SOURCE = re.compile(r"^<!-- source: (\S+) -->$", flags=re.MULTILINE)
SMALL = {
    r"num_steps=\d+": "num_steps=2",
    r"num_restarts=\d+": "num_restarts=1",
    r'"steps": \d+': '"steps": 2',
    r"attacks\.spectral": "attacks.inverting_gradients",  # whose start takes longer; the README's test runs it
}
"""What is replaced in blocks to make them fast."""


class Block(NamedTuple):
    """A code block: its language, its code, and the mark above it, such as "compile"."""

    language: str
    code: str
    mark: str

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for each in lines if (line := re.split(r"(?:^|\s)# ", each)[0].strip())]


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        margin = match["margin"]
        code = "".join(line.removeprefix(margin) for line in match["code"].splitlines(keepends=True))
        found.append(Block(match["language"], code, match["mark"] or ""))
    return found


def small(code: str) -> str:
    """The code with few steps."""
    for pattern, replacement in SMALL.items():
        code = re.sub(pattern, replacement, code)
    return code


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as both the repository's viewer and the site make them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def links(page: Path) -> list[tuple[str, str]]:
    """The links of a page to files of the repository: path, and anchor or nothing."""
    text = re.sub(r"^ *```.*?^ *```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets += _SOURCE.findall(text)
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in targets) if ":" not in path]
