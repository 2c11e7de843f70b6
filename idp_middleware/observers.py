"""Seeing the middleware at work: who is told of each request, and of what becomes of users' tokens.

    IdPMiddleware(…, observers=[AccessLog(), AuditLog()])

An observer is any callable that takes a record: `RequestRecord`, `TokenRecord`, `CacheRecord`, `CircuitRecord`. Here
are the two that write logs; `idp_middleware.prometheus` and `idp_middleware.opentelemetry` have the others. Knows
records and stdlib logging; nothing of how either comes about.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from idp_middleware._observation import (
    CacheRecord,
    CircuitRecord,
    Observer,
    Record,
    RequestRecord,
    TokenRecord,
    Trace,
    digest,
)

__all__ = [
    "AccessLog",
    "AuditLog",
    "CacheRecord",
    "CircuitRecord",
    "Observer",
    "Record",
    "RequestRecord",
    "TokenRecord",
    "Trace",
    "digest",
]


class AccessLog:
    """One line of JSON for each request, by the logger `idp_middleware.access` at INFO.

    The same as a dict is the log record's attribute `idp`, for handlers that format themselves. Times are in
    milliseconds. Neither path nor query: both hold what is nobody's business.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("idp_middleware.access")

    def __call__(self, record: Record, /) -> None:
        if isinstance(record, RequestRecord) and self._logger.isEnabledFor(logging.INFO):
            _write(
                self._logger,
                logging.INFO,
                {
                    "route": record.route,
                    "caller": record.caller,
                    "method": record.method,
                    "status": record.status,
                    "problem": record.problem,
                    "ended": record.ended,
                    "websocket": record.upgraded,
                    "token": record.token,
                    "bytes_in": record.bytes_in,
                    "bytes_out": record.bytes_out,
                    "ms_authenticate": _milliseconds(record.authenticate),
                    "ms_token": _milliseconds(record.token_wait),
                    "ms_upstream": _milliseconds(record.upstream),
                    "ms_total": _milliseconds(record.total),
                },
            )


class AuditLog:
    """One line of JSON for each event in the life of a user's token, by the logger `idp_middleware.audit`.

    At INFO, and at WARNING what did not go well: `refused`, `failed`. The same as a dict is the log record's attribute
    `idp`.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("idp_middleware.audit")

    def __call__(self, record: Record, /) -> None:
        if isinstance(record, TokenRecord):
            level = logging.WARNING if record.event in ("refused", "failed") else logging.INFO
            if self._logger.isEnabledFor(level):
                fields = asdict(record)
                _write(self._logger, level, fields | {"seconds": round(record.seconds, 6)})


def log_to_stdout() -> None:
    """Where nobody has said where the two logs go, have them written to standard output: for a process of our own."""
    for name in ("idp_middleware.access", "idp_middleware.audit"):
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            handler = logging.StreamHandler(sys.stdout)
            handler.setFormatter(logging.Formatter("%(message)s"))
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _write(logger: logging.Logger, level: int, fields: dict[str, Any]) -> None:
    told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
    logger.log(level, "%s", _Line(told), extra={"idp": told})


class _Line:
    """Spelled only where somebody writes it."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return json.dumps(self._fields)

    __repr__ = __str__
