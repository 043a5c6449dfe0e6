"""RedisCheckpoint: where to resume, kept in Redis, so that whichever process takes a stream over goes on behind the last."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from connector_sdk.errors import CheckpointError, ConfigurationError
from connector_sdk.options import check_seconds
from connector_sdk.redis_client import (
    RedisAddress,
    RedisClient,
    RedisRefusedError,
    RedisUnavailableError,
    Reply,
    load_script,
)

__all__ = ["RedisCheckpoint"]

_SAVE: Final = load_script("connector_sdk.lua", "checkpoint_save.lua")
_TEN_YEARS: Final = 10 * 366 * 86_400.0
_PAUSE: Final = 0.2  # seconds between two attempts to load


class RedisCheckpoint:
    """
    Keeps the id of the last finished event in Redis or Valkey, under one key for each stream.

    ::

        checkpoint = RedisCheckpoint("redis://localhost:6379/0")
        leader = Leader("redis://localhost:6379/0", "shop stream")
        client = AsyncConnectorClient(url, checkpoint=checkpoint, leader=leader)

    A client with a leader saves with the token of its term: what a deposed one saves is refused (CheckpointError, which the
    client counts) once a later one has saved, so the id never goes back. Without a leader the last save wins: of two
    processes that receive the same stream the slower one may set the id back, so that a restart repeats events.

    It lasts as long as the data of that Redis: with `appendonly yes` and `appendfsync everysec` a crash of the server
    brings back the id of a second earlier, and events are repeated. When Redis has lost the key (no persistence, an
    eviction, a flush) nobody can tell that there was one: the next client starts from what the server sends now, and what
    came in between is not asked for.

    Args:
        redis_url: where Redis is, as for `RedisEventBuffer`.
        key_prefix: the namespace of the keys, without braces.
        ttl: seconds, above 0, after which the id of a stream that nobody receives is forgotten; None, the default, keeps it.
        response_timeout: seconds, above 0, after which a request without an answer has failed.
        load_timeout: seconds, 0 or more, for which `load` tries again while Redis is away. Default 10.
        connect_timeout: seconds, above 0, that opening a connection may take.

    Raises:
        ConfigurationError: an option has a value that cannot work. Nothing is sent before the first use.

    For asyncio only: inside trio a ConfigurationError. (`ConnectorClient` runs on asyncio.) One object may serve any number
    of clients of one event loop. The key names a hash of the stream's address, its value the address without user, password
    and query.
    """

    def __init__(
        self,
        redis_url: str,
        key_prefix: str = "default",
        *,
        ttl: float | None = None,
        response_timeout: float = 1.0,
        load_timeout: float = 10.0,
        connect_timeout: float = 1.0,
    ) -> None:
        if (
            not isinstance(key_prefix, str)
            or not key_prefix
            or not key_prefix.isprintable()
            or set(key_prefix) & set("{}")
        ):
            raise ConfigurationError(
                "key_prefix", key_prefix, "a text of 1 or more printable characters without braces"
            )
        self._prefix = key_prefix
        self._address = RedisAddress.parse(redis_url)
        if ttl is not None and check_seconds("ttl", ttl, above=0) > _TEN_YEARS:
            raise ConfigurationError("ttl", ttl, f"at most {_TEN_YEARS:.0f} seconds, ten years, or None")
        self._life = 0 if ttl is None else max(1, round(ttl * 1000))
        self._response_timeout = check_seconds("response_timeout", response_timeout, above=0)
        self._load_timeout = check_seconds("load_timeout", load_timeout)
        self._connect_timeout = check_seconds("connect_timeout", connect_timeout, above=0)
        self._client: RedisClient | None = None
        self._under_way = 0

    async def load(self, stream: str) -> str | None:
        """
        Return the id saved last for *stream*, None when there is none.

        Raises CheckpointError when Redis refuses, or was away for `load_timeout` seconds.
        """
        key = self._key(stream)
        until = time.monotonic() + self._load_timeout
        while True:
            try:
                reply = await self._ask(
                    lambda redis: redis.call(
                        "HGET", key, "id", key=key, timeout=self._response_timeout, repeatable=True
                    )
                )
            except RedisUnavailableError as error:
                if time.monotonic() + _PAUSE >= until:
                    raise CheckpointError(f"the checkpoint in Redis cannot be read: {error}") from error
                await anyio.sleep(_PAUSE)
            except RedisRefusedError as error:
                raise CheckpointError(f"the checkpoint in Redis cannot be read: {error}") from error
            else:
                return reply.decode() if isinstance(reply, bytes) else None

    async def save(self, stream: str, event_id: str) -> None:
        """Keep *event_id*, whoever saved before. Raises CheckpointError when Redis is away or refuses."""
        await self.save_fenced(stream, event_id, 0)

    async def save_fenced(self, stream: str, event_id: str, token: int) -> None:
        """
        Keep *event_id*, saved by the leader with the fencing *token*.

        One atomic step. Raises CheckpointError when Redis is away or refuses, and when a leader with a higher token has
        saved: nothing is changed then.
        """
        key = self._key(stream)
        arguments = (stream, event_id, str(token), str(self._life))
        try:
            reply = await self._ask(
                lambda redis: redis.run(_SAVE, (key,), arguments, timeout=self._response_timeout, repeatable=True)
            )
        except (RedisUnavailableError, RedisRefusedError) as error:
            raise CheckpointError(f"the checkpoint in Redis cannot be written: {error}") from error
        if isinstance(reply, list) and reply[0] != 1:
            raise CheckpointError(
                "the checkpoint in Redis was saved by a later leader: this process leads no more, and its id is not kept"
            )

    async def disconnect(self) -> None:
        """
        Close the connection, unless somebody is using it; the next call opens another.

        The client calls this at the end of its run, because the event loop may end with it. May be called at any time.
        """
        if not self._under_way and self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def __repr__(self) -> str:
        return f"RedisCheckpoint({str(self._address)!r}, {self._prefix!r})"

    async def _ask(self, request: Callable[[RedisClient], Awaitable[Reply]]) -> Reply:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("checkpoint", self, "used on asyncio: it does not run on trio") from None
        if self._client is None:
            self._client = RedisClient(self._address, connect_timeout=self._connect_timeout)
        self._under_way += 1
        try:
            return await request(self._client)
        finally:
            self._under_way -= 1

    def _key(self, stream: str) -> bytes:
        # The address of a stream may be long, and hold braces, which mean something in a key.
        return f"{self._prefix}:checkpoint:{hashlib.sha256(stream.encode()).hexdigest()[:32]}".encode()
