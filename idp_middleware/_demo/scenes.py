"""The demo's calls, and what has to be true of each. Sees HTTP and what the stand-ins recorded, not the middleware."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from idp_middleware._demo.paper import Paper
from idp_middleware._demo.stand_ins import masked
from idp_middleware.testing import Auth0, ProviderAPI, RecordedRequest

Check = tuple[str, bool]

COOKIE = "session=of-the-sample-app"
UPLOAD = bytes(range(256)) * 4096
PARTS, GAP = 5, 0.2
"""Of the slow download: how many, and the seconds between them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call led to, at every party."""

    response: httpx.Response
    body: bytes
    first_byte: float
    last_byte: float
    """Both in seconds since the call began."""
    received: tuple[RecordedRequest, ...]
    asked: tuple[RecordedRequest, ...]
    """By the provider's API and by the identity provider."""

    def json(self, member: str) -> object:
        try:
            document = json.loads(self.body)
        except ValueError:
            return None
        return document.get(member) if isinstance(document, dict) else None


@dataclass(frozen=True, slots=True)
class Scene:
    """A call, and the checks on its outcome."""

    title: str
    method: str
    target: str
    checks: Callable[[Outcome, Stage], Iterator[Check]]
    caller: str | None = "alice"
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """The parties, and the secrets that have to stay where they are."""

    app_url: str
    idp: Auth0
    api: ProviderAPI
    callers: dict[str, str] = field(repr=False)
    provider_token: str = field(repr=False)
    paper: Paper = field(repr=False)

    def play(self, scene: Scene, client: httpx.Client) -> bool:
        """Make the call, print what each party saw, and tell whether all was as it should be."""
        self.paper.title(scene.title)
        try:
            outcome = self._call(scene, client)
        except httpx.HTTPError as exc:
            verdicts = [(f"the call came through ({type(exc).__name__})", False)]
        else:
            self._show(scene, outcome)
            verdicts = list(scene.checks(outcome, self))
        self.paper.verdicts(verdicts)
        self.paper.line()
        return all(ok for _, ok in verdicts)

    def _call(self, scene: Scene, client: httpx.Client) -> Outcome:
        self.api.clear()
        self.idp.clear()
        headers = {"cookie": COOKIE}
        if scene.caller is not None:
            headers["authorization"] = f"Bearer {self.callers[scene.caller]}"
        start = time.monotonic()
        with client.stream(scene.method, scene.target, headers=headers, content=scene.content) as response:
            body, times = b"", []
            for chunk in response.iter_raw():
                times.append(time.monotonic() - start)
                body += chunk
        first, last = (times[0], times[-1]) if times else (0.0, 0.0)
        return Outcome(response, body, first, last, tuple(self.api.requests), tuple(self.idp.requests))

    def _show(self, scene: Scene, outcome: Outcome) -> None:
        sent = _request(scene.method, scene.target, outcome.response.request.headers, len(scene.content or b""))
        self.paper.entry("browser sent", sent)
        asked = [f"{request.method} {request.target.decode('latin-1')}" for request in outcome.asked]
        self.paper.entry("Auth0 was asked", asked or ["nothing"])
        received = [
            line
            for r in outcome.received
            for line in _request(r.method, r.target.decode("latin-1"), httpx.Headers(r.headers), r.size)
        ]
        self.paper.entry("GitHub received", received or ["nothing"])
        text = "".join(c if c.isprintable() else "·" for c in outcome.body.decode("utf-8", "replace").strip())
        answered = outcome.response
        status = f"{answered.status_code} {answered.reason_phrase}"
        self.paper.entry("came back", [status, *_fields(answered.headers, _ANSWERED), text])


_SENT = ("Authorization", "Cookie")
_ANSWERED = ("Content-Type", "WWW-Authenticate", "Link", "Proxy-Status")


