"""Every scenario under its name: each outcome in each set-up, and what is peculiar to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.leaks.scenarios.calls import (
    accounts,
    callers_leave,
    forged_and_expired,
    gateway_is_stopped,
    headers_that_try,
    odd_methods,
    refusals,
    tokens_in_urls,
)
from tests.leaks.scenarios.others_code import (
    cache_is_away,
    code_of_others,
    database_is_away,
    debugged,
    errors_meet_it,
    idp_transport_that_tells,
    raising_authenticator,
    raising_error_handler,
    raising_source,
    refresh_withdrawn,
    slow_callbacks,
    source_of_something_else,
    store_is_broken,
    stored_elsewhere,
    the_server_fails,
    upstream_transport_that_tells,
    wrapped,
)
from tests.leaks.scenarios.outcomes import (
    IMPATIENT,
    OUTCOMES,
    Run,
    goes_through,
    keys_are_poisoned,
    keys_cannot_be_had,
    management_token_withdrawn,
    provider_tokens_that_are_none,
    refused_and_renewed,
    upstream_breaks_off,
)
from tests.leaks.scenarios.own import (
    asked_itself,
    overview_fails,
    revocation_fails,
)
from tests.leaks.scenarios.parts import with_route
from tests.leaks.scenarios.upstreams import (
    answers_of_the_upstream,
    at_a_closed_port,
    broken_answers,
    echoes_where_it_is_asked_to_scrub,
    fastapi_answers,
    in_fastapi,
    scrubbing,
    slow_answers,
    the_app_asks_itself,
    the_app_behind_is_asked,
    unreachable,
    uploads,
    websockets,
    with_httpx,
    with_websockets,
)
from tests.leaks.set_ups import SET_UPS


@dataclass(frozen=True)
class Scenario:
    """Something that happens in a set-up; `options` are `world`'s."""

    name: str
    run: Run
    set_up: str = "management"
    options: Mapping[str, Any] = field(default_factory=dict)


def _special(name: str, run: Run, set_up: str = "management", **options: Any) -> Scenario:
    return Scenario(name, run, set_up, options)


SCENARIOS = (
    *(
        Scenario(f"{set_up}: {name}", run, set_up, IMPATIENT.get(run, {}))
        for set_up in SET_UPS
        for name, run in OUTCOMES.items()
    ),
    *(Scenario(f"{set_up}: what it answers itself", asked_itself, set_up) for set_up in SET_UPS),
    _special("an identity provider that repeats what is asked for the overview", overview_fails),
    _special("a revocation that fails", revocation_fails, "refresh token"),
    _special("a revocation in debug mode", asked_itself, "refresh token", wrap=slow_callbacks),
    _special("a caller's request is refused", refusals),
    _special("a token in a URL", tokens_in_urls, uvicorn={"access_log": False}),
    _special(
        "a caller's token is forged or expired",
        forged_and_expired,
        change=lambda world, arguments: with_route(world, arguments, scopes={"read:github"}),
    ),
    _special("several accounts, none, an unknown user", accounts),
    _special("methods of all kinds", odd_methods),
    _special("credentials in fields of other names", headers_that_try),
    _special("every answer of the upstream", answers_of_the_upstream),
    _special("uploads", uploads),
    _special("answers that are none", broken_answers),
    _special("answers that are late", slow_answers, patience=0.3),
    _special("answers that repeat the token", echoes_where_it_is_asked_to_scrub, change=scrubbing),
    _special("callers leave", callers_leave),
    _special("the gateway is stopped", gateway_is_stopped),
    _special("the upstream is away", unreachable, change=at_a_closed_port),
    _special("httpx: goes through", goes_through, change=with_httpx),
    _special("httpx: is refused and renewed", refused_and_renewed, change=with_httpx),
    _special("httpx: every answer", answers_of_the_upstream, change=with_httpx),
    _special("httpx: breaks off", upstream_breaks_off, change=with_httpx),
    _special("httpx: late", slow_answers, change=with_httpx, patience=0.3),
    _special(
        "httpx: the upstream is away", unreachable, change=lambda w, a: with_httpx(w, at_a_closed_port(w, a))
    ),
    _special("the app behind", the_app_behind_is_asked),
    _special("the app's own client", the_app_asks_itself),
    _special("FastAPI's dependencies", fastapi_answers, wrap=in_fastapi),
    _special("WebSockets refused", websockets, uvicorn={"ws": "wsproto"}),
    _special("WebSockets relayed", websockets, change=with_websockets, uvicorn={"ws": "wsproto"}),
    _special("the issuer's keys are away", keys_cannot_be_had),
    _special("the issuer's keys are another's", keys_are_poisoned),
    _special("provider tokens that are none", provider_tokens_that_are_none),
    _special("the management token is withdrawn", management_token_withdrawn),
    _special("a token source that tells", code_of_others, change=raising_source),
    _special("a token source that gives something else", code_of_others, change=source_of_something_else),
    _special("a transport that tells, to the upstream", code_of_others, change=upstream_transport_that_tells),
    _special("a transport that tells, to the identity provider", code_of_others, change=idp_transport_that_tells),
    _special("an authenticator that fails", code_of_others, change=raising_authenticator),
    _special("an error handler that fails", errors_meet_it, change=raising_error_handler),
    _special("a server that fails to read", the_server_fails, wrap=wrapped(receiving=True)),
    _special("a server that fails to write", the_server_fails, wrap=wrapped(sending=True)),
    _special("the shared cache is away", goes_through, change=cache_is_away),
    _special("the database is away", stored_elsewhere, "refresh token", change=database_is_away),
    _special("the store is broken", store_is_broken, "refresh token"),
    _special("the refresh token is withdrawn", refresh_withdrawn, "refresh token"),
    _special("asyncio in debug mode", debugged, wrap=slow_callbacks, uvicorn={"loop": "asyncio"}),
    _special("uvloop in debug mode", debugged, wrap=slow_callbacks, uvicorn={"loop": "uvloop"}),
    _special("uvicorn's trace: goes through", goes_through, level=5),
    _special("uvicorn's trace: is refused and renewed", refused_and_renewed, level=5),
)  # fmt: skip
