"""Everything that one run found. Only holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.candidates import Candidate
from benchmarks.micro import Piece
from benchmarks.rounds import BulkCell, SmallCell


@dataclass(slots=True, kw_only=True)
class Results:
    """`small` by workload, connections and candidate; `bulk` by workload and candidate; `missing` and `failed` by
    candidate with the reason; `versions` by need.
    """

    date: str
    machine: str
    pinned: bool
    quick: bool
    rounds: int
    seconds: float
    loader: str
    candidates: Sequence[Candidate]
    upstream: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    small: dict[tuple[str, int, str], SmallCell] = field(default_factory=dict)
    bulk: dict[str, dict[str, BulkCell]] = field(default_factory=dict)
    micro: list[Piece] = field(default_factory=list)

    def cpu(self, workload: str, connections: int, candidate: str) -> float | None:
        """Median µs per request."""
        cell = self.small.get((workload, connections, candidate))
        return cell.cpu if cell else None

    def transfer_cpu(self, direction: str, candidate: str) -> float | None:
        """Median ms per 100 MB."""
        cell = self.bulk.get(direction, {}).get(candidate)
        return cell.cpu if cell else None
