"""Everything that leaves the process, or may be made to, in one place each.

Knows how it is collected, and nothing of what may be in it.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

FILES = "files and caches"
METRICS = "metrics"
TRACES = "traces"
RECORDS = "what observers are told"
SINKS = (
    "the caller",
    "the upstream",
    "the identity provider",
    "the log",
    "the output",
    "error reports",
    "the app behind",
    FILES,
    METRICS,
    TRACES,
    RECORDS,
)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


@dataclass
class Sinks:
    """Sink → what was put in, with the names of those canaries that are where they belong there."""

    put_in: dict[str, list[tuple[bytes, frozenset[str]]]] = field(default_factory=lambda: {name: [] for name in SINKS})

    def put(self, sink: str, data: str | bytes, *, belongs: frozenset[str] = frozenset()) -> None:
        self.put_in[sink].append((data.encode("utf-8", "replace") if isinstance(data, str) else data, belongs))

    def everything(self, sink: str) -> Iterator[tuple[bytes, frozenset[str]]]:
        """What was put in, all of a kind together: a secret may be split between two pieces."""
        together: dict[frozenset[str], list[bytes]] = {}
        for data, belongs in self.put_in[sink]:
            together.setdefault(belongs, []).append(data)
        for belongs, pieces in together.items():
            yield b"\n".join(pieces), belongs


class LogSink(logging.Handler):
    """Every record there is, as it would be written and as it would be shipped.

    Log shippers and error reporters take a record apart: its arguments one by one, and of its exception the local
    variables too. A stand-in's thread may say what it likes.
    """

    def __init__(self, sinks: Sinks, reports_belong: frozenset[str], *, not_of: str) -> None:
        super().__init__(level=1)
        self._not_of = not_of
        self._sinks = sinks
        self._reports_belong = reports_belong
        self.records: list[logging.LogRecord] = []
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName == self._not_of:
            return
        self.records.append(record)
        self._sinks.put("the log", self.format(record))
        self._sinks.put("the log", f"{record.args!r} {getattr(record, 'idp', '')!r}")
        if record.exc_info and record.exc_info[1] is not None:
            self._sinks.put("error reports", report(record.exc_info[1]), belongs=self._reports_belong)

    def close(self) -> None:
        # What was cut up by line would have a prefix on each.
        self._sinks.put("the log", "".join(record.getMessage() for record in self.records))
        super().close()


TALKATIVE = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "httpx", "httpcore", "asyncio", "hpack")


@contextmanager
def logging_everything(sinks: Sinks, reports_belong: frozenset[str], *, not_of: str, level: int) -> Iterator[LogSink]:
    """All loggers at this level, while the block runs; uvicorn's "trace" is below DEBUG."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    handler = LogSink(sinks, reports_belong, not_of=not_of)
    logging.getLogger().addHandler(handler)
    for logger in loggers:
        logger.setLevel(level)
        logger.propagate = True
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.propagate = propagate


def report(error: BaseException) -> str:
    """What an error reporter makes of an exception: the traceback with all local variables, and of the exceptions
    behind it, also those that a traceback leaves out, what they say and hold.
    """
    lines: list[str] = []
    with suppress(Exception):
        # Python 3.11 gives up at an object whose constructor was not done.
        lines += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    lines += _variables(error)
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        lines.append(f"{each!r} {each} {each.args!r} {vars(each)!r} {getattr(each, '__notes__', '')}")
        with suppress(Exception):
            lines.append(pickle.dumps(each).decode("latin-1"))
        pending += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return "\n".join(lines)


def _variables(error: BaseException) -> Iterator[str]:
    """As reporters take them down that know such objects; along with what is reported beside an exception."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        for frame, _ in traceback.walk_tb(each.__traceback__):
            for name, value in frame.f_locals.items():
                with suppress(Exception):
                    yield f"{name} = {value!r}"
        each = each.__cause__ if each.__suppress_context__ else each.__context__


def files_under(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, with its name in front: that too is something left behind."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.name, path.read_bytes()


class Tap:
    """An upstream that keeps every byte that reaches it, also of requests that never come to their end.

    Answers each request with `answer`, bytes or what that makes of the request's head; None hangs up instead. A
    connection is kept open unless an answer says `Connection: close`.
    """

    def __init__(self) -> None:
        self.answer: Any = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.arrived: list[bytearray] = []
        self.closing = threading.Event()

    @property
    def heads(self) -> list[bytes]:
        """Those of all requests, whole ones."""
        return [head for arrived in self.arrived for head in heads(bytes(arrived))]

    def serve(self, connection: socket.socket) -> None:
        arrived = bytearray()
        self.arrived.append(arrived)
        with io.BufferedReader(_Tee(connection, arrived)) as stream, suppress(EOFError, OSError, ValueError):
            while (head := _head(stream)) is not None:
                answer = self.answer if isinstance(self.answer, bytes) else self.answer(head)
                if callable(answer):
                    answer(connection, stream)
                    break
                _skip_body(stream, head)
                connection.sendall(answer)
                if b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower() or b"\r\n\r\n" not in answer:
                    break


class _Tee(io.RawIOBase):
    def __init__(self, connection: socket.socket, arrived: bytearray) -> None:
        self._connection = connection
        self._arrived = arrived

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._connection.recv_into(buffer)
        self._arrived += buffer[:size]
        return size


_HEAD = re.compile(rb"[A-Z]+ \S+ HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*\r\n")


def heads(arrived: bytes) -> list[bytes]:
    """The heads of the requests in what arrived on a connection."""
    return _HEAD.findall(arrived)


def fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """Name, in lower case, and value."""
    pairs = (line.partition(b":")[::2] for line in head.split(b"\r\n")[1:-2])
    return [(name.strip().lower(), value.strip()) for name, value in pairs]


def _head(stream: io.BufferedReader) -> bytes | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    return head


def _skip_body(stream: io.BufferedReader, head: bytes) -> None:
    named: Mapping[bytes, bytes] = dict(fields(head))
    stream.read(int(named.get(b"content-length", b"0")))
    if b"transfer-encoding" in named:
        while stream.read(int(stream.readline(), 16) + 2) != b"\r\n":
            pass
