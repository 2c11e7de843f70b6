"""Which event loop is running, whatever threads and forks there are."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
import uvloop

from idp_middleware._loops import running_loop


async def running() -> bool:
    return all(running_loop() is asyncio.get_running_loop() for _ in range(3))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_running_loop_is_told_though_others_were_seen_before(new_loop):
    """An app under test meets several, one after the other or in turns."""
    one, other = new_loop(), new_loop()
    try:
        for loop in (one, other, one, other):
            assert loop.run_until_complete(running())
    finally:
        one.close()
        other.close()


def test_each_thread_has_its_own():
    """Two servers in one process, as in tests."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(running()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_without_a_loop_there_is_none():
    """Also where one has run before."""
    asyncio.run(running())
    with pytest.raises(RuntimeError):
        running_loop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_inside_a_running_loop_forgets_it():
    """The child's copy of the parent's loop says that it is running, and nobody runs it."""

    async def forks() -> int:
        running_loop()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # asyncio knows by the process id that its mark of a running loop is the parent's.
                running_loop()
            except RuntimeError:
                status = 0
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222 (the child ends at once)

    assert asyncio.run(forks()) == 0
