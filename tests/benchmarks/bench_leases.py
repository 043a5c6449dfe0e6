"""What it costs to lease events and to acknowledge them, in batches of 500, against draining the same events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.benchmarks import runs
from tests.benchmarks.buffer_candidates import LEASED
from tests.benchmarks.places import Candidate, Places, drained_by
from tests.benchmarks.redis_place import redis_place
from tests.benchmarks.report import Row

__all__ = ["run"]


def run(
    *, quick: bool = False, rounds: int | None = None, progress: Callable[[str], object] | None = None
) -> list[Row]:
    """Measure and return the rows; *quick* takes a quarter of the events, and 2 rounds unless *rounds* says otherwise."""
    rows: list[Row] = []
    with redis_place() as redis:
        places = Places(redis, rounds or (2 if quick else 5), progress or (lambda _text: None))
        for kind, name in (("memory", "EventBuffer"), ("sqlite", "SQLite"), ("redis", "Redis")):
            few = quick and kind != "memory"  # in memory it takes milliseconds
            lease = Candidate(f"{kind} lease", 5_000 if few else 20_000, repeats=8 if kind == "memory" else 4)
            drain, pages = replace(lease, subject=f"{kind} drain"), replace(lease, subject=f"{kind} pages")
            results = places.measure(f"leases, {name}", [lease, drain, pages])
            table = runs.Table(results, drained_by(results), "events/s")
            work = f"{name}: lease({LEASED}) + acknowledge"
            rows.append(table.row(f"{work} / drain({LEASED})", lease, pages, at_least=0.7))
            rows.append(table.row(f"{work} / drain() of {lease.events:,}", lease, drain))
    return rows
