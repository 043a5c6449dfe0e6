"""Buses and buffers by configuration: a dict or a URL names the storage, and entry points add storages of others."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias
from urllib.parse import quote

from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.postgres import PostgresEventBuffer
from connector_sdk.buffers.protocol import BufferBackend
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.log import EventLog
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.bus.redis import RedisLog
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_choice, check_integer

__all__ = ["BUFFERS", "EVENT_LOGS", "create_event_bus", "open_buffer"]

logger = logging.getLogger(__name__)

#: The group of entry points that make an EventLog: each a callable of the options of its configuration.
EVENT_LOGS: Final = "connector_sdk.event_logs"
#: The group of entry points that make a BufferBackend: named by a URL's scheme, each a callable of URL and options.
BUFFERS: Final = "connector_sdk.buffers"

_Options: TypeAlias = dict[str, object]
_LogFactory: TypeAlias = Callable[..., EventLog]

_BUS_OPTIONS: Final = ("source", "hold", "queue_size", "close_timeout", "max_threads")
#: Other names for options, as configurations of other systems have them.
_SYNONYMS: Final = {
    "max_events_per_run": "max_events",
    "stream_ttl_seconds": "ttl_seconds",
    "stream_prefix": "key_prefix",
    "channel_prefix": "key_prefix",
    "socket_connect_timeout": "connect_timeout",
    "socket_timeout": "response_timeout",
}
_REDIS_PLACE: Final = ("url", "host", "port", "db", "ssl", "username", "password", "connection_pool_size")
_POSTGRES_PLACE: Final = ("connection_string", "url", "dsn")
_PSYCOPG: Final = "one whose package is installed, and psycopg is not: pip install 'connector_sdk[postgres]'"


def create_event_bus(
    config: Mapping[str, object] | None = None,
    *,
    registry: EventRegistry | None = None,
    observer: object | None = None,
) -> EventBus:
    """
    Return a bus for a configuration; it is not connected yet, and nothing was sent.

    ::

        bus = create_event_bus({"backend": "redis", "url": "redis://localhost:6379/0", "max_events": 10_000})

    Args:
        config: `backend` is "memory", "redis", "postgres" or the name of an entry point in the group
            `connector_sdk.event_logs`. The other keys are the options of `EventBus` (source, hold, queue_size, close_timeout,
            max_threads) and of the log: see `MemoryLog`, `RedisLog`, `PostgresLog`; they may also stand in a dict of their
            own under the backend's name. Redis is named by `url` (or the variable REDIS_URL), or by host, port, db, ssl,
            username and password; Postgres by `connection_string`. `fallback="memory"` takes the memory, with a warning,
            when the backend's package is missing.
        registry: the event classes that are known, see `EventBus`.
        observer: a hook for metrics, see `EventBus`.

    Without a backend the memory is taken, with a warning, for then events never leave the process.

    Raises:
        ConfigurationError: an option that is not known (the nearest name is suggested) or has a value that cannot work, a
            backend that is not known, or one whose package is missing.
    """
    given: object = config
    if given is not None and not isinstance(given, Mapping):
        allowed = 'a dict, such as {"backend": "redis", "url": "redis://localhost:6379/0"}'
        raise ConfigurationError("config", given, allowed, secret=True)  # it may be a URL with its password
    options = dict(config or {})
    backend = options.pop("backend", None)
    if backend is None:
        logger.warning(
            "no backend is named for the event bus: the memory is taken, and events never leave this process"
        )
        backend = "memory"
    fallback = options.pop("fallback", None)
    if fallback is not None:
        check_choice("fallback", fallback, ("memory",))
    factory = _factory(backend)
    nested = options.pop(str(backend), None)
    if nested is not None:
        if not isinstance(nested, Mapping):
            raise ConfigurationError(str(backend), nested, f"a dict with the options of {backend}")
        options = {**options, **nested}
    for_bus = {name: options.pop(name) for name in _BUS_OPTIONS if name in options}
    missing = _missing_package(str(backend))
    if missing and fallback is None:
        raise ConfigurationError("backend", backend, missing)
    if missing:
        logger.warning(
            "THE EVENT BUS FALLS BACK TO THE MEMORY: %s needs psycopg (pip install 'connector_sdk[postgres]'). "
            "Events never leave this process and end with it",
            backend,
        )  # fmt: skip
        log: EventLog = MemoryLog()
    else:
        log = factory(options)
    return EventBus(log, registry=registry, observer=observer, **for_bus)  # type: ignore[arg-type]  # EventBus checks them


def open_buffer(url: str, **options: object) -> BufferBackend:
    """
    Return the buffer that *url* names; nothing was sent yet.

    `memory://` is an `EventBuffer`, `sqlite:///events.db` an `SQLiteEventBuffer`, `redis://host/0` (and the other schemes of
    `RedisEventBuffer`) a `RedisEventBuffer`, `postgresql://host/database` a `PostgresEventBuffer`; other schemes are looked up
    in the entry points `connector_sdk.buffers`. *options* are those of the class.

    Raises ConfigurationError for a scheme or an option that is not known, for a value that cannot work, and for a
    package that is missing.
    """
    scheme = url.partition(":")[0] if isinstance(url, str) else ""
    if scheme == "memory":
        check_names(options, _names_of(EventBuffer))
        return EventBuffer(**options).as_backend()  # type: ignore[arg-type]  # the class checks them
    if scheme == "sqlite":
        durable: Callable[..., BufferBackend] = SQLiteEventBuffer
    elif scheme in ("redis", "rediss", "unix") or scheme.startswith(("redis+", "rediss+")):
        durable = RedisEventBuffer
    elif scheme in ("postgres", "postgresql"):
        if missing := _missing_package("postgres"):
            raise ConfigurationError("url", f"{scheme}://…", missing)
        durable = PostgresEventBuffer
    else:
        return _other_buffer(scheme, url, options)
    check_names(options, _names_of(durable))
    return durable(url, **options)


def check_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigurationError for the first option that is not known, and name the nearest one that is."""
    names = sorted(known)
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, names, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(option, "…", f"an option that is known; {hint}There are: {', '.join(names)}")


