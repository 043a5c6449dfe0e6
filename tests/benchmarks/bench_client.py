"""
The clients against their floors and their peers.

Each candidate runs in a process of its own on one core, the server on another; the candidates take turns, round by round, so
that whatever else the machine does hits all alike. A figure is the median of its rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from tests.benchmarks import runs
from tests.benchmarks.report import Row
from tests.benchmarks.server import running_server, stream_path
from tests.benchmarks.tally import Outcome

__all__ = ["run"]


@dataclass(frozen=True)
class Candidate:
    """One process to run: which function, on what stream."""

    name: str
    events: int
    sessions: int = 50
    rate: float = 0.0
    is_peer: bool = False


Results: TypeAlias = runs.Results[Candidate, Outcome]
Table: TypeAlias = runs.Table[Candidate, Outcome]


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
        quick: two rounds of fewer events: to see that everything works, not for figures to quote.
        rounds: how often each candidate runs; default 5, or 2 when quick.
        peers: the Python that has the peers installed; None leaves them out.
        progress: hears of each round.

    Raises:
        runs.CandidateCrashedError: a floor or one of our own clients did not come to its end, or its account is wrong.
    """
    bench = _Bench(rounds=rounds or (2 if quick else 5), peers=peers, progress=progress or (lambda _text: None))
    many = 10_000 if quick else 40_000
    paced = 500 if quick else 2_000
    with running_server() as base:
        bench.base = base
        return [*_throughput(bench, many), *_latency(bench, paced), *_slow_callback(bench)]


@dataclass
class _Bench:
    rounds: int
    peers: Path | None
    progress: Callable[[str], object]
    base: str = ""

    def measure(self, title: str, candidates: Sequence[Candidate]) -> Results:
        """Run the candidates in turn, round by round."""
        return runs.take_turns(
            candidates,
            self.rounds,
            self._run_one,
            lambda candidate: candidate.is_peer,
            lambda number: self.progress(f"{title}: round {number} of {self.rounds}"),
        )

    def _run_one(self, candidate: Candidate) -> Outcome:
        if candidate.is_peer and self.peers is None:
            raise runs.CandidateCrashedError(runs.NOT_AVAILABLE)
        python, module = (self.peers, "peer_candidates") if candidate.is_peer else (sys.executable, "candidates")
        path = stream_path(events=candidate.events, sessions=candidate.sessions, rate=candidate.rate)
        line = runs.run_process(str(python), module, candidate.name, self.base + path, str(candidate.events))
        outcome = cast(Outcome, runs.read_outcome(line, candidate.name))
        if outcome["received"] < 2:
            raise runs.CandidateCrashedError(f"{candidate.name} received {outcome['received']} events")
        return outcome


def _throughput(bench: _Bench, events: int) -> list[Row]:
    floor = Candidate("httpx_raw", events * 3 // 2)
    ours, ours_sync = Candidate("ours_async", events), Candidate("ours_sync", events)
    default, quick = Candidate("ours_async_default", events), Candidate("ours_sync_quick", events)
    one, many = Candidate("ours_async", events, sessions=1), Candidate("ours_async", events, sessions=10_000)
    buffer = Candidate("ours_into_buffer", events)
    autoplay, autoplay_sync = _peer("autoplay_async", events), _peer("autoplay_sync", events)
    untyped, httpx_sse = _peer("launchdarkly_json", events), _peer("httpx_sse_json", events)
    results = bench.measure(
        "throughput",
        [floor, ours, autoplay, ours_sync, autoplay_sync, one, many, default, quick, buffer, untyped, httpx_sse],
    )
    table = Table(results, results.rate, "events/s")
    return [
        table.row("async client, counting callback / httpx aiter_raw", ours, floor, at_least=0.47),
        table.row("async client / autoplay-sdk AsyncConnectorClient", ours, autoplay, at_least=1.8),
        table.row("async client / launchdarkly-eventsource + json.loads, untyped", ours, untyped),
        table.row("async client / httpx-sse + json.loads, untyped", ours, httpx_sse),
        table.row("async client, 1 session / httpx aiter_raw", one, floor),
        table.row("async client, 10,000 sessions / httpx aiter_raw", many, floor),
        table.row("async client, every option at its default / httpx aiter_raw", default, floor),
        table.row("async client into(EventBuffer()) / httpx aiter_raw", buffer, floor),
        table.row("sync client, counting callback in a thread / httpx aiter_raw", ours_sync, floor, at_least=0.45),
        table.row("sync client / autoplay-sdk ConnectorClient", ours_sync, autoplay_sync, at_least=1.4),
        table.row("sync client, callback declared quick / httpx aiter_raw", quick, floor),
    ]


def _latency(bench: _Bench, events: int) -> list[Row]:
    rate = 500.0
    floor, ours = Candidate("socket_latency", events, rate=rate), Candidate("ours_latency", events, rate=rate)
    autoplay = _peer("autoplay_latency", events, rate=rate)
    results = bench.measure("latency", [floor, ours, autoplay])
    rows: list[Row] = []
    for name, figure in (("p50", results.p50), ("p99", results.p99)):
        table = Table(results, figure, "us")
        rows.append(table.row(f"latency {name} at 500 events/s, async / asyncio socket", ours, floor))
        rows.append(table.row(f"latency {name} at 500 events/s, async / autoplay-sdk", ours, autoplay, at_most=0.75))
    return rows


def _slow_callback(bench: _Bench) -> list[Row]:
    floor, ours = Candidate("one_after_the_other", 1_000), Candidate("ours_slow_callback", 1_000)
    autoplay, autoplay_sync = _peer("autoplay_slow_callback", 1_000), _peer("autoplay_sync_slow_callback", 1_000)
    results = bench.measure("slow callback", [floor, ours, autoplay, autoplay_sync])
    table = Table(results, results.milliseconds, "ms", inverse=True)
    return [
        table.row("1,000 events of 50 sessions, callback sleeps 1 ms / one after the other", ours, floor, at_least=20),
        table.row("the same / autoplay-sdk AsyncConnectorClient", ours, autoplay),
        table.row("the same / autoplay-sdk ConnectorClient, its own options", ours, autoplay_sync),
    ]


def _peer(name: str, events: int, *, rate: float = 0.0) -> Candidate:
    return Candidate(name, events, rate=rate, is_peer=True)
