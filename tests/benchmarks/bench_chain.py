"""
The whole chain for a minute: connector, client with a checkpoint, buffer on disk, job, full-text index, as processes.

The connector sends as fast as the index follows, never more than a backlog ahead of it, so that the rate is that of the
slowest part and the backlog does not grow. At the end everything that was sent must be in the index, once.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.benchmarks.report import Row
from tests.benchmarks.runs import CandidateCrashedError

__all__ = ["run"]

_BACKLOG: Final = 10_000
_WARM_UP: Final = 3.0  # seconds
_PATIENCE: Final = 60.0  # seconds for the rest to arrive, and for a process to end
_FLAT: Final = 1.15  # memory of the last third by that of the first
_ROOT: Final = Path(__file__).resolve().parents[2]


class _Process:
    """One process of the chain; a thread reads what it says."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.chain_processes", name, *arguments],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self.stdin = self._process.stdin
        self._said: list[str] = []
        self._spoke = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said[:] = [line]
            self._spoke.set()

    def latest(self) -> object:
        """Return the last thing that it said, the first time once it has said something."""
        if not self._spoke.wait(_PATIENCE) or self._process.poll() is not None:
            raise CandidateCrashedError(f"the {self.name} of the chain ended: {self._complaint()}")
        return json.loads(self._said[0])

    def end(self) -> dict[str, object]:
        """End its input, wait for its end and return the last thing that it said."""
        self.stdin.close()
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise CandidateCrashedError(f"the {self.name} of the chain did not end") from None
        self._reader.join(_PATIENCE)
        if code:
            raise CandidateCrashedError(f"the {self.name} of the chain ended with code {code}: {self._complaint()}")
        last: dict[str, object] = json.loads(self._said[0])
        if last["wrong"]:
            raise CandidateCrashedError(f"the {self.name} of the chain: {last['wrong']}")
        return last

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self._process.wait()

    def _complaint(self) -> str:
        self._process.kill()
        assert self._process.stderr is not None
        return (self._process.stderr.read().strip().splitlines() or ["no output"])[-1]


class _Samples:
    """Seconds, events in the index, memory of client and job, and the seconds of a core that each has taken."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, float, float, float, float]] = []

    def microseconds(self, column: int) -> float:
        """What an event costs of a core, by the column that counts the seconds of one process."""
        first, last = self.rows[0], self.rows[-1]
        return (last[column] - first[column]) / max(1, last[1] - first[1]) * 1e6

    def rate(self) -> float:
        """Events a second from the first to the last sample."""
        first, last = self.rows[0], self.rows[-1]
        return (last[1] - first[1]) / (last[0] - first[0])

    def slowest(self, seconds: float) -> float:
        """Events a second in the slowest stretch of so many seconds."""
        rates: list[float] = []
        start = 0
        for row in self.rows:
            if row[0] - self.rows[start][0] >= seconds:
                rates.append((row[1] - self.rows[start][1]) / (row[0] - self.rows[start][0]))
                start += 1
        return min(rates, default=math.nan)

    def thirds(self, column: int) -> tuple[float, float]:
        """The median of a column in the first third, and in the last."""
        third = max(1, len(self.rows) // 3)
        values = [row[column] for row in self.rows]
        return statistics.median(values[:third]), statistics.median(values[-third:])


def run(
    *, quick: bool = False, rounds: int | None = None, progress: Callable[[str], object] | None = None
) -> list[Row]:
    """
    Measure for 60 seconds, or 10 when *quick*, and return the rows; *rounds* changes nothing.

    Raises CandidateCrashedError: a process failed, or its account is wrong.
    """
    del rounds
    seconds, tell = (10.0 if quick else 60.0), progress or (lambda _text: None)
    with tempfile.TemporaryDirectory(prefix="connector-sdk-benchmark-") as folder, _killed_at_the_end() as processes:
        connector = _Process("connector")
        processes.append(connector)
        url = f"http://127.0.0.1:{connector.latest()}/stream/bench"
        job, client = _Process("job", folder), _Process("client", url, folder)
        processes += [job, client]
        samples, sent = _feed(connector, client, job, seconds, tell)
        _await_the_rest(job, sent)
        client.end()
        last = job.end()
    lost = abs(sent - int(str(last["indexed"])))
    repeated = int(str(last["repeated"]))
    rate, work = samples.rate(), f"the whole chain for {seconds:g} s"
    return [
        Row(
            f"{work}: connector, client, SQLite, DrainJob, FTS5",
            rate,
            5_000.0,
            "events/s",
            rate / 5_000,
            ">= 5,000",
            rate >= 5_000 and not lost,
            lost,
            f"{sent:,} sent, {repeated} came twice; slowest 5 s: {samples.slowest(5.0):,.0f} events/s",
        ),
        _memory(f"{work}: memory of the client, last third / first", samples.thirds(2), samples.microseconds(4)),
        _memory(f"{work}: memory of the job, last third / first", samples.thirds(3), samples.microseconds(5)),
    ]


def _memory(work: str, thirds: tuple[float, float], microseconds: float) -> Row:
    first, last = thirds
    note = f"it takes {microseconds:.0f} us of a core for an event"
    return Row(work, last, first, "MB", last / first, f"<= {_FLAT:g}", last <= _FLAT * first, 0, note)


def _feed(
    connector: _Process, client: _Process, job: _Process, seconds: float, tell: Callable[[str], object]
) -> tuple[_Samples, int]:
    """Let the connector send while the time lasts; return what was seen, and how many it was allowed to send."""
    samples = _Samples()
    begun = time.monotonic()
    allowed = 0
    while (now := time.monotonic()) < begun + _WARM_UP + seconds:
        seen, grown = _facts(job), _facts(client)
        indexed = int(seen["indexed"])
        allowed = max(allowed, (indexed + _BACKLOG) // 1_000 * 1_000)
        connector.stdin.write(f"{allowed}\n")
        connector.stdin.flush()
        if now >= begun + _WARM_UP:
            samples.rows.append(
                (now, indexed, grown["megabytes"], seen["megabytes"], grown["seconds"], seen["seconds"])
            )
        tell(f"chain: {indexed:,} events, {now - begun:.0f} of {_WARM_UP + seconds:.0f} s")
        time.sleep(0.1)
    return samples, allowed


def _await_the_rest(job: _Process, sent: int) -> None:
    until = time.monotonic() + _PATIENCE
    while _facts(job)["indexed"] < sent and time.monotonic() < until:
        time.sleep(0.1)


def _facts(process: _Process) -> dict[str, float]:
    facts = process.latest()
    assert isinstance(facts, dict)
    return facts


@contextlib.contextmanager
def _killed_at_the_end() -> Iterator[list[_Process]]:
    processes: list[_Process] = []
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
