"""
The clients against their floors and their peers.

Each candidate runs in a process of its own on one core, the server on another; the candidates take turns, round by round, so
that whatever else the machine does hits all alike. A figure is the median of its rounds.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, cast

from tests.benchmarks.report import Row
from tests.benchmarks.server import running_server, stream_path
from tests.benchmarks.tally import Outcome

__all__ = ["CandidateCrashedError", "run"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_LONGEST: Final = 180.0  # seconds for one process

_NOT_AVAILABLE: Final = "not available"

#: glibc gives memory back to the system and asks for it again at every read of 256 kB, or does not, as the layout of the heap
#: happens to be: 80 page faults a read, 2 us an event. No candidate shall win or lose by that luck.
STEADY_MALLOC: Final = {
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


class CandidateCrashedError(Exception):
    """A process of ours ended without a result, or found its events or its own account wrong."""


@dataclass(frozen=True)
class Candidate:
    """One process to run: which function, on what stream."""

    name: str
    events: int
    sessions: int = 50
    rate: float = 0.0
    is_peer: bool = False


class Results:
    """The outcomes of all rounds, by candidate."""

    def __init__(self) -> None:
        self._outcomes: dict[Candidate, list[Outcome]] = {}
        self._failed: dict[Candidate, str] = {}

    def add(self, candidate: Candidate, outcome: Outcome) -> None:
        """Note one round."""
        self._outcomes.setdefault(candidate, []).append(outcome)

    def fail(self, candidate: Candidate, why: str) -> None:
        """Note that a peer cannot be run."""
        self._failed[candidate] = why

    def has(self, candidate: Candidate) -> bool:
        """Whether there is anything to show."""
        return candidate in self._outcomes

    def why_not(self, candidate: Candidate) -> str:
        """Why there is nothing to show."""
        return self._failed.get(candidate, _NOT_AVAILABLE)

    def rate(self, candidate: Candidate) -> float:
        """Events a second, the median of the rounds."""
        return self._median(candidate, lambda outcome: (outcome["received"] - 1) / outcome["seconds"])

    def milliseconds(self, candidate: Candidate) -> float:
        """The whole run, the median of the rounds."""
        return self._median(candidate, lambda outcome: outcome["seconds"] * 1e3)

    def p50(self, candidate: Candidate) -> float:
        """Median latency in microseconds, the median of the rounds."""
        return self._median(candidate, lambda outcome: outcome["p50"])

    def p99(self, candidate: Candidate) -> float:
        """The 99th percentile of the latency in microseconds, the median of the rounds."""
        return self._median(candidate, lambda outcome: outcome["p99"])

    def lost(self, candidate: Candidate) -> int:
        """Events lost in all rounds together; a duplicate counts too."""
        return sum(abs(outcome["expected"] - outcome["received"]) for outcome in self._outcomes.get(candidate, []))

    def share_lost(self, candidate: Candidate) -> float:
        """The same as a share of what was sent."""
        return self.lost(candidate) / sum(outcome["expected"] for outcome in self._outcomes[candidate])

    def _median(self, candidate: Candidate, figure: Callable[[Outcome], float]) -> float:
        return statistics.median(figure(outcome) for outcome in self._outcomes[candidate])


Figure: TypeAlias = Callable[[Candidate], float]


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
        CandidateCrashedError: a floor or one of our own clients did not come to its end, or its account is wrong.
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
        results = Results()
        runnable = list(candidates)
        for number in range(self.rounds):
            self.progress(f"{title}: round {number + 1} of {self.rounds}")
            for candidate in list(runnable):
                try:
                    results.add(candidate, self._run_one(candidate))
                except CandidateCrashedError as error:
                    if not candidate.is_peer:
                        raise
                    results.fail(candidate, str(error))
                    runnable.remove(candidate)
        return results

    def _run_one(self, candidate: Candidate) -> Outcome:
        if candidate.is_peer and self.peers is None:
            raise CandidateCrashedError(_NOT_AVAILABLE)
        python, module = (self.peers, "peer_candidates") if candidate.is_peer else (sys.executable, "candidates")
        path = stream_path(events=candidate.events, sessions=candidate.sessions, rate=candidate.rate)
        command = [
            str(python), "-m", f"tests.benchmarks.{module}", candidate.name, self.base + path, str(candidate.events)
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                cwd=_ROOT,
                env=os.environ | STEADY_MALLOC,
                capture_output=True,
                text=True,
                timeout=_LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CandidateCrashedError(f"{candidate.name} did not end within {_LONGEST:g} s") from error
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise CandidateCrashedError(f"{candidate.name} ended with code {done.returncode}: {reason}")
        outcome = cast(Outcome, json.loads(lines[-1]))
        if outcome["wrong"] and outcome["received"] == outcome["expected"]:
            raise CandidateCrashedError(f"{candidate.name}: {outcome['wrong']}")
        if outcome["received"] < 2:
            raise CandidateCrashedError(f"{candidate.name} received {outcome['received']} events")
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
    table = _Table(results, results.rate, "events/s")
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
        table = _Table(results, figure, "us")
        rows.append(table.row(f"latency {name} at 500 events/s, async / asyncio socket", ours, floor))
        rows.append(table.row(f"latency {name} at 500 events/s, async / autoplay-sdk", ours, autoplay, at_most=0.75))
    return rows


def _slow_callback(bench: _Bench) -> list[Row]:
    floor, ours = Candidate("one_after_the_other", 1_000), Candidate("ours_slow_callback", 1_000)
    autoplay, autoplay_sync = _peer("autoplay_slow_callback", 1_000), _peer("autoplay_sync_slow_callback", 1_000)
    results = bench.measure("slow callback", [floor, ours, autoplay, autoplay_sync])
    table = _Table(results, results.milliseconds, "ms", inverse=True)
    return [
        table.row("1,000 events of 50 sessions, callback sleeps 1 ms / one after the other", ours, floor, at_least=20),
        table.row("the same / autoplay-sdk AsyncConnectorClient", ours, autoplay),
        table.row("the same / autoplay-sdk ConnectorClient, its own options", ours, autoplay_sync),
    ]


@dataclass(frozen=True)
class _Table:
    """Makes rows of one figure. With *inverse* the ratio says how many times less ours is than the floor."""

    results: Results
    figure: Figure
    unit: str
    inverse: bool = False

    def row(
        self,
        work: str,
        ours: Candidate,
        floor: Candidate,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Row:
        """One comparison; without a reach it is for information."""
        own = self.figure(ours)
        reach = "" if at_least is at_most else (f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}")
        lost = self.results.lost(ours)
        if not self.results.has(floor):
            note = self.results.why_not(floor) + (f"; reach {reach}" if reach else "")
            return Row(work, own, math.nan, self.unit, math.nan, "", False, lost, note)
        against = self.figure(floor)
        ratio = against / own if self.inverse else own / against
        met = (at_least is None or ratio >= at_least) and (at_most is None or ratio <= at_most) and not lost
        note = f"it lost {self.results.share_lost(floor):.0%}" if self.results.lost(floor) else ""
        return Row(work, own, against, self.unit, ratio, reach, met, lost, note)


def _peer(name: str, events: int, *, rate: float = 0.0) -> Candidate:
    return Candidate(name, events, rate=rate, is_peer=True)
