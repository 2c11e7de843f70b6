"""`idp-middleware demo`: the main job end to end on this machine, with stand-ins for Auth0 and for GitHub's API.

Sets the stage and plays the scenes; what is said and checked is in `scenes`, how it looks in `paper`, the
parties in `stand_ins` and `app`, the page in `static/`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from idp_middleware import __version__
from idp_middleware._demo.app import sample_app
from idp_middleware._demo.paper import Paper
from idp_middleware._demo.scenes import SCENES, Stage
from idp_middleware._demo.stand_ins import AUDIENCE, GITHUB_TOKEN, SCOPE, Witness, admit_page, stand_ins
from idp_middleware.testing import Auth0, ProviderAPI, serve, signing_key

_DAY = 24 * 3600


def run(*, port: int = 0, once: bool = False) -> int:
    """Play the demo; 0 where every call did what it should, else 1.

    Unless `once`, serves on until interrupted: the calls' result stays the status, since that is how a demo ends.

    Raises:
        OSError: the port is taken.
    """
    paper = Paper(sys.stdout)
    paper.title(f"idp_middleware {__version__}: the main job, end to end, on this machine")
    paper.line()
    with demo(port=port) as parties:
        for party, url, role in (
            ("sample app", parties.app_url, "FastAPI with IdPMiddleware in front of it"),
            ("Auth0", parties.idp_url, "a stand-in for a tenant; keeps alice's GitHub token"),
            ("GitHub", parties.api_url, "a stand-in for api.github.com"),
        ):
            paper.entry(party, [f"{url}  {role}"])
        paper.line()
        callers = _callers(parties.idp)
        stage = Stage(parties.app_url, parties.idp, parties.api, callers, GITHUB_TOKEN, paper)
        with httpx.Client(base_url=parties.app_url, trust_env=False, timeout=30.0) as client:
            results = [stage.play(scene, client) for scene in SCENES]
        wrong = results.count(False)
        paper.title(f"{len(results)} calls, " + (f"{wrong} of them WRONG" if wrong else "each did what it should"))
        if not once:
            _serve_on(paper, parties.app_url, callers["alice"])
    return 1 if wrong else 0


@dataclass(frozen=True, slots=True)
class Parties:
    """Who takes part: where each is, and the stand-ins."""

    app_url: str
    idp_url: str
    api_url: str
    idp: Auth0
    api: ProviderAPI


@contextmanager
def demo(*, port: int = 0) -> Iterator[Parties]:
    """The stand-ins, and the app that lets its page log in, served while the block runs."""
    idp, api = stand_ins()
    with serve(idp) as idp_server, serve(api) as api_server:
        app = sample_app(idp_url=idp_server.url, api_url=api_server.url, witness=Witness(idp, api))
        with serve(app, port=port) as app_server:
            admit_page(idp, [app_server.url, f"http://localhost:{app_server.port}"])
            yield Parties(app_server.url, idp_server.url, api_server.url, idp, api)


def _callers(idp: Auth0) -> dict[str, str]:
    def issue(subject: str, **options: Any) -> str:
        return idp.issue_token(subject, audience=AUDIENCE, scope=SCOPE, expires_in=_DAY, **options)

    return {
        "alice": issue("auth0|alice"),
        "bob": issue("auth0|bob"),
        # Says all the right things, under a key that the identity provider never had.
        "forged": issue("auth0|alice", key=signing_key("RS256", 99).private, headers={"kid": signing_key().kid}),
    }


def _serve_on(paper: Paper, url: str, token: str) -> None:
    paper.line()
    paper.line(f"Open {url}/ in a browser (log in as alice or bob: there are no passwords),")
    paper.line("or paste (alice's token of the sample app, good for a day):")
    paper.line()
    # Whole lines, to be pasted whole.
    paper.line(f"TOKEN={token}")
    paper.line(f'curl -i -H "Authorization: Bearer $TOKEN" {url}/idp/github/user')
    paper.line(f'curl -N -H "Authorization: Bearer $TOKEN" "{url}/idp/github/slow?chunks=5&delay=0.5"')
    paper.line(f'curl -H "Authorization: Bearer $TOKEN" -T pyproject.toml {url}/idp/github/upload')
    paper.line(f"curl -i {url}/idp/github/user")
    paper.line()
    paper.line("Serving until Ctrl-C …")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    paper.line("\nStopped.")
