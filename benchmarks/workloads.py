"""What is asked of every candidate. Knows nothing of who they are."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.bulk import MEGABYTE
from benchmarks.upstream import ANSWERS

CONNECTIONS = (1, 32, 256)
BULK_BYTES = 100 * MEGABYTE
# Long enough that whoever reads on after the client has left is seen to.
LEFT_BYTES = 1000 * MEGABYTE


@dataclass(frozen=True, slots=True)
class Small:
    """Many small exchanges over kept connections; `quick` are the connection counts that `--quick` measures."""

    name: str
    label: str
    path: str
    method: str = "GET"
    body: int = 0
    quick: tuple[int, ...] = (32,)

    @property
    def answer(self) -> int:
        """Bytes in the answer's body."""
        return len(ANSWERS[self.path])


SMALL = (
    Small("get-1k", "GET, 1 KB of JSON", "/json", quick=CONNECTIONS),
    Small("get-64k", "GET, 64 KB of JSON", "/64k"),
    Small("post-1k", "POST of 1 KB, 1 KB of JSON back", "/post", method="POST", body=1024),
)

BULK = {
    "down": "100 MB down, one connection",
    "up": "100 MB up, one connection",
    "slow-reader": "a client that reads 1 MB/s of 100 MB",
    "leaver": "a client that leaves",
}

MICRO = "micro"
NAMES = (*(small.name for small in SMALL), *BULK, MICRO)
