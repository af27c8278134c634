"""Reads YAML from untrusted files: bounded size, depth and number of values; no object tags, aliases, repetitions.

PyYAML needs seconds for a few thousand open brackets, minutes for a megabyte of them, and evaluates `1:1:1...` in
base 60. Therefore depth is limited while the text is split into tokens, and events are counted while they are parsed,
before any value is built.
"""

from pathlib import Path
from typing import Any

import yaml

from jaxinvert.readers.json_files import is_unicode, printable, read_regular

MAX_BYTES = 1 << 18
"""A longer file is rejected before it is parsed."""
MAX_DEPTH = 32
"""A file whose lists and mappings are nested deeper is rejected."""
MAX_EVENTS = 10_000
"""A file of more values, beginnings and ends of lists and mappings is rejected."""
_MAX_TEXT = 3000


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values with a limit on open brackets.

    It looks ahead for the end of a possible key, up to a thousand brackets, and visits all open ones at every token:
    a few kilobytes of them would take a second before the first event.
    """

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Opens a list or mapping in brackets, unless too many are open."""
        if self.flow_level > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        super().fetch_flow_collection_start(token)


_TOO_DEEP = f"it is nested deeper than the limit of {MAX_DEPTH}"


def read_yaml(file: Path | str) -> dict[str, Any]:
    """Reads a YAML file of named fields.

    Raises:
      ValueError: if the file cannot be read or violates a limit; the message names it.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file} is not a file")
    try:
        content = _parse(read_regular(file, max_bytes=MAX_BYTES))
    except Exception as error:  # constructors raise various errors for a value that does not fit its tag
        raise ValueError(f"{file} is not readable YAML: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, expected fields such as 'attack: dlg'")
    return content


def _parse(text: bytes) -> Any:
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it contains an alias (*name), which could expand to any size")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if number == MAX_EVENTS:
            raise ValueError(f"it holds more than {MAX_EVENTS:,} values")
        if isinstance(event, yaml.ScalarEvent) and not (len(event.value) <= _MAX_TEXT and is_unicode(event.value)):
            raise ValueError(f"the text {event.value[:80]!r} is too long, or has a lone surrogate")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _refuse_repetition(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_repetition(node: Any) -> None:
    """Refuses a key that is there twice, of which the parser would keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(f"it has {key.value[:80]!r} twice in one mapping")
                seen.add(key.value)
            _refuse_repetition(key)
            _refuse_repetition(value)
    elif isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _refuse_repetition(inner)
