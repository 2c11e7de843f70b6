"""Secrets that are recognised wherever they turn up: whole or a part, in whatever spelling, in one piece or in several.

A canary is looked for by windows of a few characters, so a log that cuts a token short shows as well as one that writes
it out. Knows spellings; nothing of who may hold which secret.
"""

from __future__ import annotations

import base64
import html
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import quote, unquote

WINDOW, STEP = 12, 6
"""Characters: any part of `WINDOW + STEP - 1` is recognised."""

GRAM = WINDOW // 2
"""Characters: a text that is cut into pieces of so many has a whole one inside of whatever is `WINDOW` long."""

ANY = "+/%~&=.\"'\\<"
"""Characters that some spelling writes in another way. A header field may hold them all …"""
IN_COOKIE = "+/%~&=.!"
IN_B64TOKEN = "+/~.-_"

PLAIN, HEX, BASE64, BASE64URL, BASIC = (
    "plain",
    "hexadecimal",
    "base64",
    "base64url",
    "base64 of what is percent-encoded",
)


@dataclass(frozen=True)
class Canary:
    """A secret, and what it is called; with the slice of it that only who has the secret can know."""

    name: str
    value: str = field(repr=False)
    telling: str = field(repr=False)

    @cached_property
    def needles(self) -> Mapping[str, tuple[str, ...]]:
        """Alphabet → what to look for."""
        text = self.telling
        starts = range(0, max(1, len(text) - WINDOW + 1), STEP)
        windows = [text[start : start + WINDOW] for start in starts]
        found: dict[str, list[str]] = {PLAIN: windows, HEX: [window.encode().hex() for window in windows]}
        for window in windows:
            for shift in range(3):
                found.setdefault(f"{BASE64} at {shift}", []).append(spelled := _base64(window, shift))
                found.setdefault(f"{BASE64URL} at {shift}", []).append(spelled.translate(_FOR_URLS))
                # Basic credentials are form-encoded before (RFC 6749 section 2.3.1).
                found.setdefault(f"{BASIC} at {shift}", []).append(_base64(quote(window, safe=""), shift))
        return MappingProxyType({alphabet: tuple(needles) for alphabet, needles in found.items()})


_FOR_URLS = str.maketrans("+/", "-_")


def _base64(text: str, shift: int) -> str:
    """What is certain of the base64 of something that has `text` in it, from the first, second or third of 3 bytes."""
    spelled = base64.b64encode(bytes(shift) + text.encode()).decode().rstrip("=")
    # The first characters hold bits of what came before, the last perhaps some of what comes after.
    return spelled[-(-shift * 8 // 6) : -1]


def _json_unescaped(text: str) -> str:
    """As JSON, Python and most logs escape."""
    text = re.sub(r"\\+(?:u00|x)([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), text)
    return re.sub(r"\\([\"'\\/])", r"\1", text)


# What stands between the pieces of something that was cut: line breaks and indentation, also where they are escaped;
# the ends of the strings in a list of chunks; the sizes that chunks are announced with.
_BETWEEN = re.compile(r"""(?:\r\n[0-9A-Fa-f]{1,8}\r\n|\\[rnt]|["']\s*,\s*b?["']|\s)+""")


def _joined(text: str) -> str:
    return _BETWEEN.sub("", text)


AS_IT_IS = "as it is"
_UNDONE: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        AS_IT_IS: lambda text: text,
        "percent-encoded": unquote,
        "JSON-escaped": _json_unescaped,
        "HTML-escaped": html.unescape,
    }
)
"""Escape → how to undo it: what was escaped can then be looked for in any alphabet, also where only some of it was."""

_ALPHABETS = (HEX, *(f"{name} at {shift}" for name in (BASE64, BASE64URL, BASIC) for shift in range(3)))
ENCODINGS = tuple(
    f"{encoding}, {pieces}" for encoding in (*_UNDONE, *_ALPHABETS) for pieces in ("in one piece", "split")
)


Index: TypeAlias = dict[str, tuple[tuple[str, str, str], ...]]
"""Each piece of `GRAM` characters that a needle may show in → the needle, its canary and its alphabet."""


@dataclass(frozen=True, order=True)
class Find:
    """A canary where it was found."""

    canary: str
    encoding: str


class Canaries:
    """The secrets of one world."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._all: dict[str, Canary] = {}
        self._index: Index = {}
        self._indexed = 0

    def __getitem__(self, name: str) -> str:
        return self._all[name].value

    def copy(self) -> Canaries:
        """The same secrets, for a world of its own: to spell them out takes longer than to look for them."""
        copied = Canaries()
        copied._all = dict(self._all)
        copied._index, copied._indexed = dict(self._needles()), self._indexed
        return copied

    def of(self, user: str, what: str) -> str:
        """A secret of a user's."""
        return self[f"{user}'s {what}"]

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def names(self) -> tuple[str, ...]:
        return tuple(self._all)

    def make(self, name: str, *, special: str = ANY, size: int = 48, prefix: str = "") -> str:
        """A new secret with characters that spellings differ in; known under `name`."""
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz23456789"
        text = "".join(
            special[(at // 5) % len(special)] if special and at % 5 == 4 else self._random.choice(letters)
            for at in range(size)
        )
        self.add(name, prefix + text, telling=text)
        return prefix + text

    def add(self, name: str, value: str, *, telling: str | None = None) -> None:
        """A secret that comes from elsewhere; `telling` is the part that nobody knows who doesn't know it all."""
        if name in self._all:
            # What is there is only added to.
            self._index, self._indexed = {}, 0
        self._all[name] = Canary(name, value, telling or value)

    def find(self, text: str | bytes) -> set[Find]:
        """Every canary in a text, in whichever spelling."""
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        needles = self._needles()
        finds: dict[tuple[str, str], Find] = {}
        # Most texts have nothing to undo or to join, and what was looked through shows nothing new.
        seen: set[str] = set()
        for pieces, given in (("in one piece", text), ("split", _joined(text))):
            for escape, undone in _UNDONE.items():
                haystack = undone(given)
                if escape != AS_IT_IS and haystack == given:
                    continue
                if pieces == "split":
                    haystack = _joined(haystack)
                if haystack in seen:
                    continue
                seen.add(haystack)
                for canary, alphabet in _within(haystack, needles):
                    encoding = escape if alphabet == PLAIN else alphabet
                    finds.setdefault((canary, alphabet), Find(canary, f"{encoding}, {pieces}"))
        return set(finds.values())

    def _needles(self) -> Index:
        for canary in islice(self._all.values(), self._indexed, None):
            for alphabet, needles in canary.needles.items():
                for needle in needles:
                    for at in range(GRAM):
                        gram = needle[at : at + GRAM]
                        self._index[gram] = (*self._index.get(gram, ()), (needle, canary.name, alphabet))
        self._indexed = len(self._all)
        return self._index


_HEX = re.compile(r"[0-9A-Fa-f]{24,}")


def _within(haystack: str, needles: Index) -> Iterator[tuple[str, str]]:
    """Canary and alphabet of each needle that is there. One look at each `GRAM`, however many needles there are."""
    texts = [haystack, *(run.lower() for run in _HEX.findall(haystack))]
    for text in texts:
        for gram in {text[at : at + GRAM] for at in range(0, len(text), GRAM)} & needles.keys():
            for needle, canary, alphabet in needles[gram]:
                if needle in text:
                    yield canary, alphabet
