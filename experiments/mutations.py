"""Mutations of files for `fuzz`: damage to bytes, and edits that know the format and keep the rest of a file valid.

Every mutation is a function of the content and a `random.Random`, so that a seed names an input.
"""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

Edit = Callable[[bytes, random.Random], bytes]

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_DEEP, _TWICE = "@DEEP@", "@TWICE@"
_HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 2**31, 2**53 + 1, 2**63, 2**64, 10**21, 10**400),
    *(1e-300, 1e300, -1e39, float("nan"), float("inf"), 0.5),
    *("", "x", "\ud800", "\x1b[2J", "x" * 5000, "../../etc/passwd", "evil.X", _DEEP, "\x00", "F8_E4M3", "I64", "O"),
    *([], {}, [[]], [1] * 2000, {"a": 1}, ["evil.X"], [1e300], [[1]]),
)
"""Values in place of others: wrong types, numbers out of range, deep lists, text that cannot be shown, names."""


def mutated(content: bytes, rng: random.Random, edit: Edit | None) -> bytes:
    """The content after one to three mutations; half of the inputs get edits that know the format, if there are any.

    Args:
      content: the valid file.
      rng: determines the mutations.
      edit: changes the structure of a valid file.
    """
    if edit is not None and rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 2))):
            try:
                content = edit(content, rng)
            except Exception:  # the first edit may have left nothing to edit
                break
        return content
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(_DAMAGES)(content, rng)
    return content


