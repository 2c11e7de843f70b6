"""`idp-middleware demo`: the main job end to end on this machine, with stand-ins for Auth0 and for GitHub's API.

Sets the stage and plays the scenes; what is said and checked is in `scenes`, how it looks in `paper`, the app in `app`.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any

import httpx

from idp_middleware import __version__
from idp_middleware._demo.app import AUDIENCE, CLIENT_ID, CLIENT_SECRET, sample_app
from idp_middleware._demo.paper import Paper
from idp_middleware._demo.scenes import SCENES, Stage
from idp_middleware.testing import Auth0, Identity, ProviderAPI, serve, signing_key

_PROVIDER_TOKEN = "gho_the-token-that-only-auth0-and-the-middleware-know-a1ce"  # noqa: S105 (of the stand-in)
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
    idp, api = _stand_ins()
    with serve(idp) as idp_server, serve(api) as api_server:
        callers = _callers(idp)
        app = sample_app(
            idp_url=idp_server.url,
            api_url=api_server.url,
            callers={"alice": callers["alice"], "bob (no account linked)": callers["bob"], "nobody": ""},
        )
        with serve(app, port=port) as app_server:
            for party, url, role in (
                ("sample app", app_server.url, "FastAPI with IdPMiddleware in front of it"),
                ("Auth0", idp_server.url, "a stand-in for a tenant; keeps alice's GitHub token"),
                ("GitHub", api_server.url, "a stand-in for api.github.com"),
            ):
                paper.entry(party, [f"{url}  {role}"])
            paper.line()
            stage = Stage(app_server.url, idp, api, callers, _PROVIDER_TOKEN, paper)
            with httpx.Client(base_url=app_server.url, trust_env=False, timeout=30.0) as client:
                results = [stage.play(scene, client) for scene in SCENES]
            wrong = results.count(False)
            paper.title(f"{len(results)} calls, " + (f"{wrong} of them WRONG" if wrong else "each did what it should"))
            if not once:
                _serve_on(paper, app_server.url, callers["alice"])
    return 1 if wrong else 0


def _stand_ins() -> tuple[Auth0, ProviderAPI]:
    idp, api = Auth0(), ProviderAPI()
    idp.add_client(CLIENT_ID, CLIENT_SECRET)
    idp.add_user("auth0|alice", [Identity("github", "101", access_token=_PROVIDER_TOKEN)])
    idp.add_user("auth0|bob")
    api.accept(_PROVIDER_TOKEN, login="alice")
    return idp, api


def _callers(idp: Auth0) -> dict[str, str]:
    def issue(subject: str, **options: Any) -> str:
        return idp.issue_token(subject, audience=AUDIENCE, scope="read:github", expires_in=_DAY, **options)

    return {
        "alice": issue("auth0|alice"),
        "bob": issue("auth0|bob"),
        # Says all the right things, under a key that the identity provider never had.
        "forged": issue("auth0|alice", key=signing_key("RS256", 99).private, headers={"kid": signing_key().kid}),
    }


def _serve_on(paper: Paper, url: str, token: str) -> None:
    paper.line()
    paper.line(f"Open {url}/ in a browser, or paste (alice's token of the sample app, good for a day):")
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
