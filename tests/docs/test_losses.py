"""What `docs/guarantees.md` admits: these losses happen, and are no larger than it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from connector_sdk import MemoryCheckpoint
from connector_sdk.testing import ConnectorServer, Cut
from tests.client.harness import Collector, Faces, summary

TEN = [summary(number) for number in range(10)]

#: Takes events into memory until ten wait and the checkpoint is past them; says so; then waits to be killed.
WORKER = """
import sys, time
from connector_sdk import ConnectorClient, EventBuffer, FileCheckpoint, Observer

url, place = sys.argv[1:]
buffer = EventBuffer()

class Saved(Observer):
    def checkpoint_saved(self, *, event_id, seconds):
        if event_id == "10":
            print(buffer.size, flush=True)

client = ConnectorClient(url, checkpoint=FileCheckpoint(place), observer=Saved()).into(buffer)
client.run()
"""


def test_what_waits_in_memory_dies_with_the_process(tmp_path: Path) -> None:
    """A buffer in memory finishes an event by taking it: the checkpoint is past events that a kill then loses."""
    place = tmp_path / "place"
    with ConnectorServer(TEN) as server:
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, server.url, str(place)], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            try:
                assert worker.stdout.readline() == "10\n"
            finally:
                worker.kill()
        server.publish(summary(10))
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, server.url, str(place)], stdout=subprocess.PIPE, text=True
        ) as worker:
            try:
                assert server.wait_for_requests(2, timeout=20.0)[1].last_event_id == "10"
            finally:
                worker.kill()


def test_without_a_checkpoint_a_restart_does_not_ask_for_what_it_missed() -> None:
    """What it gets is the server's choice: everything that is kept, or what happens from now on."""
    collector = Collector()
    with ConnectorServer(TEN, replay=False) as server:
        client = Faces("sync").client(server.url).on_summary(collector.plain)
        with Faces("sync").run(client):
            collector.wait(10)
        server.publish(summary(10))  # nobody listens
        again = Faces("sync").client(server.url).on_summary(collector.plain)
        with Faces("sync").run(again):
            again.wait_until_open(20.0)  # type: ignore[unused-coroutine]  # the sync client
            server.publish(summary(11))
            collector.wait(11)
        assert [request.last_event_id for request in server.requests] == [None, None]
    assert collector.texts[10:] == ["event 11"]


class _Full(MemoryCheckpoint):
    async def save(self, stream: str, event_id: str) -> None:
        raise OSError("no space left")


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_a_checkpoint_that_cannot_be_saved_is_counted_and_stops_nothing(kind: str) -> None:
    collector = Collector()
    errors: list[str] = []
    faces = Faces(kind)
    with ConnectorServer(TEN, script=[Cut(after_events=5)], end="stop") as server:
        client = faces.client(server.url, checkpoint=_Full()).on_summary(collector.plain)
        client.on_error(lambda error, payload: errors.append(str(error)))
        faces.run(client).start().join()
    assert len(collector.payloads) == 10
    assert client.stats().checkpoint_errors >= 1
    assert client.stats().checkpoint_event_id == ""
    assert set(errors) == {"no space left"}
