"""Killed at any moment and restarted, the chain client -> checkpoint -> sink skips nothing and keeps each session's order."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector_sdk.payloads import SummaryPayload
from connector_sdk.testing import ConnectorServer
from tests.client.harness import PATIENCE, summary
from tests.lines import next_line

KILLS = 50
RATE = 400.0  # events a second
SESSIONS = 7


@pytest.mark.timeout(240)
@pytest.mark.busy
def test_fifty_kills_lose_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    stopping = threading.Event()

    def events() -> Iterator[SummaryPayload]:
        number = 0
        while not stopping.is_set():
            number += 1
            yield summary(number, f"s{chance.randrange(SESSIONS)}")

    sink = tmp_path / "sink"
    with ConnectorServer(events(), rate=RATE) as server:
        command = [sys.executable, "-m", "tests.client.kill_worker", server.url, str(tmp_path / "id"), str(sink)]
        for _ in range(KILLS):
            worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            try:
                worker.wait(chance.uniform(0.1, 1.0))
                raise AssertionError(f"the worker ended by itself with {worker.returncode}")
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        stopping.set()
        last = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert next_line(last) == "can be terminated\n"
            _until_the_sink_has(sink, server, last)
            last.terminate()
            assert last.wait(PATIENCE) == 0, "SIGTERM stops it cleanly"
        finally:
            last.kill()
            last.communicate()
        expected = {event.id for event in server.log}
    lines = [line.split() for line in sink.read_text().splitlines()]
    ids = [int(event_id) for _, event_id in lines]
    assert {str(event_id) for event_id in ids} == expected, f"seed {seed}"
    assert len(expected) > KILLS
    of_session: dict[str, list[int]] = defaultdict(list)
    for number, session in sorted({(int(number), session) for session, number in lines}):
        of_session[session].append(number)
    place = {number: index for numbers in of_session.values() for index, number in enumerate(numbers)}
    seen: dict[str, int] = defaultdict(int)
    for session, number_text in lines:
        at = place[int(number_text)]
        assert at <= seen[session], f"seed {seed}: {session} skipped from {seen[session]} to {at}"
        seen[session] = max(seen[session], at + 1)


def _until_the_sink_has(sink: Path, server: ConnectorServer, worker: subprocess.Popen[str]) -> None:
    """Wait until the last event of the server is in the sink; the sink is a file, so there is nothing to wait on but it."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        last = server.log[-1].id
        if any(line.endswith(f" {last}") for line in sink.read_text().splitlines()[-200:]):
            return
        assert worker.poll() is None
        pause.wait(0.05)
    raise AssertionError("the last event never came")
