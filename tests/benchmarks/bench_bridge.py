"""What an OutageBridge costs while its remote, a Redis, is healthy: adding through it against adding to the remote itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.benchmarks import runs
from tests.benchmarks.places import Candidate, Places, added_by
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
        for adders, events in ((1, 5_000), (100, 20_000)):
            alone = Candidate("redis drain", events // 4 if quick else events, adders=adders)
            to_memory = replace(alone, subject="bridge to memory")
            to_sqlite = replace(alone, subject="bridge to sqlite")
            results = places.measure(f"bridge, {adders} adders", [alone, to_memory, to_sqlite])
            table = runs.Table(results, added_by(results), "events/s")
            work = f"OutageBridge add, {adders} adder{'s' if adders > 1 else ''}, remote healthy"
            rows.append(table.row(f"{work}, EventBuffer behind / the remote", to_memory, alone, at_least=0.9))
            rows.append(table.row(f"{work}, SQLite behind / the remote", to_sqlite, alone, at_least=0.9))
    return rows
