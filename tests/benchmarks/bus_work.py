"""
The work that every bus is given, and how it is measured: the same code for ours, the floors and the peers.

A process of its own does one job, `python -m tests.benchmarks.bus_candidates SUBJECT URL JOB` (or `bus_peer`, by the Python
of .venv-bench) with the job as JSON, and prints one line of JSON, see `tally.Outcome`. Only the standard library is needed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypedDict

from tests.benchmarks.tally import Outcome, cores, keep_to_core, percentile

__all__ = ["GROUP", "PREFIX", "TOPIC", "Job", "Seen", "Subject", "main", "payload_of"]

#: Is in every key of every candidate, so that a server that is not ours can be tidied up.
PREFIX: Final = "connector-sdk-benchmark"
TOPIC: Final = "orders:placed"
GROUP: Final = "billing"

_WARM_UP: Final = 200
_QUIET: Final = 5.0  # seconds without an event after which the rest is lost
_RATE: Final = 500.0  # events a second where latency is measured
_NOTE: Final = "the quick brown fox jumps over the lazy dog " * 3

#: Called with the number of each event that a handler got.
Seen = Callable[[int], None]


def payload_of(number: int) -> dict[str, object]:
    """What is published: some 250 bytes of JSON."""
    return {"number": number, "customer": f"c-{number % 977}", "total": number * 0.25, "note": _NOTE, "paid": True}


class Job(TypedDict):
    """What is to be done; see `Works`."""

    work: str
    events: int
    publishers: int
    batch: int
    rate: float


class Subject(Protocol):
    """A bus, used as its own documentation says."""

    async def open(self) -> None:
        """Connect."""

    def event(self, number: int) -> object:
        """Make an event, before the clock starts."""

    async def publish(self, events: Sequence[object]) -> None:
        """Publish these in one call."""

    async def consume(self, seen: Seen) -> None:
        """Handle what comes from now on, or what is there if nothing was read before; returns when it is ready."""

    async def close(self) -> None:
        """End it."""


class Runner:
    """Does one job with one subject."""

    def __init__(self, subject: Subject, job: Job) -> None:
        self._subject = subject
        self._job = job
        self._counts: dict[int, int] = {}
        self._last = 0.0
        self._latencies: list[float] = []
        self._sent_at: dict[int, float] = {}
        self._all_here = asyncio.Event()
        self._expected = 0

    async def run(self) -> Outcome:
        """Do the job and report."""
        works = {
            "publish": self._publish,
            "through": self._through,
            "consume": self._consume,
            "latency": self._latency,
        }
        await self._subject.open()
        seconds = await works[self._job["work"]]()
        await self._subject.close()
        latencies = sorted(self._latencies)
        received = len(self._counts) if self._job["work"] != "publish" else self._job["events"]
        return Outcome(
            expected=self._job["events"],
            received=received,
            seconds=seconds,
            p50=percentile(latencies, 0.50) * 1e6,
            p99=percentile(latencies, 0.99) * 1e6,
            wrong="",
        )

    async def _publish(self) -> float:
        """One publisher, in calls of `batch` events."""
        await self._send(self._calls(_WARM_UP, first=-_WARM_UP), 1)
        calls = self._calls(self._job["events"])
        _tidy()
        started = time.perf_counter()
        await self._send(calls, 1)
        return time.perf_counter() - started

    async def _through(self) -> float:
        """From publishers to a handler, both at work at the same time."""
        await self._subject.consume(self._see)
        await self._warm_up()
        calls = self._calls(self._job["events"])
        self._expect(self._job["events"])
        _tidy()
        started = time.perf_counter()
        await self._send(calls, self._job["publishers"])
        await self._wait()
        return self._last - started

    async def _consume(self) -> float:
        """Handle what lies there."""
        await self._send(self._calls(self._job["events"], batch=100), 1)
        self._expect(self._job["events"])
        _tidy()
        started = time.perf_counter()
        await self._subject.consume(self._see)
        await self._wait()
        return self._last - started

    async def _latency(self) -> float:
        """One event after the other, at a pace."""
        await self._subject.consume(self._see_timed)
        await self._warm_up()
        self._latencies.clear()
        self._expect(self._job["events"])
        _tidy()
        events = [self._subject.event(number) for number in range(self._job["events"])]
        started = time.perf_counter()
        for number, event in enumerate(events):
            due = started + number / self._job["rate"]
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self._sent_at[number] = time.perf_counter()
            await self._subject.publish([event])
        await self._wait()
        return self._last - started

    # -- parts

    async def _warm_up(self) -> None:
        """Let the interpreter and the connections see the code: what comes of it is not counted."""
        self._expect(_WARM_UP)
        await self._send(self._calls(_WARM_UP, first=-_WARM_UP), 1)
        await self._wait()

    def _expect(self, events: int) -> None:
        self._counts = {}
        self._expected = events
        self._all_here.clear()

    def _calls(self, events: int, *, first: int = 0, batch: int = 0) -> list[list[object]]:
        size = batch or self._job["batch"]
        made = [self._subject.event(number) for number in range(first, first + events)]
        return [made[start : start + size] for start in range(0, events, size)]

    async def _send(self, calls: Sequence[Sequence[object]], publishers: int) -> None:
        feed = iter(calls)
        publish = self._subject.publish

        async def publisher() -> None:
            for call in feed:
                await publish(call)

        if publishers == 1:
            await publisher()
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(publishers):
                group.create_task(publisher())

    def _see(self, number: int) -> None:
        counts = self._counts
        counts[number] = counts.get(number, 0) + 1
        if len(counts) >= self._expected:
            self._last = time.perf_counter()
            self._all_here.set()

    def _see_timed(self, number: int) -> None:
        now = time.perf_counter()
        sent_at = self._sent_at.get(number)
        if sent_at is not None:
            self._latencies.append(now - sent_at)
        self._see(number)

    async def _wait(self) -> None:
        """Until all are here, or nothing has come for some time."""
        before = -1
        while not self._all_here.is_set() and len(self._counts) != before:
            before = len(self._counts)
            try:
                await asyncio.wait_for(self._all_here.wait(), _QUIET)
            except TimeoutError:
                self._last = time.perf_counter()


def _tidy() -> None:
    gc.collect()
    gc.freeze()


def main(subjects: Mapping[str, Callable[[str], Subject]]) -> None:
    """Do the job that the command line names: SUBJECT URL JOB."""
    name, url, job = sys.argv[1:4]
    logging.disable(logging.CRITICAL)
    keep_to_core(cores()[0])
    outcome = asyncio.run(Runner(subjects[name](url), json.loads(job)).run())
    sys.stdout.write(json.dumps(outcome) + "\n")
