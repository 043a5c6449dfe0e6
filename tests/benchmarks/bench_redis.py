"""
The buffer in Redis against grouped pipelines on redis-py, written by hand, and against its peer.

Each candidate runs in a process of its own on one core, the server on another, and begins with an empty server; the
candidates take turns, round by round, so that whatever else the machine does hits all alike. A figure is the median of its
rounds. The server is a Valkey of our own, or the one that REDIS_URL names: there only keys of the benchmark are deleted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, cast

from tests.benchmarks import runs
from tests.benchmarks.redis_place import Place, redis_place
from tests.benchmarks.redis_work import Job, RedisOutcome
from tests.benchmarks.report import Row

__all__ = ["run"]

_PEER: Final = "autoplay"
_MEMORY_ROUNDS: Final = 2
#: Log2 of 100,000 by log2 of 1,000: how much more an event may cost with a hundred times the sessions.
_LOGARITHMIC: Final = 1.67
#: Page size decides, and not how much waits: how much more memory ten times the events may take.
_FLAT: Final = 1.25


@dataclass(frozen=True)
class Candidate:
    """One process to run: which buffer, and what it is to do."""

    subject: str
    work: str = "there and back"
    events: int = 20_000
    sessions: int = 100
    adders: int = 10
    repeats: int = 1
    page: int = 0

    @property
    def is_peer(self) -> bool:
        return self.subject == _PEER

    @property
    def job(self) -> Job:
        return Job(
            work=self.work,
            events=self.events,
            sessions=self.sessions,
            adders=self.adders,
            repeats=self.repeats,
            page=self.page,
        )


Results: TypeAlias = runs.Results[Candidate, RedisOutcome]
Table: TypeAlias = runs.Table[Candidate, RedisOutcome]


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
        peers: the Python that has the peer installed; None leaves it out.
        progress: hears of each round.

    Raises:
        runs.CandidateCrashedError: the floor or one of our own buffers did not come to its end, or its account is wrong.
    """
    with redis_place() as server:
        bench = _Bench(
            server,
            share=0.1 if quick else 1.0,
            rounds=rounds or (2 if quick else 5),
            peers=peers,
            progress=progress or (lambda _text: None),
        )
        return [
            *_adding(bench),
            *_draining(bench),
            *_both_at_once(bench),
            *_client_memory(bench),
            *_server_memory(bench),
            *_growth(bench),
        ]


@dataclass(frozen=True)
class _Bench:
    server: Place
    share: float  #: of the events that are meant
    rounds: int
    peers: Path | None
    progress: Callable[[str], object]

    def events(self, number: int) -> int:
        """So many events, or fewer when it is to be quick."""
        return max(100, round(number * self.share))

    def measure(
        self, title: str, candidates: Sequence[Candidate], run_one: Callable[[Candidate], RedisOutcome] | None = None
    ) -> Results:
        """Run the candidates in turn, round by round. What brings a *run_one* measures memory, which hardly varies."""
        rounds = self.rounds if run_one is None else min(self.rounds, _MEMORY_ROUNDS)
        return runs.take_turns(
            candidates,
            rounds,
            run_one or self.run_afresh,
            lambda candidate: candidate.is_peer,
            lambda number: self.progress(f"redis, {title}: round {number} of {rounds}"),
        )

    def run_afresh(self, candidate: Candidate) -> RedisOutcome:
        """Run one candidate on an empty server."""
        self.server.empty()
        return self.run(candidate)

    def run(self, candidate: Candidate) -> RedisOutcome:
        """Run one candidate."""
        if candidate.is_peer and self.peers is None:
            raise runs.CandidateCrashedError(runs.NOT_AVAILABLE)
        python, module = (self.peers, "redis_peer") if candidate.is_peer else (sys.executable, "redis_candidates")
        line = runs.run_process(str(python), module, candidate.subject, self.server.url, json.dumps(candidate.job))
        return cast(RedisOutcome, runs.read_outcome(line, candidate.subject))


