"""The demo's app: what `examples/fastapi_app.py` shows, with a page to click in, against the stand-ins on loopback."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from idp_middleware import IdPMiddleware, JWTAuthenticator, providers
from idp_middleware.sources import Auth0Management

AUDIENCE = "https://sample-app.example"
CLIENT_ID, CLIENT_SECRET = "sample-app", "a-secret-of-the-sample-app"


def sample_app(*, idp_url: str, api_url: str, callers: Mapping[str, str]) -> FastAPI:
    """The app with the middleware in front. `callers` are what the page can send: a label and an access token each."""
    app = FastAPI(title="Sample app")
    auth0 = Auth0Management(base_url=idp_url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    app.add_middleware(
        IdPMiddleware,
        authenticator=JWTAuthenticator(issuer=f"{idp_url}/", audience=AUDIENCE),
        routes={
            "github": providers.github(
                token_source=auth0, connection="github", scopes={"read:github"}, upstream=api_url
            ),
        },
    )

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        # Inside a script, "</" would end it.
        return _PAGE.replace("CALLERS", json.dumps(dict(callers)).replace("<", "\\u003c"))

    return app


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>idp_middleware demo</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
  button { font: inherit; margin: 0 .4rem .4rem 0 }
  pre { padding: 1rem; background: #8882; white-space: pre-wrap; overflow-wrap: anywhere }
</style>
<h1>idp_middleware demo</h1>
<p>This page holds a token of <em>this app</em> only. The user's GitHub token stays with the identity provider and the
middleware: you won't find it in anything that comes back here.</p>
<p><label>As <select id="caller"></select></label></p>
<p id="calls"></p>
<pre id="answer" aria-live="polite">Press a button.</pre>
<script>
const callers = CALLERS;
const calls = ["GET /idp/github/user", "GET /idp/github/user/repos", "GET /idp/github/slow?chunks=5&delay=0.5",
               "POST /idp/github/echo/issues", "GET /idp/nowhere/user"];
const caller = document.getElementById("caller"), answer = document.getElementById("answer");
for (const name of Object.keys(callers)) caller.add(new Option(name));
for (const call of calls) {
  const button = document.createElement("button");
  button.textContent = call;
  button.onclick = () => send(...call.split(" "));
  document.getElementById("calls").append(button);
}
async function send(method, url) {
  const token = callers[caller.value], headers = token ? { Authorization: "Bearer " + token } : {};
  answer.textContent = "…";
  try {
    const body = method === "POST" ? JSON.stringify({ title: "hello" }) : undefined;
    const response = await fetch(url, { method, headers, body });
    answer.textContent = response.status + " " + response.statusText + "\\n";
    for (const [name, value] of response.headers) answer.textContent += name + ": " + value + "\\n";
    answer.textContent += "\\n";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part; !(part = await reader.read()).done;) answer.textContent += part.value;
  } catch (error) { answer.textContent += error }
}
</script>
</html>
"""
