"""What people see of the Auth0 stand-in: whom to log in as, which account to connect, what is wrong.

Knows HTML and nothing of grants. No script, nothing from elsewhere; whatever comes from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from idp_middleware.testing._double import Answer

LOGIN = "/u/login"
"""Where the forms lead; `state` in the query says which login is under way."""

_STYLE = """
:root { color-scheme: light dark; --page: #f3f4f7; --card: #fff; --text: #1b1f2a; --soft: #565d6d; --line: #d5d9e2;
  --main: #3a43c9; --on-main: #fff }
@media (prefers-color-scheme: dark) { :root { --page: #12141b; --card: #1c1f29; --text: #eceef4; --soft: #a8afbf;
  --line: #363b4a; --main: #a9b1ff; --on-main: #12141b } }
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif }
main { width: 100%; max-width: 24rem; padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 1rem }
h1 { margin: 0 0 .5rem; font-size: 1.35rem; line-height: 1.3 }
p { margin: 0 0 1.25rem; color: var(--soft); overflow-wrap: anywhere }
form { display: grid; gap: .6rem }
button { font: inherit; font-weight: 600; padding: .7rem 1rem; border: 1px solid var(--line); border-radius: .6rem;
  background: transparent; color: inherit; cursor: pointer }
button:hover { border-color: var(--main) }
button.main { background: var(--main); border-color: var(--main); color: var(--on-main) }
button:focus-visible { outline: 3px solid var(--main); outline-offset: 3px }
small { display: block; margin-top: 1.5rem; color: var(--soft) }
"""

_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    # No form-action: browsers hold the redirect after a form against it, and that leads to the app.
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; style-src 'sha256-"
        + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
        + "'"
    ),
}


def login(state: str, subjects: Iterable[str], client_id: str, *, status: int = 200) -> Answer:
    """Which of the users to be; they have no passwords here."""
    buttons = [_button("username", subject, subject) for subject in subjects]
    return _page("Log in", f"to continue to {client_id}", _form(state, buttons), status=status)


def consent(state: str, subject: str, connection: str, account: str, client_id: str) -> Answer:
    """What the provider would ask, before it hands out a token."""
    buttons = [_button("action", "accept", "Allow", main=True), _button("action", "cancel", "Cancel")]
    what = f"{client_id} wants to use account {account} at {connection}, for {subject}."
    return _page(f"Connect {connection}?", what, _form(state, buttons))


def mistake(status: int, what: str) -> Answer:
    """What can't be told to the app, since nobody knows whether it is the app."""
    return _page("Oops!, something went wrong", what, "", status=status)


def _form(state: str, buttons: Iterable[str]) -> str:
    return f'<form method="post" action="{LOGIN}?state={quote(state)}">{"".join(buttons)}</form>'


def _button(name: str, value: str, label: str, *, main: bool = False) -> str:
    style = ' class="main"' if main else ""
    return f'<button{style} name="{name}" value="{escape(value)}">{escape(label)}</button>'


def _page(title: str, what: str, form: str, *, status: int = 200) -> Answer:
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<main><h1>{escape(title)}</h1><p>{escape(what)}</p>{form}"
        "<small>A stand-in for Auth0, on this machine.</small></main></html>"
    )
    return Answer(status, html, _HEADERS)