def _adding(bench: _Bench) -> list[Row]:
    rows: list[Row] = []
    for adders, sessions, reach in (
        (1, 100, 1.8), (10, 100, 4.5), (100, 100, 7.0), (1_000, 100, 10.0), (1_000, 10_000, 7.0)
    ):  # fmt: skip
        events = bench.events(5_000 if adders == 1 else 20_000)
        ours = Candidate("ours", events=events, sessions=sessions, adders=adders)
        floor = replace(ours, subject="floor_alone" if adders == 1 else "floor")
        peer = replace(ours, subject=_PEER)
        results = bench.measure(f"{adders:,} adders, {sessions:,} sessions", [ours, floor, peer])
        table = Table(results, results.rate, "events/s")
        work = f"add, {adders:,} adder{'s' if adders > 1 else ''}, {sessions:,} sessions"
        rows.append(table.row(f"{work} / autoplay-sdk", ours, peer, at_least=reach))
        rows.append(table.row(f"{work} / pipelines on redis-py", ours, floor))
        for name, figure in (("p50", results.p50), ("p99", results.p99)) if adders == 1 else ():
            latency = Table(results, figure, "us", inverse=True)
            rows.append(latency.row(f"{work}, {name} / autoplay-sdk", ours, peer))
            rows.append(latency.row(f"{work}, {name} / pipelines on redis-py", ours, floor))
    return rows


def _draining(bench: _Bench) -> list[Row]:
    rows: list[Row] = []
    events = bench.events(10_000)
    for sessions, reach in ((100, 3.5), (10_000, 1.6)):
        ours = Candidate("ours", events=events, sessions=sessions, repeats=3)
        floor, peer = replace(ours, subject="floor"), replace(ours, subject=_PEER)
        results = bench.measure(f"drain {events:,} events in {sessions:,} sessions", [ours, floor, peer])
        table = Table(results, _drained_by(results), "events/s")
        work = f"drain {events:,} events, {sessions:,} sessions"
        rows.append(table.row(f"{work} / autoplay-sdk", ours, peer, at_least=reach))
        rows.append(table.row(f"{work} / pipelines on redis-py", ours, floor))
    return rows


def _both_at_once(bench: _Bench) -> list[Row]:
    ours = Candidate("ours", "both at once", events=bench.events(20_000), sessions=10_000)
    floor, peer = replace(ours, subject="floor"), replace(ours, subject=_PEER)
    results = bench.measure("adding while draining", [ours, floor, peer])
    table = Table(results, _drained_by(results), "events/s")
    work = "10 adders while draining, 10,000 sessions"
    return [
        table.row(f"{work} / autoplay-sdk", ours, peer, at_least=3.0),
        table.row(f"{work} / pipelines on redis-py", ours, floor),
    ]


def _client_memory(bench: _Bench) -> list[Row]:
    """Two processes: one fills, the other drains and watches itself grow."""
    many, few = bench.events(100_000), bench.events(10_000)

    def candidate(events: int, page: int, subject: str = "ours") -> Candidate:
        return Candidate(subject, "empty", events=events, page=page)

    def fill_and_empty(candidate: Candidate) -> RedisOutcome:
        bench.run_afresh(replace(candidate, work="fill", adders=10 if candidate.is_peer else 100))
        return bench.run(candidate)

    pages = (100, 500, 2_000)
    results = bench.measure(
        "client memory",
        [candidate(events, page) for page in (*pages, 0) for events in (few, many)] + [candidate(few, 0, _PEER)],
        fill_and_empty,
    )

    def megabytes(candidate: Candidate) -> float:
        return results.median(candidate, lambda outcome: outcome["megabytes"])

    table = Table(results, megabytes, "MB")
    rows = [
        table.row(
            f"client memory, drain_pages({page}) of {many:,} events / of {few:,}",
            candidate(many, page),
            candidate(few, page),
            at_most=_FLAT,
        )
        for page in pages
    ]
    rows.append(
        table.row(f"client memory, drain() of {many:,} events / of {few:,}", candidate(many, 0), candidate(few, 0))
    )
    # How much longer pages take than everything at once.
    drained = Table(results, _drained_by(results), "events/s")
    rows += [
        drained.row(f"drain_pages({page}) of {many:,} events / drain()", candidate(many, page), candidate(many, 0))
        for page in pages
    ]
    rows.append(
        table.row(
            f"client memory, drain() of {few:,} events / autoplay-sdk", candidate(few, 0), candidate(few, 0, _PEER)
        )
    )
    return rows


