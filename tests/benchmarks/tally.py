"""
What every candidate process does alike: keep to its core, count what arrives, say so in one line of JSON, and be gone.

Only the standard library is needed, because the peers' processes import this too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypedDict

__all__ = ["Outcome", "Tally", "cores", "keep_to_core", "main", "percentile", "report_when_done"]

_QUIET: Final = 5.0  # seconds without an event after which the rest is lost
_PATIENCE: Final = 60.0  # seconds for the first event
_LOOK: Final = 0.05
_WARM_UP: Final = 50  # events whose latency is not counted


class Outcome(TypedDict):
    """What one candidate process reports. Times are in seconds, latencies in microseconds."""

    expected: int
    received: int
    seconds: float
    p50: float
    p99: float
    wrong: str


class Tally:
    """
    Counts events and takes the time from the first to the last.

    Args:
        expected: how many events the server sends.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.received = 0
        self.first = 0.0
        self.last = 0.0
        #: Seconds from sending to receiving, of each event, where that is measured.
        self.latencies: list[float] = []
        #: What was wrong with the events, "" for nothing.
        self.wrong = ""

    def begin(self) -> None:
        """Start the clock earlier than at the first `take`; only the first call counts."""
        self.first = self.first or time.perf_counter()

    def take(self) -> None:
        """Count one event; every candidate pays for this alike."""
        self.last = time.perf_counter()
        self.received += 1
        if not self.first:
            self.first = self.last

    def reach(self, received: int) -> None:
        """Say how many events there are by now, where pieces of them are counted."""
        self.last = time.perf_counter()
        self.received = received
        if not self.first:
            self.first = self.last

    def take_sent_at(self, sent_at: float) -> None:
        """Count one event that was sent at this time of the system's monotonic clock."""
        self.latencies.append(time.monotonic() - sent_at)
        self.take()

    def outcome(self) -> Outcome:
        """What there is to report."""
        latencies = sorted(self.latencies[min(_WARM_UP, len(self.latencies) // 4) :])
        return Outcome(
            expected=self.expected,
            received=self.received,
            seconds=self.last - self.first,
            p50=percentile(latencies, 0.50) * 1e6,
            p99=percentile(latencies, 0.99) * 1e6,
            wrong=self.wrong,
        )


def percentile(ordered: list[float], share: float) -> float:
    """The value below which *share* of the ordered values lie; 0 when there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def report_when_done(tally: Tally, check: Callable[[], str] = str) -> None:
    """
    Print the outcome and end the process once everything is here, or nothing has come for some time.

    The process ends hard, because some candidates cannot be stopped while their server is silent.

    Args:
        check: called at the end; says what is wrong with the candidate's own account, "" for nothing.
    """
    threading.Thread(target=_watch, args=(tally, check), daemon=True).start()


def main(candidates: Sequence[Callable[[str, Tally], None]]) -> None:
    """Run the candidate that the command line names: NAME URL EVENTS."""
    name, url, events = sys.argv[1:4]
    keep_to_core(cores()[0])
    tally = Tally(int(events))
    {candidate.__name__: candidate for candidate in candidates}[name](url, tally)
    time.sleep(_PATIENCE)  # the candidate returned before everything was here: the watch reports and ends the process


def cores() -> tuple[set[int], set[int]]:
    """The core for the candidate and the one for the server; the same two sets when there is only one."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    available = sorted(os.sched_getaffinity(0))
    return {available[0]}, {available[-1]}


def keep_to_core(core: set[int]) -> None:
    """Let this process run on *core* only, where the system can do that."""
    if core:
        os.sched_setaffinity(0, core)


def _watch(tally: Tally, check: Callable[[], str]) -> None:
    begun = quiet_since = time.monotonic()
    before = 0
    while tally.received < tally.expected:
        time.sleep(_LOOK)
        now = time.monotonic()
        if tally.received != before:
            before, quiet_since = tally.received, now
        if now - quiet_since > (_QUIET if before else _PATIENCE) or (not before and now - begun > _PATIENCE):
            break
    time.sleep(_LOOK)  # a duplicate would come now
    try:
        tally.wrong = tally.wrong or check()
    except Exception as error:  # or the process would never end
        tally.wrong = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(tally.outcome()) + "\n")
    sys.stdout.flush()
    os._exit(0)
