"""Starting, pinning and stopping the processes of a run.

Knows nothing of what they serve. Everything started here is gone when the `Processes` block is left, however it is
left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

START_SECONDS = 20.0


class StartFailed(Exception):
    """A process ended, or opened no port in time; the message has the end of its log."""


class Process:
    """A running child, leader of its own process group."""

    def __init__(self, popen: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.port = port
        self.log = log

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Until something listens on its port. Raises `StartFailed`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.alive:
                raise StartFailed(f"ended with status {self._popen.returncode}: {self.tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise StartFailed(f"does not listen after {seconds:.0f} s: {self.tail()}")

    def tail(self) -> str:
        """The last line of its log that says something."""
        lines = [line.strip() for line in self.log.read_text("utf-8", "replace").splitlines()]
        return next((line for line in reversed(lines) if line), "no output")

    def stop(self) -> None:
        """Ask, wait a little, then kill the whole group."""
        if self.alive:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


class Processes:
    """Holds the children of a run, and stops what is left of them on the way out.

    Args:
        logs: directory for what they print.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[Process] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running):
            process.stop()
        self._running.clear()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        core: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Start `command` on `core` (None: where we run ourselves). Raises `StartFailed`."""
        log = self._logs / f"{name}.log"
        # Ctrl-C is ours to act on, so children get a session of their own; should we be killed, the kernel tells them.
        survivor = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        with log.open("wb") as output, on_core(core):
            try:
                popen = subprocess.Popen(
                    [*survivor, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    cwd=cwd,
                    start_new_session=True,
                )
            except OSError as exc:
                raise StartFailed(str(exc.strerror)) from None
        process = Process(popen, port, log)
        self._running.append(process)
        return process

    def stop(self, process: Process) -> None:
        process.stop()
        self._running.remove(process)


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started meanwhile runs there."""
    if core is None:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def split_cores() -> int | None:
    """Move ourselves, and so all that is started without a core, to the second core; the first, for the proxies.

    None where there is only one.
    """
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        return None
    os.sched_setaffinity(0, {available[1]})
    return available[0]
