"""RedisEventBuffer: events in Redis or Valkey, shared by many processes, in a sliding window for each session."""

from __future__ import annotations

from typing import Final, get_args

from connector_sdk.buffers.codec import Codec
from connector_sdk.buffers.drops import DropHook
from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.buffers.redis_store import RedisStore, RedisStoreOptions, WindowOn
from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_choice, check_integer, check_seconds
from connector_sdk.redis_client import RedisAddress, RedisClient

__all__ = ["RedisEventBuffer"]

_MOST_SHARDS: Final = 1024
_SHORTEST: Final = 0.1  # seconds; below that an event may expire on its way
_TEN_YEARS: Final = 10 * 366 * 86_400.0


class RedisEventBuffer(DurableBuffer):
    """
    A buffer in Redis or Valkey that any number of processes add to and take from.

    ::

        buffer = RedisEventBuffer("redis://localhost:6379/0", key_prefix="clicks")
        client.on_actions(buffer.add).on_summary(buffer.add)
        ...
        for payload in await buffer.drain(): ...

    Events are kept by session, each in a sorted set by their time (`forwarded_at`). Adding to a session evicts what left
    its window; every key expires when nobody uses it. All that is said of `DurableBuffer` holds: adding and draining never
    raise because Redis is away, what is given up is told to *on_drop* and counted, what a dead drainer had comes again.

    Args:
        redis_url: `redis://`, `rediss://` (TLS) or `unix://`; `redis+cluster://host:port,host:port` for a cluster,
            `redis+sentinel://host:port,host:port/name` for a master that sentinels watch, `rediss+...` for both with TLS.
            User, password, database and TLS files go where `redis.from_url` has them.
        key_prefix: the namespace of every key, unique for each service or environment; without braces.
        window_seconds: how far back from its newest event a session goes, 0.1 or more. The newest event counts as no later than
            the server's own clock, so an event with a wrong clock evicts nothing that the clock would not. What is older
            is dropped as "expired" when the session is next written to. Choose it longer than the longest pause of
            whoever drains.
        max_concurrent: how many batches of each shard may be under way, 1 or more. An event that finds no place within
            *acquire_timeout* is dropped as "backpressure".
        on_drop: called as `on_drop(payload)` for each event given up because Redis is slow, away or full. Events that
            leave the window or are pushed out by a bound are counted only.
        acquire_timeout: seconds, above 0; see `max_concurrent`.
        overflow: "drop_newest", or "block": `add` waits until the event is stored.
        window_on: "event", or "arrival": order and window go by the time of arrival, so that a replay of old events
            evicts nothing.
        grace_seconds: how long the events of a session that nobody writes to outlive the window, 0 or more. Then they are
            dropped as "expired", up to 5 s (a tenth of the whole, if that is less) earlier when somebody looks.
        max_per_session: events that a session may hold, 0 for no bound; the oldest are dropped as "overflow".
        max_sessions: sessions that the buffer may hold, 0 for no bound; those idle for longest are dropped as "evicted".
            Divided among the shards.
        dedupe_seconds: how long an event id is known after its event was taken or given up, 0 or more. An event with a
            known id (of the same `product_id`) is not stored again: it counts as "duplicate".
        max_dead_letters: dead letters that are kept, 1 or more; beyond it those that died first go. Divided among the shards.
        dead_letter_seconds: how long a dead letter is kept after its death, 0.1 or more; window and grace do not matter.
        drain_hold: seconds, above 0, that the events of a drain stay out of sight if the drainer dies half-way.
        shards: over how many hash tags the keys are spread, 1 to 1024, so that a cluster can share the work. All
            processes must name the same number; it may grow, and must not shrink before the buffer is drained.
        codec: "json", or "compact" for less memory at some 30 us an event. Any process reads both.
        response_timeout: seconds, above 0, after which a request without an answer has failed.
        connect_timeout: seconds, above 0, that opening a connection may take.
        observer: an `Observer`; told `events_dropped`, `store_state` and `store_operation`.

    Raises:
        ConfigurationError: an option has a value that cannot work. Nothing is sent before the first use.
    """

    def __init__(
        self,
        redis_url: str,
        key_prefix: str = "default",
        window_seconds: float = 120.0,
        max_concurrent: int = 10,
        on_drop: DropHook | None = None,
        *,
        acquire_timeout: float = 0.1,
        overflow: DurableOverflow = "drop_newest",
        window_on: WindowOn = "event",
        grace_seconds: float = 60.0,
        max_per_session: int = 0,
        max_sessions: int = 0,
        dedupe_seconds: float = 600.0,
        max_dead_letters: int = 10_000,
        dead_letter_seconds: float = 604_800.0,
        drain_hold: float = 15.0,
        shards: int = 1,
        codec: Codec = "json",
        response_timeout: float = 1.0,
        connect_timeout: float = 1.0,
        observer: object | None = None,
    ) -> None:
        if not isinstance(key_prefix, str) or not key_prefix or not _is_text(key_prefix) or set(key_prefix) & set("{}"):
            raise ConfigurationError("key_prefix", key_prefix, "a text of 1 or more characters without braces")
        check_choice("window_on", window_on, get_args(WindowOn))
        options = RedisStoreOptions(
            key_prefix=key_prefix,
            window=_lifetime("window_seconds", window_seconds, minimum=_SHORTEST),
            grace=_lifetime("grace_seconds", grace_seconds),
            window_on=window_on,
            dedupe=_lifetime("dedupe_seconds", dedupe_seconds),
            max_per_session=check_integer("max_per_session", max_per_session, minimum=0),
            max_sessions=check_integer("max_sessions", max_sessions, minimum=0),
            max_dead_letters=check_integer("max_dead_letters", max_dead_letters, minimum=1),
            dead_letter_seconds=_lifetime("dead_letter_seconds", dead_letter_seconds, minimum=_SHORTEST),
            shards=check_integer("shards", shards, minimum=1, maximum=_MOST_SHARDS),
        )
        client = RedisClient(
            RedisAddress.parse(redis_url), connect_timeout=check_seconds("connect_timeout", connect_timeout, above=0)
        )
        super().__init__(
            RedisStore(client, options),
            max_concurrent=max_concurrent,
            acquire_timeout=acquire_timeout,
            overflow=overflow,
            on_drop=on_drop,
            codec=codec,
            response_timeout=response_timeout,
            drain_hold=drain_hold,
            observer=observer,
        )


def _is_text(value: str) -> bool:
    return value.isprintable() or not any("\ud800" <= character <= "\udfff" for character in value)


def _lifetime(option: str, value: object, *, minimum: float = 0.0) -> float:
    seconds = check_seconds(option, value, minimum=minimum)
    if seconds > _TEN_YEARS:
        raise ConfigurationError(option, value, f"at most {_TEN_YEARS:g} seconds, ten years")
    return seconds
