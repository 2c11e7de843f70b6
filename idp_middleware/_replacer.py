"""Texts replaced in a body as it streams, wherever its chunks happen to end.

Bytes in, bytes out: any cut of a body into chunks gives what the body in one piece would. Knows how to find, never why;
nothing of HTTP, routes or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

# What may go on as a host, a port or a path segment after a URL. Left out is what ends one in JSON, XML and prose,
# though a segment could hold some of that: quotes, brackets, comma, semicolon, ampersand.
_GOES_ON = rb"(?![-\w.~%:@!$*+=\x80-\xff])"


class Needles:
    """What is looked for, and what takes its place."""

    __slots__ = ("starts",)

    starts: Collection[bytes]
    """The texts after which more must be seen before it is known whether they are, or begin, a hit. So must all that
    they start with."""

    def hits(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Start, end and replacement of each hit, in order and apart from each other."""
        raise NotImplementedError

    def replaced(self, data: bytes) -> bytes:
        """`data`, taken as the whole, with every hit replaced."""
        done = 0
        pieces: list[bytes] = []
        for start, end, replacement in self.hits(data):
            pieces += (data[done:start], replacement)
            done = end
        if not pieces:
            return data
        pieces.append(data[done:])
        return b"".join(pieces)


class Replacer:
    """Replaces the hits of `needles` in one body.

    Held back is only what may still become a hit, and so no more than the longest of them: an event of a stream that
    does not end like the beginning of one leaves at once.
    """

    __slots__ = ("_held", "_longest", "_needles", "_starts")

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        # Compared without regard to case, as hosts are; what is held back for nothing is late, and no more.
        self._starts = [start.lower() for start in needles.starts if start]
        self._longest = max(map(len, self._starts), default=0)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What is decided now that `chunk` has arrived; perhaps nothing."""
        data = self._held + chunk
        undecided = self._undecided(data, 0)
        if undecided == len(data):
            self._held = b""
            return self._needles.replaced(data)
        done = 0
        pieces: list[bytes] = []
        for start, end, replacement in self._needles.hits(data):
            if start >= undecided:
                break
            pieces += (data[done:start], replacement)
            done = end
            if end > undecided:
                # What looked like a beginning is part of this hit.
                undecided = self._undecided(data, end)
        self._held = data[undecided:]
        pieces.append(data[done:undecided])
        return b"".join(pieces)

    def end(self) -> bytes:
        """What was held back, now that nothing follows."""
        data, self._held = self._held, b""
        return self._needles.replaced(data)

    def _undecided(self, data: bytes, begin: int) -> int:
        """Where, from `begin` on, the first text begins that may become a hit; the end of `data` if there is none."""
        offset = max(begin, len(data) - self._longest)
        tail = data[offset:].lower()
        first = len(tail)
        for start in self._starts:
            at = tail.find(start[:1], max(0, len(tail) - len(start)), first)
            while at >= 0:
                if start.startswith(tail[at:]):
                    first = at
                    break
                at = tail.find(start[:1], at + 1, first)
        return offset + first


class Texts(Needles):
    """Fixed texts and what stands in for each; of several that begin at one place, the longest counts.

    Not an expression: one of long alternatives takes milliseconds to compile and ten times as long to search, and its
    cache would keep them.
    """

    __slots__ = ("_replacements",)

    def __init__(self, replacements: Mapping[bytes, bytes]) -> None:
        # The longest first: `min` takes the first of those at one place.
        self._replacements = dict(sorted(replacements.items(), key=lambda pair: len(pair[0]), reverse=True))
        self.starts = [text[:-1] for text in self._replacements]

    def hits(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        ahead = {text: at for text in self._replacements if (at := data.find(text)) >= 0}
        while ahead:
            text = min(ahead, key=ahead.__getitem__)
            start = ahead[text]
            end = start + len(text)
            yield start, end, self._replacements[text]
            ahead = {
                text: at for text, was in ahead.items() if (at := was if was >= end else data.find(text, end)) >= 0
            }


class BaseURL:
    """Finds a base URL on whole segments, with its default port spelled out or not, in any case of the host.

    In JSON its slashes may be written `\\/`: then those of the replacement are too.
    """

    __slots__ = ("_expression", "_starts")

    def __init__(self, scheme: str, authority: bytes, default_port: int | None, path: bytes) -> None:
        """`default_port` is None where `authority` has a port of its own; `path` is empty or begins with a slash."""
        ports = [b""] if default_port is None else [b"", b":%d" % default_port]
        plain = [scheme.encode() + b"://" + authority + port + path for port in ports]
        # Whole ones included, since what follows decides whether they are.
        self._starts = [*plain, *(url.replace(b"/", b"\\/") for url in plain)]
        optional = b"" if default_port is None else b"(?::%d)?" % default_port
        self._expression = re.compile(
            rb"%s:(\\?/)\1(?i:%s)%s%s%s"
            % (scheme.encode(), re.escape(authority), optional, re.escape(path).replace(b"/", rb"\1"), _GOES_ON)
        )

    def becoming(self, url: bytes) -> Needles:
        """As needles, with `url` as the replacement."""
        return _URLs(self._starts, self._expression, {b"/": url, b"\\/": url.replace(b"/", b"\\/")})


class _URLs(Needles):
    __slots__ = ("_expression", "_replacements")

    def __init__(
        self, starts: Collection[bytes], expression: re.Pattern[bytes], replacements: Mapping[bytes, bytes]
    ) -> None:
        self.starts = starts
        self._expression = expression
        self._replacements = replacements

    def hits(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        for match in self._expression.finditer(data):
            yield match.start(), match.end(), self._replacements[match[1]]

    def replaced(self, data: bytes) -> bytes:
        # What lies between the hits alternates with the group, the kind of slash; three times as fast as one by one,
        # for answers that consist of little but URLs.
        pieces = self._expression.split(data)
        if len(pieces) == 1:
            return data
        pieces[1::2] = map(self._replacements.__getitem__, pieces[1::2])
        return b"".join(pieces)
