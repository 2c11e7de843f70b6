"""The command line: `idp-middleware init | check | call | serve | revoke | explain | demo`.

Knows arguments, exit statuses and how a failure is said; what a command does is in the module it calls, imported only
then, so that an extra is asked for only by the command that needs it.

    0  done      1  something failed      2  the arguments or the configuration are wrong      130  interrupted
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from typing import Any

from idp_middleware._version import __version__
from idp_middleware.errors import ConfigurationError

_GRACE = 30
"""Seconds; an event stream would never end by itself."""


class _Failure(Exception):
    """What ends a command with status 1 and this one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help(sys.stderr)
        return 2
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except ConfigurationError as exc:
        return _say(str(exc), 2)
    except _Failure as exc:
        return _say(str(exc), 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # Who read our output has left, as `head` does; nor may the interpreter try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="idp-middleware", description="Call providers' APIs as the user, without handing out the provider token."
    )
    parser.add_argument("--version", action="version", version=f"idp-middleware {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    init = commands.add_parser("init", help="write a commented configuration file")
    init.add_argument("--source", help="where the tokens come from, such as auth0-management")
    init.add_argument("--provider", action="append", default=[], help="an API to call, such as github; several times")
    init.add_argument("--output", default="idp.toml", help="the file (default: %(default)s)")
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    init.set_defaults(run=_init)

    serve = commands.add_parser("serve", help="run the middleware as a gateway of its own")
    serve.add_argument("config", help="the configuration file, such as idp.toml")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=_port, default=8000, help="port to listen on (default: %(default)s)")
    serve.add_argument("--workers", type=_count, default=1, help="number of processes (default: %(default)s)")
    serve.add_argument(
        "--grace",
        type=_seconds,
        default=_GRACE,
        metavar="SECONDS",
        help="time for requests under way to end once the server is told to (default: %(default)s)",
    )
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="validate a file and reach everything it names")
    check.add_argument("config", help="the configuration file, such as idp.toml")
    check.add_argument("--token-file", help="a caller's access token, to see whether it is let in; - is standard input")
    check.add_argument("--json", action="store_true", help="for machines")
    check.set_defaults(run=_check)

    call = commands.add_parser("call", help="make one call as a user, and tell each step")
    call.add_argument("route", help="a route of the file, such as github")
    call.add_argument("path", help="a path at its API, such as /user")
    whom = call.add_mutually_exclusive_group(required=True)
    whom.add_argument("--as", dest="subject", help="the user, by the subject that the source knows")
    whom.add_argument("--token-file", help="the user, by an access token in a file; - is standard input")
    call.add_argument("--config", default="idp.toml", help="the configuration file (default: %(default)s)")
    call.add_argument("--method", default="GET", help="the request's method (default: %(default)s)")
    call.add_argument("--issuer", help="who vouches for the subject (default: the authenticator's issuer)")
    call.add_argument("--account", help="which account of the user, where several are linked")
    call.set_defaults(run=_call)

    revoke = commands.add_parser("revoke", help="take a user's token back, at the provider and from processes that run")
    revoke.add_argument("config", help="the configuration file, such as idp.toml")
    revoke.add_argument("route", help="a route of the file, such as github")
    revoke.add_argument("subject", help="the user, by the subject that the source knows")
    revoke.add_argument("--issuer", help="who vouches for the subject (default: the authenticator's issuer)")
    revoke.add_argument("--account", help="which account of the user, where several are linked")
    revoke.set_defaults(run=_revoke)

    explain = commands.add_parser("explain", help="say more on a problem, or on a table of the configuration file")
    explain.add_argument(
        "topic", nargs="?", help="such as identity-not-linked, an answer's whole type, or routes (default: list them)"
    )
    explain.set_defaults(run=_explain)

    demo = commands.add_parser("demo", help="see it work on this machine, without an account anywhere")
    demo.add_argument("--once", action="store_true", help="end after the calls instead of serving on")
    demo.add_argument("--port", type=_port, default=0, help="port of the sample app (default: a free one)")
    demo.set_defaults(run=_demo)
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (1 or more)")
    return int(text)


