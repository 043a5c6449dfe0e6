"""
The buffer on disk against sqlite3 by hand, both with WAL and a sync of the disk for each commit.

The floor of 100 adders is given 100 events for each transaction: as many as can share one, for each adder waits for its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from tests.benchmarks import runs
from tests.benchmarks.places import Candidate, Places, added_by, drained_by, fsync_microseconds
from tests.benchmarks.report import Row

__all__ = ["run"]


def run(
    *, quick: bool = False, rounds: int | None = None, progress: Callable[[str], object] | None = None
) -> list[Row]:
    """Measure and return the rows; *quick* takes a tenth of the events, and 2 rounds unless *rounds* says otherwise."""
    places = Places(None, rounds or (2 if quick else 5), progress or (lambda _text: None))
    one = Candidate("sqlite drain", 200 if quick else 1_000, adders=1)
    many = Candidate("sqlite drain", 5_000 if quick else 20_000)
    full = replace(many, events=10_000 if quick else 100_000)
    candidates = [candidate for each in (one, many) for candidate in (each, _floor(each))]
    results = places.measure("sqlite, adding", candidates)
    adding = runs.Table(results, added_by(results), "events/s")
    drained = places.measure("sqlite, draining", [full, _floor(full)])
    draining = runs.Table(drained, drained_by(drained), "events/s")
    return [
        Row("fsync of 4 kB more in a file", fsync_microseconds(), math.nan, "us", math.nan, "", True, 0),
        adding.row("SQLite add, 1 adder / executemany of 1", one, _floor(one), at_least=0.5),
        adding.row("SQLite add, 100 adders / executemany of 100", many, _floor(many), at_least=0.5),
        adding.row("SQLite add, 100 adders / 1 adder", many, one, at_least=20),
        adding.row("floor: executemany of 100 / of 1", _floor(many), _floor(one)),
        draining.row(f"SQLite drain of {full.events:,} / SELECT + decode + DELETE", full, _floor(full), at_least=0.5),
    ]


def _floor(candidate: Candidate) -> Candidate:
    return replace(candidate, subject="floor")
