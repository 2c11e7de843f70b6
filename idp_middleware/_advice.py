"""What is wrong, and what to do about it: for whoever sets things up, from the exceptions of those who tried.

Knows how names, connections, certificates and clocks fail, and the problems of `errors`. What an error of ours keeps
out of its text is looked up in the exceptions behind it; no address, URL or answer is repeated from there.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from idp_middleware.errors import (
    CheckFailed,
    IdentityAmbiguous,
    IdentityNotLinked,
    IdPError,
    ReconnectRequired,
    TokenError,
    TokenSourceUnavailable,
)


class Advice(NamedTuple):
    """Two sentences without a full stop."""

    wrong: str
    todo: str


_CERTIFICATE: Final = {
    "expired": (10,),
    "early": (9,),
    "name": (62, 64),
    "authority": (18, 19, 20, 21),
}
"""OpenSSL's `X509_V_ERR_…` (x509_vfy.h)."""

_CERTIFICATES: Final = {
    "expired": Advice("its certificate has expired", "renew it there; or set this machine's clock, if that is wrong"),
    "early": Advice("its certificate is not valid yet", "set this machine's clock"),
    "name": Advice(
        "its certificate is for another host name", "write the name that the certificate has, or get one for this name"
    ),
    "authority": Advice(
        "its certificate is from an authority that is not known here",
        "add the authority to this system's list, or set SSL_CERT_FILE to its certificate; or use a public one's",
    ),
}
_NO_NAME: Final = Advice(
    "the host name is not known to DNS", "check its spelling, and that this machine can look names up"
)
_REFUSED: Final = Advice(
    "nothing listens there (connection refused)", "check the host and the port, and that the server is running"
)
_NO_TLS: Final = Advice("no TLS comes about", "check that the port is the one for https, and not for plain http")
_SLOW_CONNECT: Final = Advice(
    "no connection in time", "check the host and the port, and that no firewall drops what goes there"
)
_SLOW: Final = Advice(
    "takes the connection, but does not answer in time", "check that the server is well, or give it more time (timeout)"
)
_CLOSED: Final = Advice(
    "closes the connection without an answer", "check that it speaks HTTP there: http or https, and on which port"
)
_UNREACHED: Final = Advice("cannot be reached", "check the host and the port, and this machine's network")


def network_advice(error: BaseException) -> Advice | None:
    """For an exception that has a failure of the network behind it."""
    behind = list(_behind(error))
    for each in behind:
        if isinstance(each, ssl.SSLCertVerificationError):
            kind = next((kind for kind, codes in _CERTIFICATE.items() if each.verify_code in codes), "authority")
            return _CERTIFICATES[kind]
    for each in behind:
        if isinstance(each, socket.gaierror):
            return _NO_NAME
        if isinstance(each, ssl.SSLError):
            return _NO_TLS
        if isinstance(each, ConnectionRefusedError):
            return _REFUSED
    # The names are httpx's and those of what it is made of.
    names = {type(each).__name__ for each in behind}
    if "ConnectTimeout" in names or any("connecting took too long" in str(each) for each in behind):
        return _SLOW_CONNECT
    if any(isinstance(each, TimeoutError) for each in behind) or "ReadTimeout" in names:
        return _SLOW
    if names & {"RemoteProtocolError", "ReadError", "ConnectionResetError", "BrokenPipeError", "EndOfStream"}:
        return _CLOSED
    if any(isinstance(each, OSError) for each in behind):
        return _UNREACHED
    return None


def advice(error: Exception) -> Advice:
    """For whatever the middleware, a source or an authenticator raised."""
    if isinstance(error, CheckFailed):
        return Advice(str(error), error.todo)
    if (network := network_advice(error)) is not None:
        return network
    wrong = str(error).removesuffix(f"; {todo}") if (todo := getattr(error, "todo", "")) else str(error)
    name = f"{error.name}: " if isinstance(error, IdPError) else ""
    return Advice(f"{name}{wrong}", todo or _todo(error))


def _todo(error: Exception) -> str:
    if isinstance(error, IdentityAmbiguous):
        return (
            f"name one of the accounts: {', '.join(error.accounts)} (--account; callers do with the header IdP-Account)"
        )
    if isinstance(error, IdentityNotLinked):
        what = "again" if isinstance(error, ReconnectRequired) else "first"
        where = f", at {error.connect_url}" if error.connect_url else ""
        return f"the user has to connect an account for {error.connection} {what}{where}"
    if isinstance(error, TokenSourceUnavailable):
        return "try again later; if that does not help, look at the server's own log"
    return _TODO.get(getattr(error, "name", ""), "look at the log of the other side for the same moment")


_TODO: Final = {
    "bad-request": "check the path: it is sent as it stands, and must not lead out of the route",
    "caller-forbidden": "grant the caller what the route asks for, or change the route's scopes, paths or rules",
    "caller-unauthenticated": "send an access token of the issuer, for this audience, that has not expired",
    "interaction-required": "the user has to sign in again at the identity provider",
    "method-not-allowed": "use another method, or add this one to the route's methods",
    "token-source-failed": "check the source's table: its URLs, its client and what that client may do",
    "token-source-timeout": "check that the identity provider is well, or give it more time (timeout)",
    "upstream-timeout": "check that the upstream is well, or give the route more time (timeout)",
    "upstream-unreachable": "check the route's upstream, and that it speaks HTTP/1.1 there",
}


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Raises `CheckFailed` that says where, for what goes wrong on the way to a URL of the configuration.

    What answers there, but not as it should, is told to be the wrong URL.
    """
    try:
        yield
    except TokenError as exc:
        where = urlsplit(url).netloc.rpartition("@")[2]
        wrong, todo = advice(exc)
        wrong = wrong.removeprefix(f"{exc.name}: ")
        if not isinstance(exc, TokenSourceUnavailable) and " without a JSON object" in wrong:
            where, todo = shown(url), "check that URL: what answers there is a web page, or something else"
        raise CheckFailed(f"{where}: {wrong}", todo=todo) from None


def shown(url: str) -> str:
    """A URL as it may be shown: without a password, and without its query, which may hold a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it, what `from None` keeps out of sight included."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
