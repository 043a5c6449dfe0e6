"""Of several clients with one leadership one receives; another goes on behind it, from the checkpoint of that moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import redis

from connector_sdk import (
    AsyncConnectorClient,
    CheckpointError,
    ClientStateError,
    ConfigurationError,
    ConnectorClient,
    Leader,
    MemoryCheckpoint,
    RedisCheckpoint,
    Term,
)
from connector_sdk.payloads import Payload
from connector_sdk.testing import ConnectorServer, RedisServer
from connector_sdk.wakeups import Waker, current_waker
from tests.client.harness import PATIENCE, Collector, Faces, summary
from tests.servers.fixtures import one_kind

RATE = 200.0


class Votes:
    """A leadership that the test gives and takes; several may stand, on any event loop."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._given = False
        self._token = 0
        self.term_now: _TermOfVotes | None = None
        self._standing: list[Callable[[], None]] = []
        self.released = 0

    @property
    def is_leader(self) -> bool:
        return self.term_now is not None and self.term_now.is_current

    def give(self) -> None:
        with self._lock:
            self._given = True
            for call in self._standing:
                call()

    def take(self) -> None:
        with self._lock:
            self._given = False
            if self.term_now is not None:
                self.term_now.end()

    def skip_to(self, token: int) -> None:
        """Others had the terms up to *token*."""
        with self._lock:
            self._token = token

    def wait_until_given_up(self, count: int) -> None:
        with self._lock:
            assert self._lock.wait_for(lambda: self.released >= count, PATIENCE)

    @asynccontextmanager
    async def term(self) -> AsyncIterator[Term]:
        wake = current_waker()
        while True:
            changed = anyio.Event()
            with self._lock:
                if self._given:
                    self._token += 1
                    term = self.term_now = _TermOfVotes(self._token, wake)
                    break
                self._standing.append(lambda changed=changed: wake(changed.set))  # type: ignore[misc]  # bound
            await changed.wait()
        try:
            yield term
        finally:
            with self._lock:
                term.end()
                self.released += 1
                self._lock.notify_all()


class _TermOfVotes:
    def __init__(self, token: int, wake: Waker) -> None:
        self.token = token
        self.is_current = True
        self._wake = wake
        self._over = anyio.Event()

    async def lost(self) -> None:
        await self._over.wait()

    def end(self) -> None:
        self.is_current = False
        self._wake(self._over.set)


class Reached:
    """Waits for states of a client."""

    def __init__(self, client: AsyncConnectorClient | ConnectorClient) -> None:
        self._client = client
        self._changed = threading.Condition()
        client._engine.watch(self._note)

    def _note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, state: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._client.state == state, PATIENCE), self._client.state


def test_without_leadership_it_stands_by_and_asks_nothing(faces: Faces) -> None:
    votes, got = Votes(), Collector()
    with ConnectorServer([summary(1)]) as server:
        client = faces.client(server.url, leader=votes, checkpoint=MemoryCheckpoint())
        reached = Reached(client)
        with faces.run(client.on_summary(got.plain)) as running:
            reached.wait_for("standby")
            assert not server.requests
            votes.give()
            got.wait(1)
            assert client.state == "open"
            report = running.stop()
    assert report.drained
    assert votes.released == 1, "stopping gives the leadership up"


def test_a_stop_ends_the_standing_by(faces: Faces) -> None:
    votes = Votes()
    client = faces.client("http://127.0.0.1:1/stream/p", leader=votes)
    reached = Reached(client)
    with faces.run(client.on_summary(lambda payload: None)) as running:
        reached.wait_for("standby")
        running.stop()
    assert client.state == "closed"


def test_the_checkpoint_is_read_when_elected_and_not_before(faces: Faces) -> None:
    votes, got, store = Votes(), Collector(), MemoryCheckpoint()
    with ConnectorServer() as server:
        for number in range(1, 6):
            server.publish(summary(number))
        client = faces.client(server.url, leader=votes, checkpoint=store)
        reached = Reached(client)
        with faces.run(client.on_summary(got.plain)):
            reached.wait_for("standby")
            anyio.run(store.save, client._options.stream, "3")  # another process has come so far
            votes.give()
            got.wait(2)
    assert got.texts == ["event 4", "event 5"]


def test_leadership_lost_ends_the_receiving_and_regained_goes_on_behind_the_other(faces: Faces) -> None:
    votes, got, store, left = Votes(), Collector(), MemoryCheckpoint(), Collector()
    with ConnectorServer([summary(number) for number in range(1, 4)]) as server:
        client = faces.client(server.url, leader=votes, checkpoint=store)
        reached = Reached(client)
        client.on_disconnect(lambda: left.plain(summary(0)))
        with faces.run(client.on_summary(got.plain)):
            votes.give()
            got.wait(3)
            votes.take()
            votes.wait_until_given_up(1)
            reached.wait_for("standby")
            left.wait(1)
            for number in range(4, 9):
                server.publish(summary(number))
            anyio.run(store.save, client._options.stream, "6")  # another led meanwhile
            votes.give()
            got.wait(5)
    assert got.texts == ["event 1", "event 2", "event 3", "event 7", "event 8"]
    assert anyio.run(store.load, client._options.stream) == "8"


