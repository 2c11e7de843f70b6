"""What a process tree has used, read from /proc.

Knows nothing of requests. Linux only.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all its descendants: CPU (user + system) in seconds, memory in bytes."""

    cpu: float
    rss: int
    peak: int


def usage(pid: int) -> Usage:
    """Sums over the tree; memory shared between its processes counts for each."""
    cpu, rss, peak = 0.0, 0, 0
    for member in tree(pid):
        # A worker may end between the listing and the reading.
        with contextlib.suppress(OSError):
            cpu += _cpu(member)
            memory = _memory(member)
            rss += memory["VmRSS"]
            peak += memory["VmHWM"]
    return Usage(cpu, rss, peak)


def reset_peak(pid: int) -> None:
    """Let VmHWM start again from what is in use now (proc_pid_clear_refs(5)); without the right to, it stays."""
    for member in tree(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{member}/clear_refs").write_text("5")


def tree(pid: int) -> list[int]:
    """`pid` and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return found


def _stat(pid: int) -> list[str]:
    # The command's name, in brackets, may hold spaces and brackets itself (proc_pid_stat(5)).
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    # schedstat counts nanoseconds where stat counts ticks of 10 ms: too coarse for one transfer of 100 MB.
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return sum(int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError):
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / _TICKS


def _memory(pid: int) -> dict[str, int]:
    memory = {"VmRSS": 0, "VmHWM": 0}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in memory:
            memory[name] = int(value.split()[0]) * 1024
    return memory
