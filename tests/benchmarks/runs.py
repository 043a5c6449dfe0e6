"""Candidates in processes of their own: how one is run, what all rounds gave, and the rows that are made of it."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from tests.benchmarks.report import Row
from tests.benchmarks.tally import Outcome

__all__ = ["NOT_AVAILABLE", "CandidateCrashedError", "Results", "Table", "read_outcome", "run_process", "take_turns"]

CandidateT = TypeVar("CandidateT", bound=Hashable)
OutcomeT = TypeVar("OutcomeT", bound=Outcome)

NOT_AVAILABLE: Final = "not available"

_ROOT: Final = Path(__file__).resolve().parents[2]
_LONGEST: Final = 180.0  # seconds for one process

#: glibc gives memory back to the system and asks for it again at every read of 256 kB, or does not, as the layout of the heap
#: happens to be: 80 page faults a read, 2 us an event. No candidate shall win or lose by that luck.
_STEADY_MALLOC: Final = {
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


class CandidateCrashedError(Exception):
    """A process of ours ended without a result, or found its events or its own account wrong."""


def run_process(python: str | Path, module: str, name: str, *arguments: str) -> str:
    """
    Run a candidate and return the last line that it printed.

    Raises:
        CandidateCrashedError: it took too long, failed, or printed nothing.
    """
    try:
        done = subprocess.run(
            [str(python), "-m", f"tests.benchmarks.{module}", name, *arguments],
            cwd=_ROOT,
            env=os.environ | _STEADY_MALLOC,
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CandidateCrashedError(f"{name} did not end within {_LONGEST:g} s") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CandidateCrashedError(f"{name} ended with code {done.returncode}: {reason}")
    return lines[-1]


def read_outcome(line: str, name: str) -> dict[str, object]:
    """Read what a candidate printed; raises CandidateCrashedError when all events came and something was wrong."""
    outcome: dict[str, object] = json.loads(line)
    if outcome["wrong"] and outcome["received"] == outcome["expected"]:
        raise CandidateCrashedError(f"{name}: {outcome['wrong']}")
    return outcome


class Results(Generic[CandidateT, OutcomeT]):
    """The outcomes of all rounds, by candidate."""

    def __init__(self) -> None:
        self._outcomes: dict[CandidateT, list[OutcomeT]] = {}
        self._failed: dict[CandidateT, str] = {}

    def add(self, candidate: CandidateT, outcome: OutcomeT) -> None:
        """Note one round."""
        self._outcomes.setdefault(candidate, []).append(outcome)

    def fail(self, candidate: CandidateT, why: str) -> None:
        """Note that a peer cannot be run."""
        self._failed[candidate] = why

    def has(self, candidate: CandidateT) -> bool:
        """Whether there is anything to show."""
        return candidate in self._outcomes

    def why_not(self, candidate: CandidateT) -> str:
        """Why there is nothing to show."""
        return self._failed.get(candidate, NOT_AVAILABLE)

    def rate(self, candidate: CandidateT) -> float:
        """Events a second, the median of the rounds."""
        return self.median(candidate, lambda outcome: (outcome["received"] - 1) / outcome["seconds"])

    def milliseconds(self, candidate: CandidateT) -> float:
        """The whole run, the median of the rounds."""
        return self.median(candidate, lambda outcome: outcome["seconds"] * 1e3)

    def p50(self, candidate: CandidateT) -> float:
        """Median latency in microseconds, the median of the rounds."""
        return self.median(candidate, lambda outcome: outcome["p50"])

    def p99(self, candidate: CandidateT) -> float:
        """The 99th percentile of the latency in microseconds, the median of the rounds."""
        return self.median(candidate, lambda outcome: outcome["p99"])

    def lost(self, candidate: CandidateT) -> int:
        """Events lost in all rounds together; a duplicate counts too."""
        return sum(abs(outcome["expected"] - outcome["received"]) for outcome in self._outcomes.get(candidate, []))

    def share_lost(self, candidate: CandidateT) -> float:
        """The same as a share of what was sent."""
        return self.lost(candidate) / sum(outcome["expected"] for outcome in self._outcomes[candidate])

    def median(self, candidate: CandidateT, figure: Callable[[OutcomeT], float]) -> float:
        """The median of a figure over the rounds."""
        return statistics.median(figure(outcome) for outcome in self._outcomes[candidate])


@dataclass(frozen=True)
class Table(Generic[CandidateT, OutcomeT]):
    """Makes rows of one figure. With *inverse* the ratio says how many times less ours is than the floor."""

    results: Results[CandidateT, OutcomeT]
    figure: Callable[[CandidateT], float]
    unit: str
    inverse: bool = False

    def row(
        self,
        work: str,
        ours: CandidateT,
        floor: CandidateT,
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


def take_turns(
    candidates: Sequence[CandidateT],
    rounds: int,
    run_one: Callable[[CandidateT], OutcomeT],
    is_peer: Callable[[CandidateT], bool],
    progress: Callable[[int], object],
) -> Results[CandidateT, OutcomeT]:
    """Run the candidates in turn, round by round. A peer that fails is left out from then on; ours must not fail."""
    results: Results[CandidateT, OutcomeT] = Results()
    runnable = list(candidates)
    for number in range(rounds):
        progress(number + 1)
        for candidate in list(runnable):
            try:
                results.add(candidate, run_one(candidate))
            except CandidateCrashedError as error:
                if not is_peer(candidate):
                    raise
                results.fail(candidate, str(error))
                runnable.remove(candidate)
    return results
