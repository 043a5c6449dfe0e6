"""
The work that every buffer in Redis is given, and how it is measured: the same code for ours, the floor and the peer.

A process of its own runs one job, which is `python -m tests.benchmarks.redis_candidates SUBJECT URL JOB` (or `redis_peer`,
by the Python of .venv-bench) with the job as JSON, and prints one line of JSON, see `RedisOutcome`. Only the standard library
is needed. Payloads are made before the clock starts, each buffer's from the same bytes; what was added is drained and
compared with what came out after it stops.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypedDict, runtime_checkable

from tests.benchmarks.events import event_texts
from tests.benchmarks.tally import Outcome, cores, keep_to_core, percentile

__all__ = ["PREFIX", "InBatches", "Job", "RedisOutcome", "Subject", "main"]

#: Is in every key of every candidate, so that a server that is not ours can be tidied up.
PREFIX: Final = "connector-sdk-benchmark"

_WARM_UP: Final = 1_000  # events that go through before anything is measured
_PAUSE: Final = 0.02  # seconds between two drains while others add
_STATUS: Final = Path("/proc/self/status")
_CLEAR_REFS: Final = Path("/proc/self/clear_refs")


class Job(TypedDict):
    """What is to be done; see `Works`."""

    work: str
    events: int
    sessions: int
    adders: int
    repeats: int
    page: int  #: 0: everything at once


class RedisOutcome(Outcome):
    """What one job reports: `seconds`, `p50` and `p99` are those of adding. Events dropped are not received."""

    drain_seconds: float
    megabytes: float  #: by which the process grew at most


class Subject(Protocol):
    """A buffer, used as its own documentation says. Payloads are its own."""

    def payload(self, text: str) -> object:
        """Make a payload of the JSON of an event."""

    def time_of(self, payload: object) -> float:
        """Return its `forwarded_at`."""

    async def add(self, payload: object) -> None:
        """Store one event."""

    async def drain(self) -> Sequence[object]:
        """Take everything out, in order of time."""

    def drain_pages(self, page: int) -> AsyncIterator[Sequence[object]]:
        """Take everything out, page by page."""

    async def finish(self) -> str:
        """Close it; say what is wrong with its own account, "" for nothing."""


@runtime_checkable
class InBatches(Protocol):
    """A floor that is given at once what so many adders would add at the same time."""

    def add_batch(self, payloads: Sequence[object]) -> None:
        """Store them."""


class Runner:
    """Does jobs with one subject."""

    def __init__(self, subject: Subject, job: Job) -> None:
        self._subject = subject
        self._job = job
        self._latencies: list[float] = []
        self._expected = 0
        self._received = 0
        self._add_seconds = 0.0
        self._drain_seconds = 0.0
        self._megabytes = 0.0
        self._wrong = ""

    async def run(self) -> RedisOutcome:
        """Do the job and report."""
        works: Mapping[str, Callable[[], Awaitable[None]]] = {
            "there and back": self._there_and_back,
            "both at once": self._both_at_once,
            "fill": self._fill,
            "empty": self._empty,
        }
        await works[self._job["work"]]()
        wrong = await self._subject.finish()
        latencies = sorted(self._latencies)
        return RedisOutcome(
            expected=self._expected,
            received=self._received,
            seconds=self._add_seconds,
            p50=percentile(latencies, 0.50) * 1e6,
            p99=percentile(latencies, 0.99) * 1e6,
            wrong=self._wrong or wrong,
            drain_seconds=self._drain_seconds,
            megabytes=self._megabytes,
        )

    async def _there_and_back(self) -> None:
        """Add, then drain: each by itself, one after the other, `repeats` times."""
        await self._warm_up()
        for _ in range(self._job["repeats"]):
            payloads = self._payloads(self._job["events"])
            _tidy()
            await self._add_all(payloads)
            gc.collect()
            started = time.perf_counter()
            drained = await self._subject.drain()
            self._drain_seconds += time.perf_counter() - started
            await self._compare(payloads, list(drained))
            del payloads, drained  # or they are freed while the next ones are measured

    async def _both_at_once(self) -> None:
        """Add, and drain every now and then meanwhile; `drain_seconds` is until all that was added has come out."""
        await self._warm_up()
        payloads = self._payloads(self._job["events"])
        drained: list[object] = []
        _tidy()
        started = time.perf_counter()
        adding = asyncio.create_task(self._add_all(payloads))
        while not adding.done():
            drained += await self._subject.drain()
            await asyncio.sleep(_PAUSE)
        drained += await self._subject.drain()
        self._drain_seconds += time.perf_counter() - started
        await adding
        await self._compare(payloads, drained, in_order=False)

    async def _fill(self) -> None:
        """Add and leave everything there."""
        payloads = self._payloads(self._job["events"])
        await self._add_all(payloads)
        self._expected = self._received = len(payloads)

    async def _empty(self) -> None:
        """Drain what another process has left, and see how this one grows."""
        page, events = self._job["page"], self._job["events"]
        gc.collect()
        before = _reset_peak()
        started = time.perf_counter()
        self._expected = events
        if page:
            async for payloads in self._subject.drain_pages(page):
                self._received += len(payloads)
        else:
            self._received = len(await self._subject.drain())
        self._drain_seconds = time.perf_counter() - started
        self._megabytes = _status("VmHWM") - before

    # -- parts

    def _payloads(self, events: int) -> list[object]:
        texts = event_texts(events, self._job["sessions"], first_time=time.time() - 5.0)
        return [self._subject.payload(text) for text in texts]

    async def _warm_up(self) -> None:
        """Open connections, load scripts, let the interpreter see the code."""
        await self._add_all(self._payloads(min(_WARM_UP, self._job["events"])))
        await self._subject.drain()
        self._latencies.clear()
        self._add_seconds = 0.0

    async def _add_all(self, payloads: Sequence[object]) -> None:
        if isinstance(self._subject, InBatches):
            self._add_batches(self._subject, payloads)
            return
        feed = iter(payloads)
        add, note = self._subject.add, self._latencies.append

        async def adder() -> None:
            for payload in feed:
                begun = time.perf_counter()
                await add(payload)
                note(time.perf_counter() - begun)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._job["adders"]):
                group.create_task(adder())
        self._add_seconds += time.perf_counter() - started

    def _add_batches(self, subject: InBatches, payloads: Sequence[object]) -> None:
        adders = self._job["adders"]
        started = time.perf_counter()
        for first in range(0, len(payloads), adders):
            begun = time.perf_counter()
            subject.add_batch(payloads[first : first + adders])
            self._latencies.append(time.perf_counter() - begun)
        self._add_seconds += time.perf_counter() - started

    async def _compare(self, payloads: Sequence[object], drained: list[object], *, in_order: bool = True) -> None:
        """Count what came out: events are told apart by their times. What a second drain finds counts, too."""
        times = [self._subject.time_of(payload) for payload in drained]
        if in_order and times != sorted(times):
            self._wrong = "the events did not come in order"
        times += [self._subject.time_of(payload) for payload in await self._subject.drain()]
        if len(set(times)) != len(times):
            self._wrong = "an event came twice"
        self._expected += len(payloads)
        self._received += len({self._subject.time_of(payload) for payload in payloads} & set(times))


def main(subjects: Mapping[str, Callable[[str], Subject]]) -> None:
    """Do the job that the command line names: SUBJECT URL JOB."""
    name, url, job = sys.argv[1:4]
    keep_to_core(cores()[0])
    logging.getLogger().addHandler(logging.NullHandler())  # a line for each drop is not what is measured

    async def run() -> RedisOutcome:
        return await Runner(subjects[name](url), json.loads(job)).run()

    print(json.dumps(asyncio.run(run())))


def _tidy() -> None:
    """What is there already is of no interest to the garbage collector: it shall not be slower for who made more of it."""
    gc.collect()
    gc.freeze()


def _reset_peak() -> float:
    """Let the peak of memory begin now; return what is in use, in MB. NaN where the system cannot tell."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return float("nan")
    return _status("VmRSS")


def _status(field: str) -> float:
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 / 1e6 if found else float("nan")
