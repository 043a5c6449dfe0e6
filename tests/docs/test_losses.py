"""What `docs/guarantees.md` admits: these losses happen, and are no larger than it says."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from connector_sdk import BlockingBuffer, ConnectorClient, EventBuffer, MemoryCheckpoint, Payload, RedisEventBuffer
from connector_sdk.testing import ConnectorServer, Cut
from tests.client.harness import Collector, Faces, summary
from tests.servers.fixtures import Server, one_kind

TEN = [summary(number) for number in range(10)]

#: Takes events into memory; says how many wait as soon as the checkpoint is past all of them, and waits to be killed.
WORKER = """
import sys, threading
from connector_sdk import ConnectorClient, EventBuffer, FileCheckpoint, Observer

url, place = sys.argv[1:]
buffer = EventBuffer()
saved = threading.Event()

class Saved(Observer):
    def checkpoint_saved(self, *, event_id, seconds):
        if event_id == "10":
            saved.set()

client = ConnectorClient(url, checkpoint=FileCheckpoint(place), observer=Saved()).into(buffer)
client.run_in_background()
if saved.wait(10.0):
    print(buffer.size, flush=True)
    threading.Event().wait()
print(f"never saved: {client.stats()}")
"""


@contextmanager
def worker(url: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, url, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_waits_in_memory_dies_with_the_process(tmp_path: Path) -> None:
    """A buffer in memory finishes an event by taking it: the checkpoint is past events that a kill then loses."""
    with ConnectorServer(TEN) as server:
        with worker(server.url, tmp_path / "place") as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "10\n"
        with worker(server.url, tmp_path / "place"):
            assert server.wait_for_requests(2, timeout=20.0)[1].last_event_id == "10"


def test_without_a_checkpoint_a_restart_does_not_ask_for_what_it_missed() -> None:
    """What it gets is the server's choice: everything that is kept, or what happens from now on."""
    collector = Collector()
    with ConnectorServer(TEN, replay=False) as server:
        client = ConnectorClient(server.url).on_summary(collector.plain)
        client.run_in_background()
        collector.wait(10)
        client.stop()
        server.publish(summary(10))  # nobody listens
        with ConnectorClient(server.url).on_summary(collector.plain) as again:
            again.run_in_background()
            again.wait_until_open(20.0)
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


def test_what_is_drained_counts_as_delivered_and_does_not_come_back() -> None:
    buffer = EventBuffer()
    buffer.add(summary(0))
    with pytest.raises(OSError, match="the index is away"):
        _fail_with(buffer.drain())
    assert buffer.drain() == []
    assert (buffer.stats().ledger.delivered, buffer.stats().ledger.buffered) == (1, 0)


#: Puts events into Redis until the server says that there are no more.
INTO_REDIS = """
import asyncio, sys
from connector_sdk import AsyncConnectorClient, FileCheckpoint, RedisEventBuffer

async def main(url, place, redis_url):
    async with RedisEventBuffer(redis_url, "losses", 3600.0, overflow="block") as buffer:
        client = AsyncConnectorClient(url, checkpoint=FileCheckpoint(place))
        async with client.into(buffer, on_failure="stop"):
            await client.run()

asyncio.run(main(*sys.argv[1:]))
"""


@one_kind
def test_a_process_that_fills_redis_and_waits_for_it_can_be_killed(redis_server: Server, tmp_path: Path) -> None:
    """What was not in Redis yet is not finished: after a restart the server is asked for it again."""
    events = [summary(number) for number in range(300)]
    with (
        ConnectorServer(events, rate=150, end="stop") as server,
        BlockingBuffer(RedisEventBuffer(redis_server.url, "losses", 3600.0)) as buffer,
    ):
        command = [sys.executable, "-c", INTO_REDIS, server.url, str(tmp_path / "place"), redis_server.url]
        for kill_at in (20, 90, 160, 230):
            with subprocess.Popen(command) as process:
                deadline = time.monotonic() + 20.0
                while buffer.size() < kill_at:
                    assert time.monotonic() < deadline
                    assert process.poll() is None
                    time.sleep(0.005)
                process.kill()
        subprocess.run(command, check=True, timeout=60)
        assert sorted(int(payload.event_id or 0) for payload in buffer.drain()) == list(range(1, 301))


def _fail_with(payloads: list[Payload]) -> None:
    assert payloads
    raise OSError("the index is away")
