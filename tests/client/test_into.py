"""`into(buffer)`: buffers of either kind, on either client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from connector_sdk import (
    BlockingBuffer,
    BufferUnavailableError,
    ConfigurationError,
    ConnectorClient,
    DurableBuffer,
    HandlerError,
    MemoryCheckpoint,
    OutageBridge,
    SQLiteEventBuffer,
)
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.callbacks import is_quick_callable
from connector_sdk.payloads import Payload
from connector_sdk.testing import ConnectorServer, Cut
from tests.buffers.memory_store import MemoryStore
from tests.client.harness import PATIENCE, Faces, actions, dropped, summary

EVENTS: list[Payload | bytes] = [summary(0), actions(1), b'{"type":"tour","session_id":"s"}', summary(3)]


def test_an_event_buffer_gets_every_type_in_order(faces: Faces) -> None:
    buffer = EventBuffer()
    with ConnectorServer(EVENTS, script=[Cut(after_events=2, into_next=5)]) as server:
        client = faces.client(server.url).into(buffer)
        with faces.run(client):
            assert buffer.wait(4, timeout=PATIENCE)
    payloads = buffer.drain()
    assert [payload.type for payload in payloads] == ["summary", "actions", "tour", "summary"]
    assert [payload.event_id for payload in payloads] == ["1", "2", "3", "4"]
    assert client.stats().ledger.delivered == 4
    assert buffer.stats().ledger.delivered == 4


def test_a_buffer_is_wired_by_its_add_too(faces: Faces) -> None:
    buffer = EventBuffer()
    with ConnectorServer(EVENTS) as server:
        client = faces.client(server.url).on_actions(buffer.add).on_summary(buffer.add)
        with faces.run(client):
            assert buffer.wait(3, timeout=PATIENCE)
    assert [payload.type for payload in buffer.drain()] == ["summary", "actions", "summary"]
    assert dropped(client) == {"unhandled": 1}


class ListBackend:
    """The smallest BufferBackend."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self.full = EventBuffer()

    async def add(self, payload: Payload) -> None:
        self.payloads.append(payload)
        self.full.add(payload)

    async def drain(self) -> list[Payload]:
        payloads, self.payloads = self.payloads, []
        return payloads

    async def size(self) -> int:
        return len(self.payloads)


def test_an_async_backend_works_on_either_client(faces: Faces) -> None:
    backend = ListBackend()
    with ConnectorServer(EVENTS) as server:
        client = faces.client(server.url).into(backend)
        with faces.run(client):
            assert backend.full.wait(4, timeout=PATIENCE)
    assert len(backend.payloads) == 4


@pytest.mark.parametrize("as_backend", [False, True])
def test_a_full_buffer_that_blocks_slows_the_server_and_loses_nothing(faces: Faces, as_backend: bool) -> None:
    buffer = EventBuffer(max_size=3, overflow="block")
    events = [summary(n) for n in range(200)]
    got: list[Payload] = []
    with ConnectorServer(events) as server:
        client = faces.client(server.url, max_queue_size=4, overflow="block")
        client.into(buffer.as_backend() if as_backend else buffer)
        with faces.run(client):
            while len(got) < 200:
                assert buffer.wait(1, timeout=PATIENCE)
                got += buffer.drain()
    assert [payload.event_id for payload in got] == [str(n) for n in range(1, 201)]


def test_the_add_of_a_buffer_is_quick_unless_it_may_wait() -> None:
    assert is_quick_callable(EventBuffer().add)
    assert not is_quick_callable(EventBuffer(overflow="block").add)
    assert not is_quick_callable(EventBuffer(on_drop=lambda payload: None).add)


class Refusing:
    """Has room for one event and raises then; *overflow* is what it says of itself."""

    def __init__(self, overflow: str) -> None:
        self.overflow = overflow
        self.payloads: list[Payload] = []

    async def add(self, payload: Payload) -> None:
        if self.payloads:
            raise BufferUnavailableError("broken")
        self.payloads.append(payload)


def test_with_a_checkpoint_an_event_that_the_buffer_refuses_stays_unfinished(faces: Faces) -> None:
    store, buffer = MemoryCheckpoint(), Refusing("block")
    with ConnectorServer([summary(1), summary(2), summary(3)]) as server:
        client = faces.client(server.url, checkpoint=store).into(buffer)
        running = faces.run(client).start()
        running.join()
        assert isinstance(running.error, HandlerError)
        assert client.stats().checkpoint_event_id == "1"
        second = Refusing("block")
        running = faces.run(faces.client(server.url, checkpoint=store).into(second)).start()
        running.join()
    assert [payload.event_id for payload in second.payloads] == ["2"]


def test_with_a_checkpoint_a_buffer_that_drops_what_comes_is_refused(faces: Faces) -> None:
    url = "http://127.0.0.1:1/stream/p"
    with pytest.raises(ConfigurationError, match="overflow='drop_newest'"):
        faces.client(url, checkpoint=MemoryCheckpoint()).into(Refusing("drop_newest"))
    faces.client(url).into(Refusing("drop_newest"))
    faces.client(url, checkpoint=MemoryCheckpoint()).into(Refusing("drop_oldest"))


@pytest.mark.parametrize("kind", ["durable", "sqlite", "bridge", "memory"])
@pytest.mark.parametrize("blocking", [False, True])
def test_our_own_buffers_say_whether_they_drop_what_comes(kind: str, blocking: bool, tmp_path: Path) -> None:
    def make(overflow: Literal["drop_newest", "block"]) -> EventBuffer | BlockingBuffer | DurableBuffer | OutageBridge:
        if kind == "memory":
            memory = EventBuffer(overflow=overflow)
            return BlockingBuffer(memory.as_backend()) if blocking else memory
        makers: dict[str, Callable[[], DurableBuffer | OutageBridge]] = {
            "durable": lambda: DurableBuffer(MemoryStore(), overflow=overflow),
            "sqlite": lambda: SQLiteEventBuffer(tmp_path / "events.db", overflow=overflow),
            "bridge": lambda: OutageBridge(DurableBuffer(MemoryStore()), EventBuffer(), overflow=overflow),
        }
        backend = makers[kind]()
        return BlockingBuffer(backend) if blocking else backend

    client = ConnectorClient("http://127.0.0.1:1/stream/p", checkpoint=MemoryCheckpoint())
    with pytest.raises(ConfigurationError, match="overflow"):
        client.into(make("drop_newest"))
    client.into(make("block"))
