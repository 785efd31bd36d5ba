"""Damage to a file's bytes, as disks, editors, other programs and attackers do it: a function of the random state."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**18, -(10**18), 2**64, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), "",
    "0", "nan", "1e-4", "auto", "\x00", "../../etc/passwd", "a" * 5000, "\ud800".encode("utf-8", "replace").decode(),
    "값", [], [[]], [None], [0, "a"], {}, {"": None}, {"a": {"b": []}}, [1] * 300,
)  # fmt: skip
"""Values of other types, sizes and signs than a reader expects."""
NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
NUMBERS = (
    b"0", b"-1", b"1e308", b"9" * 400, b"nan", b"NaN", b"-inf", b"Infinity", b"", b"null", b"1_0", b"0.0.1", b"{",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-16-le", "utf-8-sig", "cp949", "latin-1", "utf-32")


def damaged(data: bytes, random: Random) -> bytes:
    """One to three kinds of damage, one after the other. Most keep the file's format, so that readers get past it."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(KINDS)(data, random)
    return data


def flipped(data: bytes, random: Random) -> bytes:
    """Bits are flipped."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if found else 0):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def cut(data: bytes, random: Random) -> bytes:
    """The end, the beginning, a middle or everything is gone."""
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return random.choice((data[:a], data[a:], data[:a] + data[b:], b""))


def spliced(data: bytes, random: Random) -> bytes:
    """A part is there twice, or random bytes stand in it."""
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    new = random.choice((data[a:b][:4096], random.randbytes(random.randrange(1, 40)), b"\x00" * 16, b"\n", b'"', b"{"))
    return data[:a] + new + data[a:]


def lines(data: bytes, random: Random) -> bytes:
    """Lines are dropped, doubled, swapped or cut."""
    found = data.split(b"\n")
    for _ in range(random.choice((1, 1, 3))):
        a, b = random.randrange(len(found)), random.randrange(len(found))
        what = random.randrange(4)
        if what == 0 and len(found) > 1:
            del found[a]
        elif what == 1:
            found.insert(b, found[a])
        elif what == 2:
            found[a], found[b] = found[b], found[a]
        else:
            found[a] = found[a][: random.randrange(len(found[a]) + 1)]
    return b"\n".join(found)


def renumbered(data: bytes, random: Random) -> bytes:
    """Some numbers become others: zeros, huge ones, nothing."""
    places = [match.span() for match in NUMBER.finditer(data[:200_000])]
    for a, b in sorted(random.sample(places, min(len(places), random.choice((1, 1, 3)))), reverse=True):
        data = data[:a] + random.choice(NUMBERS) + data[b:]
    return data


def recoded(data: bytes, random: Random) -> bytes:
    """The text is in another encoding, or has other line ends."""
    if random.random() < 0.3:
        return data.replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n")))
    return data.decode("utf-8", "replace").encode(random.choice(ENCODINGS), "replace")


def restructured(data: bytes, random: Random) -> bytes:
    """A value of the JSON, JSON line, YAML or safetensors header becomes another, goes, or is joined by a stranger."""
    if (header := _header(data)) is not None:
        end = 8 + int.from_bytes(data[:8], "little")
        new = json.dumps(changed(header, random)).encode()
        return len(new).to_bytes(8, "little") + new + data[end:]
    try:
        return json.dumps(changed(json.loads(data), random), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        pass
    found = data.split(b"\n")
    place = random.randrange(len(found))
    try:
        line = json.dumps(changed(json.loads(found[place]), random), ensure_ascii=False)
        found[place] = line.encode("utf-8", "replace")
        return b"\n".join(found)
    except (ValueError, RecursionError):
        pass
    try:
        values = yaml.safe_load(data)
        return yaml.safe_dump(changed(values, random), allow_unicode=True).encode("utf-8", "replace")
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError):
        return renumbered(data, random)


def changed(value: Any, random: Random) -> Any:
    """The value with one thing in it changed, anywhere."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key, new = random.choice(list(value)), dict(value)
        what = random.randrange(10)
        if what == 0:
            del new[key]
        elif what == 1:
            new[random.choice(("extra", "", "가", "__class__", "schema_version"))] = odd(random)
        elif what == 2:
            new[str(key) + random.choice(("_", "s", "\x00"))] = new.pop(key)
        elif what == 3:
            new[key] = odd(random)
        else:
            new[key] = changed(value[key], random)
        return new
    if isinstance(value, list) and value and random.random() < 0.85:
        place, new = random.randrange(len(value)), list(value)
        what = random.randrange(6)
        if what == 0:
            del new[place]
        elif what == 1:
            new.insert(place, odd(random))
        else:
            new[place] = changed(value[place], random)
        return new
    return odd(random)


def odd(random: Random) -> Any:
    """A value that nobody expects there; now and then one that is nested deep."""
    if random.random() < 0.02:
        value: Any = 0
        for _ in range(random.choice((20, 200, 900))):
            value = [value]
        return value
    return random.choice(ODD)


def _header(data: bytes) -> Any:
    length = int.from_bytes(data[:8], "little")
    if not 1 < length < min(len(data), 1 << 20) or data[8:9] != b"{":
        return None
    try:
        return json.loads(data[8 : 8 + length])
    except ValueError:
        return None


KINDS: tuple[Callable[[bytes, Random], bytes], ...] = (
    flipped, cut, spliced, lines, renumbered, recoded, restructured, restructured, restructured,
)  # fmt: skip