def _flip(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(min(len(data), rng.choice((1, 1, 2, 8)))):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _splice(content: bytes, rng: random.Random) -> bytes:
    """Puts a part of the file over or into another place."""
    start, at = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    part = content[start : start + rng.choice((1, 4, 16, 64, 1024))]
    return content[:at] + part + content[at + rng.choice((0, len(part))) :]


def _remove(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice((1, 2, 4, 64)) :]


def _extreme(content: bytes, rng: random.Random) -> bytes:
    """Overwrites an aligned or any place with an extreme integer, in headers more often than elsewhere."""
    size = rng.choice((1, 2, 4, 8))
    value = (rng.choice(_EXTREMES) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    at = _place(content, rng)
    return content[:at] + value + content[at + size :]


def _place(content: bytes | bytearray, rng: random.Random) -> int:
    most = len(content) if rng.random() < 0.5 else min(len(content), 64)
    return rng.randrange(most) if most else 0


_DAMAGES = (_flip, _truncate, _splice, _remove, _extreme)


def edit_json(content: bytes, rng: random.Random) -> bytes:
    """Replaces, removes, renames, repeats or doubles a value anywhere in a JSON file."""
    root = [json.loads(content)]
    places: list[tuple[Any, Any]] = []
    level: list[Any] = [root]
    while level:
        one = level.pop()
        keys = range(len(one)) if isinstance(one, list) else [*one]
        places += [(one, key) for key in keys]
        level += [one[key] for key in keys if isinstance(one[key], list | dict)]
    holder, key = rng.choice(places)
    how = rng.random()
    if how < 0.6:
        holder[key] = rng.choice(_HOSTILE)
    elif how < 0.7:
        other, place = rng.choice(places)
        holder[key] = other[place] if not isinstance(other[place], list | dict) else rng.choice(_HOSTILE)
    elif how < 0.8 and holder is not root:
        del holder[key]
    elif isinstance(holder, dict):
        name = f"{key}{_TWICE}" if how < 0.9 else rng.choice(("", "x", "../x", "\x1b[2J", "type", "__metadata__"))
        holder[name] = rng.choice((holder[key], rng.choice(_HOSTILE)))
    else:
        holder[key] = [holder[key]] * rng.choice((2, 100))
    text = json.dumps(root[0]).replace(f'"{_DEEP}"', "[" * 20_000)
    return text.replace(_TWICE, "").encode()


def edit_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Edits the header, whose length is put right, and the JSON in its metadata."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    metadata = json.loads(header).get("__metadata__")
    if metadata and rng.random() < 0.6:
        name = rng.choice([*metadata])
        metadata[name] = edit_json(metadata[name].encode(), rng).decode()
        header = json.dumps(json.loads(header) | {"__metadata__": metadata}).encode()
    else:
        header = edit_json(header, rng)
    return len(header).to_bytes(8, "little") + header + data


def npy(shape: object, descr: str = "|u1", data: bytes = b"", *, fortran: object = False) -> bytes:
    """An npy file with any header."""
    header = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


_MEMBERS = (
    b"",
    b"no npy",
    npy((10**21,)),
    npy((10**7, 10**7, 10**7)),
    npy("()", "|O", bytes(8)),
    npy("(2,)", "|V3", bytes(6)),
    npy("(2,)", "<U1", b"\xff" * 8),
    npy("(1,)", "<i8", (2 * 10**9).to_bytes(8, "little")),
    npy("(2,)", "<f8", struct.pack("<2d", 1e300, float("nan"))),
    npy("[1]"),
    npy("(" * 3000),
    npy("(2, 2)", "|u1", bytes(4), fortran=True),
    npy((1 << 27,), "|u1", bytes(1 << 10)),
    npy((1 << 24,), "|u1", bytes(1 << 24)),
)
"""Members in place of others; the last is a bomb of 16 MiB in 16 KiB."""


def edit_npz(content: bytes, rng: random.Random) -> bytes:
    """Replaces, damages, renames, doubles or removes a member, with valid checksums of the zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, member = members[at]
    how = rng.random()
    if how < 0.4:
        members[at] = name, rng.choice(_MEMBERS)
    elif how < 0.7:
        members[at] = name, mutated(member, rng, None)
    elif how < 0.8:
        members[at] = rng.choice(members)[0], member
    elif how < 0.9:
        members.append(
            (rng.choice(("x.npy", "../x.npy", "\x1b[2J.npy", "a/data.pkl", "class_names.npy", name)), member)
        )
    else:
        del members[at]
    file = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, member in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = kind
            archive.writestr(info, member, compresslevel=1)  # of the bomb, a tenth of the time
    return file.getvalue()


def edit_msgpack(content: bytes, rng: random.Random) -> bytes:
    """Replaces a value of the nested maps, or doubles or renames a key."""
    tree: Any = msgpack.unpackb(content, strict_map_key=False)
    holder: Any = tree
    while isinstance(holder, dict) and rng.random() < 0.7 and any(isinstance(v, dict) for v in holder.values()):
        holder = rng.choice([value for value in holder.values() if isinstance(value, dict)])
    key = rng.choice([*holder])
    how = rng.random()
    if how < 0.3:
        inner = msgpack.packb([[2, 3], rng.choice(("float32", "object", "float8", "int8")), bytes(24)])
        holder[key] = msgpack.ExtType(rng.choice((1, 2, 3, 9)), inner)
    elif how < 0.6:
        holder[key] = rng.choice([value for value in _HOSTILE if type(value) in (type(None), bool, float, str, list)])
    elif how < 0.8:
        holder[rng.choice((0, "0", "w", "params", "w/x", "\x1b[2J"))] = holder[key]
    else:  # the same key twice at the top
        (name, value), *_ = tree.items()
        return b"\x82" + 2 * (_packed(name) + _packed(value))
    return _packed(tree)


def _packed(value: Any) -> bytes:
    packed = msgpack.packb(value, unicode_errors="surrogatepass")
    assert packed is not None
    return packed


def edit_png(content: bytes, rng: random.Random) -> bytes:
    """Damages, repeats or removes a chunk of a PNG file, with valid checksums."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    how = rng.random()
    if how < 0.7:
        chunks[number] = kind, mutated(data, rng, None)
    elif how < 0.85:
        bomb = zlib.compress(bytes(1 << 22))
        chunks.insert(1, (rng.choice((b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"eXIf", kind)), b"a\0\0" + bomb))
    else:
        del chunks[number]
    return content[:8] + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )


_PIECES = (
    *(
        "[" * 16_000,
        "{a: " * 9000,
        "- " * 9000,
        "? " * 9000,
        "&a *a",
        "*a",
        "!!python/object/apply:os.system ['true']",
    ),
    *("1:" * 9000 + "1", ".inf", ".nan", "1e999", "0x" + "f" * 9000, '"\\ud800"', "\x1b[2J", "9" * 500, "2001-01-01"),
    *(
        "data: /dev/zero",
        "data: '~nosuchuser/x'",
        "model: 'nowhere:make'",
        "checkpoint: /dev/zero",
        "<<: {a: 1}",
        "null",
    ),
    *("grid: {seed: [1, 2], seed: [3]}", "list: [{}]", "steps: -1", "tv: []", "tv: {}", "!!set {a}", "!!binary 'x'"),
    "grid: {" + ", ".join(f"{name}: {[*range(100)]}" for name in ("seed", "steps", "targets", "tv")) + "}",
)


def edit_yaml(content: bytes, rng: random.Random) -> bytes:
    """Replaces a value or a line, or adds one."""
    lines = content.decode().splitlines()
    at, piece = rng.randrange(len(lines)), rng.choice(_PIECES)
    name, colon, _ = lines[at].partition(":")
    how = rng.random()
    if how < 0.5 and colon:
        lines[at] = f"{name}: {piece}"
    elif how < 0.8:
        lines.insert(at, piece)
    else:
        lines[at] = rng.choice(lines)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


EDITS: Mapping[str, Edit] = {
    ".json": edit_json,
    ".safetensors": edit_safetensors,
    ".npz": edit_npz,
    ".msgpack": edit_msgpack,
    ".png": edit_png,
    ".yaml": edit_yaml,
}
"""Suffix of a file -> the edit that knows its format."""