def _request(method: str, target: str, headers: httpx.Headers, size: int) -> list[str]:
    return [f"{method} {target}", *_fields(headers, _SENT), *([f"and {size:,} bytes"] if size else [])]


def _fields(headers: httpx.Headers, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if name in headers:
            value = headers[name]
            yield f"{name}: {masked(value) if name == 'Authorization' else value}"


def _passed(outcome: Outcome, stage: Stage) -> Iterator[Check]:
    """What holds for every call that goes through, whatever comes back."""
    yield "200", outcome.response.status_code == 200
    tokens = [request.bearer for request in outcome.received]
    yield "GitHub got alice's GitHub token, once", tokens == [stage.provider_token]
    seen = b"\n".join(value for request in outcome.received for _, value in request.headers)
    kept = not any(secret.encode() in seen for secret in (*stage.callers.values(), COOKIE))
    yield "the caller's token and cookie did not get there", kept
    returned = str(outcome.response.headers).encode() + outcome.body
    yield "the GitHub token did not come back", stage.provider_token.encode() not in returned


def _account(outcome: Outcome, stage: Stage) -> Iterator[Check]:
    yield from _passed(outcome, stage)
    yield "it is alice's account", outcome.json("login") == "alice"


def _list(outcome: Outcome, stage: Stage) -> Iterator[Check]:
    yield from _passed(outcome, stage)
    link = outcome.response.headers.get("link", "")
    yield "the next page is at the sample app too", f"<{stage.app_url}/idp/github/" in link
    yield "Auth0 was not asked again", not outcome.asked


def _download(outcome: Outcome, stage: Stage) -> Iterator[Check]:
    yield from _passed(outcome, stage)
    yield f"all {PARTS} parts came", outcome.body.count(b"chunk ") == PARTS
    times = f"the first byte after {outcome.first_byte:.2f} s, the last after {outcome.last_byte:.2f} s"
    yield times, outcome.last_byte - outcome.first_byte > GAP


def _upload(outcome: Outcome, stage: Stage) -> Iterator[Check]:
    yield from _passed(outcome, stage)
    yield "every byte arrived, in order", outcome.json("sha256") == hashlib.sha256(UPLOAD).hexdigest()


def _no_token(outcome: Outcome, _: Stage) -> Iterator[Check]:
    yield from _refused(outcome, lambda challenge: challenge == "Bearer")


def _forged(outcome: Outcome, _: Stage) -> Iterator[Check]:
    yield from _refused(outcome, lambda challenge: challenge.startswith('Bearer error="invalid_token"'))


def _refused(outcome: Outcome, fits: Callable[[str], bool]) -> Iterator[Check]:
    yield "401", outcome.response.status_code == 401
    yield "with the challenge that fits", fits(outcome.response.headers.get("www-authenticate", ""))
    yield "nobody else heard of it", not outcome.received and not outcome.asked


def _not_linked(outcome: Outcome, _: Stage) -> Iterator[Check]:
    yield "403", outcome.response.status_code == 403
    named = outcome.json("type") == "urn:idp-middleware:problem:identity-not-linked"
    yield "the answer says which account is missing", named and outcome.json("connection") == "github"
    yield "GitHub heard nothing of it", not outcome.received


SCENES = (
    Scene("1  alice reads her account", "GET", "/idp/github/user", _account),
    Scene("2  … and her repositories", "GET", "/idp/github/user/repos", _list),
    Scene("3  A download that takes its time", "GET", f"/idp/github/slow?chunks={PARTS}&delay={GAP}", _download),
    Scene("4  An upload", "PUT", "/idp/github/upload", _upload, content=UPLOAD),
    Scene("5  A caller without a token", "GET", "/idp/github/user", _no_token, caller=None),
    Scene("6  A caller with a forged token", "GET", "/idp/github/user", _forged, caller="forged"),
    Scene("7  bob has linked no GitHub account", "GET", "/idp/github/user", _not_linked, caller="bob"),
)