def _serve(arguments: argparse.Namespace) -> int:
    uvicorn = _extra("uvicorn", "server")
    from idp_middleware._middleware import IdPMiddleware
    from idp_middleware._process import settle
    from idp_middleware.config import load_config
    from idp_middleware.observers import log_to_stdout

    # Also where workers will read it again: here a mistake is one line, not one per worker.
    options = load_config(arguments.config)
    app: Any = IdPMiddleware(**options)
    log_to_stdout()
    _check_listening(arguments.host, arguments.port)
    if arguments.workers > 1:
        # Workers are new processes, which can be told what to import but not be handed an object.
        os.environ["IDP_CONFIG"] = arguments.config
        app = "idp_middleware.asgi:app"
    else:
        settle()
    together: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if arguments.workers > 1 and options["metrics"] is not None:
        from idp_middleware.prometheus import shared_by_workers

        together = shared_by_workers()
    # Ctrl-C is how a server ends; versions of uvicorn differ in whether they let it through.
    with together, contextlib.suppress(KeyboardInterrupt):
        uvicorn.run(
            app,
            host=arguments.host,
            port=arguments.port,
            workers=arguments.workers,
            http="idp_middleware.uvicorn:OneWrite",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=arguments.grace,
        )
    return 0


def _init(arguments: argparse.Namespace) -> int:
    from idp_middleware import _init

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    draft = _init.draft(*_init.chosen(arguments.source, arguments.provider, ask=input if terminal else None))
    try:
        with open(arguments.output, "w" if arguments.force else "x", encoding="utf-8") as file:
            file.write(draft.text)
    except FileExistsError:
        raise _Failure(f"{arguments.output} is there already; --force writes over it, --output names another") from None
    except OSError as exc:
        raise _Failure(f"cannot write {arguments.output}: {exc.strerror}") from None
    print(_init.next_steps(draft, arguments.output))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from idp_middleware import _report
    from idp_middleware._check import check
    from idp_middleware._given_caller import read_token
    from idp_middleware.config import read_config

    try:
        token = read_token(arguments.token_file) if arguments.token_file else None
        findings = asyncio.run(check(read_config(arguments.config), token=token))
    except ConfigurationError as exc:
        if not arguments.json:
            raise
        print(_report.as_json([_report.of_file(arguments.config, exc)]))
        return 2
    print(
        _report.as_json(findings) if arguments.json else _report.as_text(findings, colour=_report.in_colour(sys.stdout))
    )
    return int(not all(finding.ok for finding in findings))


def _call(arguments: argparse.Namespace) -> int:
    from idp_middleware import _call
    from idp_middleware._given_caller import read_token
    from idp_middleware.config import read_config

    wanted = _call.Call(
        route=arguments.route,
        path=arguments.path,
        method=arguments.method,
        subject=arguments.subject,
        issuer=arguments.issuer,
        account=arguments.account,
        token=read_token(arguments.token_file) if arguments.token_file else None,
    )

    def tell(step: str, text: str) -> None:
        # Beside the answer, not in it.
        # What steers a terminal (an API's words are among it) is not shown as it is.
        text = "".join(each if each.isprintable() else "?" for each in text)
        print(f"{step:<10}{text}", file=sys.stderr, flush=True)

    body = asyncio.run(_call.call(read_config(arguments.config), wanted, tell))
    if body is None:
        return 1
    _call.show(body)
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from idp_middleware import _revoke
    from idp_middleware.config import read_config
    from idp_middleware.errors import CheckFailed

    config = read_config(arguments.config)
    whose = {name: getattr(arguments, name) for name in ("route", "subject", "issuer", "account")}
    try:
        print(asyncio.run(_revoke.revoke(config, **whose)))
    except CheckFailed as exc:
        raise _Failure(f"{exc}; {exc.todo}") from None
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from idp_middleware import _explain

    print(_explain.explain(arguments.topic, width=min(shutil.get_terminal_size().columns, 100)))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    for module in ("uvicorn", "fastapi"):
        _extra(module, "demo")
    if arguments.port:
        _check_listening("127.0.0.1", arguments.port)
    from idp_middleware import _demo

    return _demo.run(port=arguments.port, once=arguments.once)


def _extra(module: str, extra: str) -> Any:
    """A module that only an extra brings."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise _Failure(f"this needs {module}: pip install 'idp-middleware[{extra}]'") from None


def _check_listening(host: str, port: int) -> None:
    """Raises `_Failure` where the server would not get this address.

    uvicorn finds out only after it has started the app, and tells it in three ways that depend on its version.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: connections of the one before that still linger are no obstacle.
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as exc:
        # gaierror has an errno of its own kind, but the text is as clear.
        raise _Failure(f"cannot listen on {host}:{port}: {(exc.strerror or str(exc)).lower()}") from None


def _say(message: str, status: int) -> int:
    print(f"idp-middleware: {message}", file=sys.stderr)
    return status
