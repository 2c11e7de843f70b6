"""`idp-middleware revoke`: takes a user's token back from outside of the processes that serve.

Knows what can be reached from here, and says what can't; how it is done is the middleware's own business.
"""

from __future__ import annotations

from collections.abc import Iterator

from idp_middleware._advice import advice
from idp_middleware._given_caller import caller_named, route_named
from idp_middleware._middleware import IdPMiddleware
from idp_middleware.config import Config
from idp_middleware.errors import CheckFailed, IdPError


async def revoke(config: Config, *, route: str, subject: str, issuer: str | None, account: str | None) -> str:
    """Revoke it, and return what there is to say about that.

    Raises `CheckFailed` where it failed or would change nothing, `ConfigurationError` for a route that is not in the
    file, or an issuer that has to be named.
    """
    takes_back = hasattr(route_named(config, route).source, "revoke")
    caller = caller_named(config, subject, issuer=issuer, account=account)
    tells = config.cache is not None and config.cache.revocations.announcing is not None
    if not takes_back and not tells:
        raise CheckFailed(
            "nothing would come of it: the source has nothing to take back, and each process keeps tokens of its own",
            todo="restart the processes; or share a [cache] in Redis, through which they are told",
        )
    idp = IdPMiddleware(**config.arguments())
    try:
        await idp.revoke(route, caller)
    except IdPError as exc:
        wrong, todo = advice(exc)
        raise CheckFailed(wrong, todo=todo) from None
    finally:
        await idp.aclose()
    return "\n".join(_told(f"{subject} of {caller.issuer or 'no issuer'}", route, takes_back=takes_back, tells=tells))


def _told(whose: str, route: str, *, takes_back: bool, tells: bool) -> Iterator[str]:
    yield f"revoked: the token of {whose} for {route}"
    if not takes_back:
        yield "the source has nothing to take back, so the next request asks it again"
    if tells:
        yield "other processes know of it within three seconds"
    else:
        yield "without a [cache] in Redis, processes that run use what they have kept of it until it expires"
