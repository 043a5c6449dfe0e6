"""Runs the candidates of `buffer_candidates` in turn, each round in an empty Redis and a fresh folder."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, cast

from tests.benchmarks import runs
from tests.benchmarks.redis_place import Place
from tests.benchmarks.redis_work import Job, RedisOutcome

__all__ = ["Candidate", "Places", "Results", "added_by", "drained_by", "fsync_microseconds"]

_SYNCS: Final = 200


@dataclass(frozen=True)
class Candidate:
    """One process to run: add, then take out, as often as said."""

    subject: str
    events: int
    adders: int = 100
    sessions: int = 100
    repeats: int = 1


Results: TypeAlias = runs.Results[Candidate, RedisOutcome]


@dataclass(frozen=True)
class Places:
    """Where candidates run, how often, and who hears of each round."""

    redis: Place | None
    rounds: int
    progress: Callable[[str], object]

    def measure(self, title: str, candidates: Sequence[Candidate]) -> Results:
        """Run the candidates in turn, round by round."""
        return runs.take_turns(
            candidates,
            self.rounds,
            self._run,
            lambda _candidate: False,
            lambda number: self.progress(f"{title}: round {number} of {self.rounds}"),
        )

    def _run(self, candidate: Candidate) -> RedisOutcome:
        if self.redis is not None:
            self.redis.empty()
        job = Job(
            work="there and back",
            events=candidate.events,
            sessions=candidate.sessions,
            adders=candidate.adders,
            repeats=candidate.repeats,
            page=0,
        )
        with tempfile.TemporaryDirectory(prefix="connector-sdk-benchmark-") as folder:
            place = f"{'-' if self.redis is None else self.redis.url} {folder}"
            line = runs.run_process(sys.executable, "buffer_candidates", candidate.subject, place, json.dumps(job))
        return cast(RedisOutcome, runs.read_outcome(line, candidate.subject))


def added_by(results: Results) -> Callable[[Candidate], float]:
    """Events a second that were stored, the median of the rounds."""
    return lambda candidate: results.median(candidate, lambda outcome: outcome["received"] / outcome["seconds"])


def drained_by(results: Results) -> Callable[[Candidate], float]:
    """Events a second that came out, the median of the rounds."""
    return lambda candidate: results.median(candidate, lambda outcome: outcome["received"] / outcome["drain_seconds"])


def fsync_microseconds() -> float:
    """What a sync of the disk costs here: of a file that grew by 4 kB, the median."""
    with tempfile.TemporaryDirectory(prefix="connector-sdk-benchmark-") as folder:
        file = os.open(Path(folder, "sync"), os.O_RDWR | os.O_CREAT)
        try:
            figures: list[float] = []
            for _ in range(_SYNCS):
                os.write(file, bytes(4096))
                begun = time.perf_counter()
                os.fsync(file)
                figures.append(time.perf_counter() - begun)
        finally:
            os.close(file)
    return statistics.median(figures) * 1e6
