"""An extension of griffe, which reads docstrings for the reference: doctests become sections of examples.

The package's docstrings put doctests at their end, without a header. Markdown would take `>>>` for quotations, and
lists of lists in their output for links.
"""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^Examples?:\n)?(?P<code>(?:^[ ]*>>> .*\n?(?:^[ ]*\S.*\n?)*\n*)+)", flags=re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts every doctest below the header `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object that was just read."""
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = _DOCTEST.sub(_as_section, obj.docstring.value + "\n").rstrip()


def _as_section(match: re.Match) -> str:
    lines = match["code"].rstrip().splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "Examples:\n" + "".join(f"    {line[margin:]}\n" if line.strip() else "\n" for line in lines)