def _factory(backend: object) -> Callable[[_Options], EventLog]:
    own = {"memory": _memory, "redis": _redis, "postgres": _postgres}
    if isinstance(backend, str) and backend in own:
        return own[backend]
    others = {point.name: point for point in importlib.metadata.entry_points(group=EVENT_LOGS)}
    if isinstance(backend, str) and backend in others:
        make: _LogFactory = others[backend].load()
        return lambda options: make(**options)
    known = [*own, *others]
    near = difflib.get_close_matches(str(backend), known, 1)
    hint = f"{near[0]!r}, perhaps; known are: " if near else "one of "
    raise ConfigurationError("backend", backend, hint + ", ".join(repr(name) for name in known))


def _memory(options: _Options) -> EventLog:
    return _make(MemoryLog, (), _translated(options), ())


def _redis(options: _Options) -> EventLog:
    place: _Options = {name: options.pop(name) for name in _REDIS_PLACE if name in options}
    # One connection carries the requests of all: the size of a pool is checked and means nothing.
    check_integer("connection_pool_size", place.pop("connection_pool_size", 10), minimum=1, maximum=10_000)
    return _make(RedisLog, (_redis_url(place),), _translated(options), _REDIS_PLACE)


def _postgres(options: _Options) -> EventLog:
    given = [options.pop(name) for name in _POSTGRES_PLACE if name in options]
    if len(given) != 1 or not isinstance(given[0], str):
        allowed = "given, once, as text: postgresql://user@host/database or words of libpq"
        raise ConfigurationError("connection_string", given, allowed, secret=True)
    return _make(PostgresLog, (given[0],), _translated(options), _POSTGRES_PLACE)


def _make(cls: _LogFactory, place: tuple[str, ...], options: _Options, more: Iterable[str]) -> EventLog:
    check_names(options, {*_names_of(cls), *more, *_BUS_OPTIONS, "fallback"})
    return cls(*place, **options)


def _names_of(cls: Callable[..., object]) -> set[str]:
    """The options of a class; what comes first and has no default is the place."""
    found = inspect.signature(cls).parameters.values()
    return {one.name for one in found if one.default is not one.empty}


def _translated(options: _Options) -> _Options:
    result: _Options = {}
    for name, value in options.items():
        known = _SYNONYMS.get(name, name)
        if known in result or (known != name and known in options):
            raise ConfigurationError(name, value, f"left out when {known} is given: they are the same")
        result[known] = value
    return result


def _redis_url(place: _Options) -> str:
    url = place.pop("url", None)
    if url is not None:
        if place:
            raise ConfigurationError("url", url, f"alone, or left out when {min(place)} is given", secret=True)
        if not isinstance(url, str):
            raise ConfigurationError("url", url, "a text, a URL such as redis://localhost:6379/0", secret=True)
        return url
    if not place:
        return os.environ.get("REDIS_URL") or "redis://localhost:6379/0"
    host = place.get("host")
    if not isinstance(host, str) or not host:
        raise ConfigurationError("host", host, "the name or address of a Redis server, when there is no url")
    port = check_integer("port", place.get("port", 6379), minimum=1, maximum=65_535)
    db = check_integer("db", place.get("db", 0), minimum=0)
    tls = place.get("ssl", False)
    if not isinstance(tls, bool):
        raise ConfigurationError("ssl", tls, "True or False")
    login = "".join(
        _quoted(name, place.get(name), ":" if name == "password" else "") for name in ("username", "password")
    )
    where = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'rediss' if tls else 'redis'}://{login and login + '@'}{where}:{port}/{db}"


def _quoted(name: str, value: object, before: str) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise ConfigurationError(name, value, "a text", secret=True)
    return before + quote(value, safe="")


def _missing_package(backend: str) -> str:
    """What is missing for a backend, "" for nothing."""
    if backend == "postgres" and importlib.util.find_spec("psycopg") is None:
        return _PSYCOPG
    return ""


def _other_buffer(scheme: str, url: str, options: Mapping[str, object]) -> BufferBackend:
    others = {point.name: point for point in importlib.metadata.entry_points(group=BUFFERS)}
    if scheme in others:
        make: Callable[..., BufferBackend] = others[scheme].load()
        return make(url, **options)
    known = ["memory", "sqlite", "redis", "rediss", "unix", "redis+cluster", "redis+sentinel", "postgresql", *others]
    raise ConfigurationError(
        "url", f"{scheme}://…", "a URL that starts with " + ", ".join(f"{name}://" for name in known)
    )
