"""Text from outside as it may be shown: control characters and what cannot be encoded are escaped, as in a repr.

Class names, paths, values of files and the like are chosen by others. A terminal obeys control characters in them
(ESC sequences set titles, hide lines, answer as if typed), and a lone surrogate cannot be written at all.
"""

import re
import unicodedata

_KEPT = "\n\t"
_HARMFUL = {"Cc", "Cs", "Zl", "Zp"}
"""Control characters, surrogates, line and paragraph separators."""
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that make text appear in another order than it is written."""
_PLAIN = re.compile(r"[ -~]*")


def visible(text: object, *, encoding: str = "utf-8", keep: str = "") -> str:
    r"""The text with control characters and characters that `encoding` lacks escaped; harmless text is unchanged.

    Args:
      text: anything; its `str`.
      encoding: of the terminal or file that the text goes to.
      keep: control characters to keep, such as line ends.

    >>> visible("\x1b]0;title\x07 caf\xe9 \ud800")
    '\\x1b]0;title\\x07 café \\ud800'
    """
    text = str(text)
    if _PLAIN.fullmatch(text):
        return text
    shown = "".join(c if c in keep or not _is_harmful(c) else _escaped(c) for c in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def visible_lines(text: object, *, encoding: str = "utf-8") -> str:
    r"""`visible`, but with line ends and tabs kept.

    >>> visible_lines("one\ntwo\x1b[2J")
    'one\ntwo\\x1b[2J'
    """
    return visible(text, encoding=encoding, keep=_KEPT)


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in _HARMFUL or character in _DIRECTIONS


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else ascii(character)[1:-1]
