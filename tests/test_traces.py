"""Exceptions without the variables of the lines they came through."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable

import pytest

from idp_middleware._traces import forget_details

SECRET = "gho_of_alice"


def reported(error: BaseException) -> str:
    """As error reporters have it."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


async def sends(headers: list[str]) -> None:
    """Has a secret at hand when it fails."""
    headers.append(SECRET)
    raise LookupError("no answer")


async def asks() -> None:
    await sends([])


async def raises_from_it() -> None:
    try:
        await asks()
    except LookupError as exc:
        raise ValueError("worse") from exc


async def raises_beside_it() -> None:
    try:
        await asks()
    except LookupError:
        raise ValueError("worse")  # noqa: B904 - as it happens by mistake


@pytest.mark.parametrize("failing", [asks, raises_from_it, raises_beside_it])
async def test_lines_stay_and_variables_go(failing: Callable[[], Awaitable[None]]) -> None:
    """The lines say where the mistake is; reporters follow causes and contexts as well."""
    with pytest.raises((LookupError, ValueError)) as caught:
        await failing()
    assert SECRET in reported(caught.value)
    forget_details(caught.value)
    told = reported(caught.value)
    assert SECRET not in told
    for line in ("in asks", "in sends", 'raise LookupError("no answer")', "LookupError: no answer"):
        assert line in told


async def test_whoever_is_still_at_work_keeps_what_he_has() -> None:
    """A frame that is not over has use for its variables."""
    kept = [SECRET]
    try:
        await asks()
    except LookupError as exc:
        forget_details(exc)
    assert kept == [SECRET]


async def test_what_is_kept_out_of_sight_is_out_of_reach() -> None:
    """`from None` is for what should not be seen."""
    error = LookupError("in words that may be seen")
    error.__context__ = RuntimeError(SECRET)
    error.__suppress_context__ = True
    forget_details(error)
    assert error.__context__ is None


async def test_a_chain_that_bites_its_tail_has_an_end() -> None:
    """Anybody can set a cause."""
    one, other = LookupError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    forget_details(one)
