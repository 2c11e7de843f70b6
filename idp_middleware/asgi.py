"""The gateway for an ASGI server of your choice: `IDP_CONFIG=idp.toml uvicorn idp_middleware.asgi:app`.

Importing this module reads the file that `IDP_CONFIG` names (default `idp.toml` in the working directory) and ends the
process where it cannot be used: one line on stderr, status 2. On uvicorn, `--http idp_middleware.uvicorn:OneWrite`
saves a tenth of the CPU.
"""

import multiprocessing
import os
import sys

from idp_middleware._middleware import IdPMiddleware
from idp_middleware._process import settle
from idp_middleware.config import load_config
from idp_middleware.errors import ConfigurationError
from idp_middleware.observers import log_to_stdout

__all__ = ["app"]

_STATUS = 2
_STATUS_OF_A_WORKER = 3
"""What uvicorn's and gunicorn's workers end with where starting them again would not help."""


def _gateway() -> IdPMiddleware:
    try:
        return IdPMiddleware(**load_config(os.environ.get("IDP_CONFIG") or "idp.toml"))
    except ConfigurationError as exc:
        # Not raised on: a server would show it as a crash, with a traceback in which the line is hard to find.
        print(f"idp-middleware: {exc}", file=sys.stderr)
        sys.exit(_STATUS if multiprocessing.parent_process() is None else _STATUS_OF_A_WORKER)


app: IdPMiddleware = _gateway()
settle()
log_to_stdout()
