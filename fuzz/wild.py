"""Values that break programs, and mutations of bytes and of JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

INTS = (0, 1, -1, 2, 3, 7, -7, 127, 255, 256, 65535, 2**20, 2**24, 2**31 - 1, 2**31, -(2**31),
        2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))  # fmt: skip
FLOATS = (0.0, -0.0, 1e-45, -1.0, 3e38, float("inf"), float("-inf"), float("nan"))
NAMES = ("", "x", "w", "b", "logits", "..", "../secret", "/etc/hostname", "a/b", "gdu_theta_0",
         "w\n - error: forged", "\x1b[31mred\x1b[0m", "\x00", "[/]", "[bold]w[/bold]", "{0}",
         "%s%n", "'''\n__import__('os').system('touch canary')\n'''", "\"", "\\", "true", "1",
         "n" * 100_000, "ю‮", "\ud7ff\ufffe", "gdu.version", "../canary", "C:\\canary",
         "\x1b]0;title\x07", "\x9b2J",
         "w\rerror: forged", "a\u2028b", "w\u202eb", "con", "w@one.1", "w@one.99", "w@.", "@",
         "out/o.onnx", "a\x00/../../canary", "~", "%(x)s", "w" + "/.." * 99)  # fmt: skip
Mutator = Callable[[random.Random, Path], None]


def integer(rng: random.Random, old: int = 0) -> int:
    """A wild integer, or one beside the old."""
    return rng.choice((rng.choice(INTS), old + rng.choice((-1, 1)), rng.randint(-9, 9), old * 2))


def text(rng: random.Random, known: tuple[str, ...] = ()) -> str:
    """A wild name, or one that is known in the file."""
    return rng.choice(known) if known and rng.random() < 0.5 else rng.choice(NAMES)


def bytes_of(rng: random.Random, old: bytes) -> bytes:
    """The bytes, spoiled in one of seven ways."""
    size = len(old)
    at, span = rng.randrange(size + 1), rng.choice((1, 2, 4, 8, 64))
    noise = rng.choice((rng.randbytes(span), b"\xff" * span, b"\x00" * span, b"\x80" * span))
    other = rng.randrange(size + 1)
    return rng.choice((
        lambda: flipped(rng, old),
        lambda: old[:at],
        lambda: old[:at] + noise + old[at:],
        lambda: old[:at] + noise + old[at + span :],
        lambda: old[:at] + old[at + span :],
        lambda: old[:at] + old[other : other + span] + old[at:],
        lambda: old + noise,
    ))()  # fmt: skip


def flipped(rng: random.Random, old: bytes) -> bytes:
    """One to eight bits the other way."""
    new = bytearray(old)
    for _ in range(rng.randint(1, 8) if old else 0):
        new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    return bytes(new)


def disguised(rng: random.Random, path: Path) -> None:
    """The bytes of another file beside it, of another format."""
    others = sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
    if others:
        path.write_bytes(rng.choice(others).read_bytes())


def raw(rng: random.Random, path: Path) -> None:
    """Bytes flipped, cut, inserted, overwritten, moved."""
    path.write_bytes(bytes_of(rng, path.read_bytes()))


def json_of(rng: random.Random, value: Any) -> Any:
    """The JSON value with one place of it replaced, removed or doubled."""
    places = list(walk(value))
    if not places:
        return wild_json(rng)
    holder, key = rng.choice(places)
    old = holder[key]
    if rng.random() < 0.2 and isinstance(holder, list):
        holder.insert(key, old)
    elif rng.random() < 0.2:
        del holder[key]
    elif rng.random() < 0.2 and isinstance(holder, dict):
        holder[text(rng, tuple(holder))] = holder.pop(key)
    else:
        holder[key] = integer(rng, old) if type(old) is int else wild_json(rng)
    return value


def walk(value: Any) -> Any:
    """Every (container, key) inside a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from walk(value[key])


def wild_json(rng: random.Random) -> Any:
    """A value of any type."""
    return rng.choice((None, True, integer(rng), rng.choice(FLOATS), text(rng), [], {}, [[]],
                       [integer(rng)], {text(rng): integer(rng)}))  # fmt: skip


def json_text(rng: random.Random, old: str) -> str:
    """JSON text, changed by its structure, or a bomb."""
    bombs = ("[" * 100_000, '{"a":' * 20_000, "9" * 100_000, "1e999999", '"\\ud800"', "NaN", "",
             "[" + "0," * 100_000 + "0]")  # fmt: skip
    try:
        value = json.loads(old)
    except ValueError:
        return rng.choice((*bombs, text(rng), str(integer(rng))))
    return rng.choice(bombs) if rng.random() < 0.15 else json.dumps(json_of(rng, value))