def test_what_waits_when_leadership_is_lost_is_finished_or_comes_again(faces: Faces) -> None:
    votes, got, store = Votes(), Collector(), MemoryCheckpoint()
    begun, go_on = threading.Event(), threading.Event()

    def slow(payload: object) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    with ConnectorServer([summary(number) for number in range(1, 21)]) as server:
        client = faces.client(server.url, leader=votes, checkpoint=store, max_queue_size=5)
        reached = Reached(client)
        client.on_summary(slow).on_summary(got.plain)
        with faces.run(client):
            votes.give()
            assert begun.wait(PATIENCE)
            votes.take()
            reached.wait_for("standby")
            go_on.set()
            votes.wait_until_given_up(1)
            votes.give()
            reached.wait_for("open")
            while "event 20" not in got.texts:
                got.wait(len(got.payloads) + 1)
    assert list(dict.fromkeys(got.texts)) == [f"event {number}" for number in range(1, 21)], "none is missing"
    assert client.stats().ledger.in_flight == 0


def test_what_is_no_leadership_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="leader"):
        ConnectorClient("http://127.0.0.1:1/stream/p", leader=object())  # type: ignore[arg-type]  # wrong on purpose


def test_a_client_with_a_leader_is_not_iterated_over() -> None:
    with ConnectorClient("http://127.0.0.1:1/stream/p", leader=Votes()) as client, pytest.raises(ClientStateError):
        next(iter(client))


