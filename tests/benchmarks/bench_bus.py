"""
The bus and the stream consumers against floors written by hand on redis-py and psycopg, and against their peers.

Each candidate runs in a process of its own on one core, the server on another, and begins with an empty server; the
candidates take turns, round by round. A figure is the median of its rounds; what was lost is counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias, cast

from connector_sdk.testing.postgres_server import PostgresServer
from tests.benchmarks import runs
from tests.benchmarks.bus_work import Job
from tests.benchmarks.redis_place import Place, redis_place
from tests.benchmarks.report import Row
from tests.benchmarks.tally import Outcome, cores

__all__ = ["run"]

_PEERS: Final = frozenset({"eventsource", "eventsource_memory", "dataknobs", "dataknobs_memory", "coredis"})
_POSTGRES: Final = frozenset({"bus_postgres", "psycopg", "notify", "stored"})


@dataclass(frozen=True)
class Candidate:
    """One process to run: which bus, and what it is to do."""

    subject: str
    work: str
    events: int = 10_000
    publishers: int = 1
    batch: int = 1
    rate: float = 500.0

    @property
    def job(self) -> Job:
        return Job(work=self.work, events=self.events, publishers=self.publishers, batch=self.batch, rate=self.rate)


Results: TypeAlias = runs.Results[Candidate, Outcome]


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    peers: Path | None = None,
    progress: Callable[[str], object] | None = None,
) -> list[Row]:
    """
    Measure and return the rows of the table.

    Args:
        quick: two rounds of a tenth of the events: to see that everything works, not for figures to quote.
        rounds: how often each candidate runs; default 5, or 2 when quick.
        peers: the Python that has the peers installed; None leaves them out.
        progress: hears of each round.

    Raises:
        runs.CandidateCrashedError: a floor or our own bus did not come to its end.
    """
    with redis_place() as server, _postgres_url() as postgres:
        bench = _Bench(
            server, postgres, 0.1 if quick else 1.0, rounds or (2 if quick else 5), peers, progress or (lambda _: None)
        )
        return [*_publishing(bench), *_through(bench), *_consuming(bench), *_latency(bench), *_memory(bench),
                *_in_postgres(bench)]  # fmt: skip


@dataclass(frozen=True)
class _Bench:
    server: Place
    postgres: str
    share: float  #: of the events that are meant
    rounds: int
    peers: Path | None
    progress: Callable[[str], object]

    def measure(self, title: str, candidates: Sequence[Candidate]) -> Results:
        """Run the candidates in turn, round by round."""
        fewer = [replace(candidate, events=self.events(candidate.events)) for candidate in candidates]
        return runs.take_turns(
            fewer,
            self.rounds,
            self._run,
            lambda candidate: candidate.subject in _PEERS,
            lambda number: self.progress(f"bus, {title}: round {number} of {self.rounds}"),
        )

    def events(self, number: int) -> int:
        """So many events, or fewer when it is to be quick."""
        return max(200, round(number * self.share))

    def _run(self, candidate: Candidate) -> Outcome:
        is_peer = candidate.subject in _PEERS
        if is_peer and self.peers is None:
            raise runs.CandidateCrashedError(runs.NOT_AVAILABLE)
        self.server.empty()
        python, module = (str(self.peers), "bus_peer") if is_peer else (sys.executable, "bus_candidates")
        url = self.postgres if candidate.subject in _POSTGRES else self.server.url
        line = runs.run_process(python, module, candidate.subject, url, json.dumps(candidate.job))
        return cast(Outcome, runs.read_outcome(line, candidate.subject))

    def table(self, results: Results, *, of_latency: bool = False) -> _Table:
        """Make rows of what was measured."""
        return _Table(self, results, of_latency=of_latency)


@dataclass(frozen=True)
class _Table:
    bench: _Bench
    results: Results
    of_latency: bool

    def row(
        self,
        work: str,
        ours: Candidate,
        against: Candidate,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Row:
        """Compare two candidates as they were measured."""
        ours, against = (replace(one, events=self.bench.events(one.events)) for one in (ours, against))
        figure = self.results.p50 if self.of_latency else (lambda one: one.events / self._seconds(one))
        unit = "us" if self.of_latency else "events/s"
        table = runs.Table(self.results, figure, unit)
        return table.row(f"{work} / {against.subject}", ours, against, at_least=at_least, at_most=at_most)

    def _seconds(self, candidate: Candidate) -> float:
        return self.results.median(candidate, lambda outcome: outcome["seconds"])


def _publishing(bench: _Bench) -> list[Row]:
    one = Candidate("bus_everyone", "publish", 5_000)
    floor, eventsource, coredis = _instead(one, "redis_py", "eventsource", "coredis")
    table = bench.table(bench.measure("publish one by one", [one, floor, eventsource, coredis]))
    rows = [
        table.row("publish one by one to Redis", one, floor, at_least=0.9),
        table.row("publish one by one to Redis", one, eventsource),
        table.row("publish one by one to Redis", one, coredis),
    ]
    many = Candidate("bus_everyone", "publish", 20_000, batch=100)
    floor, eventsource, coredis = _instead(many, "redis_py", "eventsource", "coredis")
    table = bench.table(bench.measure("publish in batches of 100", [many, floor, eventsource, coredis]))
    return [
        *rows,
        table.row("publish in batches of 100 to Redis", many, floor, at_least=0.75),
        table.row("publish in batches of 100 to Redis", many, eventsource),
        table.row("publish in batches of 100 to Redis", many, coredis),
    ]


def _through(bench: _Bench) -> list[Row]:
    rows: list[Row] = []
    for publishers, reach in ((8, 2.0), (90, 3.5)):
        ours = Candidate("bus_group", "through", 10_000, publishers=publishers)
        (peer,) = _instead(ours, "dataknobs")
        floor = replace(ours, subject="redis_py", publishers=1, batch=publishers)
        table = bench.table(bench.measure(f"{publishers} publishers", [ours, floor, peer]))
        work = f"{publishers} publishers to one handler, Redis"
        rows += [table.row(work, ours, floor), table.row(work, ours, peer, at_least=reach)]
    return rows


def _consuming(bench: _Bench) -> list[Row]:
    bus = Candidate("bus_group", "consume", 20_000, batch=100)
    consumer, floor, eventsource, coredis = _instead(bus, "group_consumer", "redis_py", "eventsource", "coredis")
    table = bench.table(bench.measure("consume", [bus, consumer, floor, eventsource, coredis]))
    return [
        table.row("GroupConsumer, prefetch 100, each acknowledged", consumer, floor, at_least=0.4),
        table.row("GroupConsumer, prefetch 100, each acknowledged", consumer, coredis, at_least=9.0),
        table.row("bus, one group, one no-op handler", bus, floor, at_least=0.3),
        table.row("bus, one group, one no-op handler", bus, eventsource, at_least=5.0),
    ]


def _latency(bench: _Bench) -> list[Row]:
    ours = Candidate("bus_everyone", "latency", 2_500)
    floor, eventsource, dataknobs = _instead(ours, "redis_py_reader", "eventsource", "dataknobs")
    table = bench.table(bench.measure("latency", [ours, floor, eventsource, dataknobs]), of_latency=True)
    work = "latency at 500/s through Redis, p50"
    return [
        table.row(work, ours, floor),
        table.row(work, ours, eventsource, at_most=0.9),
        table.row(work, ours, dataknobs, at_most=0.9),
    ]


def _memory(bench: _Bench) -> list[Row]:
    ours = Candidate("bus_memory", "through", 50_000, batch=100)
    floor, dataknobs, eventsource = _instead(ours, "queue", "dataknobs_memory", "eventsource_memory")
    table = bench.table(bench.measure("memory", [ours, floor, dataknobs, eventsource]))
    work = "memory bus, publish to handler"
    against_floor = table.row(work, ours, floor)
    reached = against_floor.ours >= 250_000 and not against_floor.lost
    return [
        replace(against_floor, reach=">= 250k/s", met=reached),
        table.row(work, ours, dataknobs),
        table.row(work, ours, eventsource),
    ]


def _in_postgres(bench: _Bench) -> list[Row]:
    many = Candidate("bus_postgres", "publish", 10_000, batch=100)
    (floor,) = _instead(many, "psycopg")
    table = bench.table(bench.measure("Postgres, publish in batches of 100", [many, floor]))
    rows = [table.row("publish in batches of 100 to Postgres", many, floor, at_least=0.6)]
    ours = Candidate("bus_postgres", "latency", 1_000, rate=200.0)
    told, stored = _instead(ours, "notify", "stored")
    table = bench.table(bench.measure("Postgres, latency", [ours, told, stored]), of_latency=True)
    work = "publish to handler at 200/s through Postgres, p50"
    return [*rows, table.row(work, ours, told, at_most=2.0), table.row(work, ours, stored)]


def _instead(candidate: Candidate, *subjects: str) -> list[Candidate]:
    """The same work for others."""
    return [replace(candidate, subject=subject) for subject in subjects]


@contextlib.contextmanager
def _postgres_url() -> Iterator[str]:
    """Give a PostgreSQL of our own on the second core, or the one that POSTGRES_URL names."""
    url = os.environ.get("POSTGRES_URL", "")
    if url:
        yield url
        return
    with PostgresServer() as own:
        if cores()[1]:
            os.sched_setaffinity(own.pid, cores()[1])
        yield own.url