def _server_memory(bench: _Bench) -> list[Row]:
    events = bench.events(20_000)
    filler = Candidate("ours", "fill", events=events)
    floor, peer = replace(filler, subject="floor"), replace(filler, subject=_PEER)
    compact, with_ids = replace(filler, subject="ours_compact"), replace(filler, subject="ours_with_ids")
    before: dict[Candidate, list[float]] = {}

    def fill(candidate: Candidate) -> RedisOutcome:
        bench.server.empty()
        empty = bench.server.used_memory()
        outcome = bench.run(candidate)
        before.setdefault(candidate, []).append((bench.server.used_memory() - empty) / candidate.events / 1000)
        return outcome

    results = bench.measure("memory of Redis", [filler, compact, with_ids, floor, peer], fill)

    def kilobytes(candidate: Candidate) -> float:
        figures = sorted(before[candidate])
        return figures[len(figures) // 2]

    table = Table(results, kilobytes, "kB")
    work = "memory of Redis, an event of 2 kB, 100 sessions"
    return [
        _within(table.row(f"{work}, JSON / pipelines on redis-py", filler, floor), 2.3),
        table.row(f"{work}, JSON / autoplay-sdk", filler, peer),
        _within(table.row(f"{work}, compact / pipelines on redis-py", compact, floor), 1.3),
        table.row(f"{work}, JSON, with event ids / pipelines on redis-py", with_ids, floor),
    ]


def _within(row: Row, most: float) -> Row:
    """Give a row the reach that ours itself is at most so much."""
    return replace(row, reach=f"<= {most:g} {row.unit}", met=row.ours <= most and not row.lost)


def _growth(bench: _Bench) -> list[Row]:
    """What an event costs when there are more of them, and when there are more sessions: to the same work again."""
    rows: list[Row] = []
    sizes = [bench.events(number) for number in (1_000, 10_000, 100_000)]
    for what, per_event, reach in (
        ("in as many sessions", lambda size: size, _LOGARITHMIC),
        ("in 100 sessions", lambda _size: 100, _LOGARITHMIC),
    ):
        candidates = [
            Candidate("ours", events=size, sessions=per_event(size), adders=100, repeats=max(1, sizes[1] // size))
            for size in sizes
        ]
        results = bench.measure(f"growth {what}", candidates)
        least = candidates[0]
        for verb, rate in (("add", _added_by(results)), ("drain", _drained_by(results))):
            table = Table(results, partial(_cost, rate), "us/event")
            for each in candidates[1:]:
                work = f"{verb} {each.events:,} events {what} / {least.events:,}"
                rows.append(table.row(work, each, least, at_most=reach if each is candidates[-1] else None))
    return rows


def _cost(rate: Callable[[Candidate], float], candidate: Candidate) -> float:
    """What one event costs, in microseconds."""
    return 1e6 / rate(candidate)


def _added_by(results: Results) -> Callable[[Candidate], float]:
    """Events a second that were stored, the median of the rounds."""
    return lambda candidate: results.median(candidate, lambda outcome: outcome["received"] / outcome["seconds"])


def _drained_by(results: Results) -> Callable[[Candidate], float]:
    """Events a second that came out, the median of the rounds."""
    return lambda candidate: results.median(candidate, lambda outcome: outcome["received"] / outcome["drain_seconds"])