class Fenced(MemoryCheckpoint):
    """Knows of tokens, and writes down what it is asked for; loading takes until the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.token = 0
        self.saved: list[str] = []
        self.refused = 0
        self.changed = threading.Condition()
        self.gate = threading.Event()
        self.gate.set()
        self.loads = 0

    async def load(self, stream: str) -> str | None:
        with self.changed:
            self.loads += 1
            self.changed.notify_all()
        await anyio.to_thread.run_sync(self.gate.wait, PATIENCE)
        return await super().load(stream)

    async def save_fenced(self, stream: str, event_id: str, token: int) -> None:
        with self.changed:
            self.changed.notify_all()
            if token < self.token:
                self.refused += 1
                raise CheckpointError("a later leader has saved")
            self.token = token
            self.saved.append(event_id)
        await self.save(stream, event_id)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(reached, PATIENCE), (self.saved, self.refused, self.loads)


def test_a_client_elected_again_does_not_set_the_checkpoint_back_while_it_loads(faces: Faces) -> None:
    """What it finished in its earlier term is behind what the leader between has saved, and its new token is higher."""
    votes, got, store = Votes(), Collector(), Fenced()
    with ConnectorServer([summary(1)]) as server:
        client = faces.client(server.url, leader=votes, checkpoint=store)
        reached = Reached(client)
        stream = client._options.stream
        with faces.run(client.on_summary(got.plain)):
            votes.give()
            store.wait_until(lambda: store.saved == ["1"])
            anyio.run(store.save_fenced, stream, "7", 9)  # another leads, and this process does not know yet
            server.publish(summary(2))
            store.wait_until(lambda: store.refused > 0)
            votes.take()
            votes.wait_until_given_up(1)
            reached.wait_for("standby")
            refused, pause = store.refused, threading.Event()
            pause.wait(0.5)
            assert store.refused == refused, "who stands by saves nothing"
            for number in range(3, 9):
                server.publish(summary(number))
            votes.skip_to(9)
            store.gate.clear()
            votes.give()
            store.wait_until(lambda: store.loads == 2)
            pause.wait(0.5)
            assert store.saved == ["1", "7"], "nothing is saved before it is known where to go on"
            store.gate.set()
            store.wait_until(lambda: store.saved[-1] == "8")
    assert got.texts == ["event 1", "event 2", "event 8"]
    assert store.saved == ["1", "7", "8"]


def test_a_store_without_tokens_is_not_written_while_another_may_lead(faces: Faces) -> None:
    """Its last save failed; it stands by, another goes on, and what it had finished is not written over that."""
    votes, got = Votes(), Collector()
    failed = threading.Event()

    class Failing(MemoryCheckpoint):
        is_away = True

        async def save(self, stream: str, event_id: str) -> None:
            if self.is_away:
                failed.set()
                raise OSError("away")
            await super().save(stream, event_id)

    store = Failing()
    with ConnectorServer([summary(1)]) as server:
        client = faces.client(server.url, leader=votes, checkpoint=store)
        reached = Reached(client)
        with faces.run(client.on_summary(got.plain)):
            votes.give()
            got.wait(1)
            assert failed.wait(PATIENCE)
            votes.take()
            votes.wait_until_given_up(1)
            reached.wait_for("standby")
            store.is_away = False
            anyio.run(store.save, client._options.stream, "7")
            threading.Event().wait(0.5)
            assert anyio.run(store.load, client._options.stream) == "7"
    assert anyio.run(store.load, client._options.stream) == "7", "nor at the end"


@pytest.mark.anyio
async def test_a_cancelled_client_saves_before_it_gives_the_leadership_up() -> None:
    votes, store, done = Votes(), MemoryCheckpoint(), anyio.Event()
    votes.give()

    async def handle(payload: Payload) -> None:
        if payload.event_id == "3":
            done.set()

    with ConnectorServer([summary(number) for number in range(1, 4)]) as server:
        client = AsyncConnectorClient(server.url, leader=votes, checkpoint=store).on_summary(handle)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.run)
                await done.wait()
                while client.stats().finished_event_id != "3":
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
    assert votes.released == 1
    assert await store.load(client._options.stream) == "3"


@one_kind
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_deposed_client_cannot_set_the_checkpoint_back(own_redis_server: RedisServer) -> None:
    """Its leadership is lost without its knowing; what it saves then is refused, counted and told."""
    errors: list[Exception] = []
    refused = anyio.Event()
    store = RedisCheckpoint(own_redis_server.url)
    votes = Votes()
    votes.give()

    def note(error: Exception, _: object) -> None:
        errors.append(error)
        refused.set()

    with ConnectorServer([summary(1)]) as server:
        client = AsyncConnectorClient(server.url, leader=votes, checkpoint=RedisCheckpoint(own_redis_server.url))
        async with client.on_summary(lambda payload: None).on_error(note):
            client.run_in_background()
            with anyio.fail_after(PATIENCE):
                while client.stats().checkpoint_event_id != "1":
                    await anyio.sleep(0.01)
                await store.save_fenced(client._options.stream, "7", 9)
                server.publish(summary(2))
                await refused.wait()
            await anyio.sleep(0.5)
            assert len(errors) == 1, "what a later leader had refused is not tried again and again"
            assert await store.load(client._options.stream) == "7"
    assert isinstance(errors[0], CheckpointError)
    assert client.stats().checkpoint_errors >= 1
    assert await store.load(client._options.stream) == "7"
    await store.disconnect()


@one_kind
@pytest.mark.parametrize("how", ["kill", "stop", "terminate"])
def test_another_process_takes_over(own_redis_server: RedisServer, tmp_path: Path, how: str) -> None:
    """Within seconds, and no event is missing; those that come twice have ids."""
    stopping, sink, ttl = threading.Event(), tmp_path / "sink", 2.0

    def events() -> Iterator[object]:
        number = 0
        while not stopping.is_set():
            number += 1
            yield summary(number, f"s{number % 5}")

    def lines() -> list[tuple[int, int]]:
        text = sink.read_text() if sink.exists() else ""
        return [(int(pid), int(number)) for pid, number in (line.split() for line in text.splitlines())]

    def wait_for(reached: Callable[[], bool]) -> None:
        """The sink is a file of other processes: there is nothing to wait on but it."""
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if reached():
                return
            pause.wait(0.02)
        raise AssertionError("it never came to that")

    with redis.Redis(port=own_redis_server.port) as client:
        client.set("{default:leader:stream}:fence", "1")  # not the first election
    with ConnectorServer(events(), rate=RATE) as server:  # type: ignore[arg-type]  # they are payloads
        arguments = [server.url, own_redis_server.url, str(ttl), str(sink)]
        pods = [subprocess.Popen([sys.executable, "-m", "tests.client.leader_worker", *arguments]) for _ in range(2)]
        try:
            wait_for(lambda: len(lines()) > 50)
            first = next(pod for pod in pods if pod.pid == lines()[0][0])
            other = next(pod for pod in pods if pod is not first)
            assert {pid for pid, _ in lines()} == {first.pid}, "one receives, the other stands by"
            gone = time.monotonic()
            first.send_signal({"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}[how])
            wait_for(lambda: any(pid == other.pid for pid, _ in lines()))
            assert time.monotonic() - gone < ttl * 1.2 + 5.0, "and five seconds for a busy machine"
            first.send_signal(signal.SIGCONT)
            stopping.set()
            wait_for(lambda: (other.pid, int(server.log[-1].id or 0)) in lines())
            other.terminate()
            assert other.wait(PATIENCE) == 0
            expected = {int(event.id or 0) for event in server.log}
        finally:
            for pod in pods:
                pod.kill()
                pod.wait()
    got = [number for _, number in lines()]
    assert set(got) == expected
    if how == "terminate":
        assert len(got) == len(set(got)), "a clean stop repeats nothing"


@one_kind
def test_the_sync_client_leads_on_redis(own_redis_server: RedisServer) -> None:
    got = Collector()
    leader = Leader(own_redis_server.url, "stream", ttl=0.5)
    with ConnectorServer([summary(1), summary(2)]) as server:
        client = ConnectorClient(server.url, leader=leader, checkpoint=RedisCheckpoint(own_redis_server.url))
        with client.on_summary(got.plain):
            client.run_in_background()
            got.wait(2)
            assert leader.is_leader
        again = ConnectorClient(server.url, leader=leader, checkpoint=RedisCheckpoint(own_redis_server.url))
        with again.on_summary(got.plain):
            again.run_in_background()
            again.wait_until_open(PATIENCE)
            server.publish(summary(3))
            got.wait(3)
    assert got.texts == ["event 1", "event 2", "event 3"]
