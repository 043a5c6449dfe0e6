"""
For our users' tests as much as for our own: a scripted connector on a real socket, and the contract suites.

`ConnectorServer` serves events as a connector does, and does on demand what connectors and networks do on bad days: the
steps of a script (`Cut`, `Stall`, `Status`, ...) say what happens to which connection. `RedisServer` runs a real Redis or
Valkey that can be killed and paused, `PostgresServer` a real PostgreSQL. Every name resolves on first use, so that
importing this package costs nothing and needs no pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from connector_sdk.testing.bus_contract import EventBusContract as EventBusContract
    from connector_sdk.testing.contracts import BufferBackendContract as BufferBackendContract
    from connector_sdk.testing.log_case import LogOptions as LogOptions
    from connector_sdk.testing.log_contract import EventLogContract as EventLogContract
    from connector_sdk.testing.postgres_server import PostgresServer
    from connector_sdk.testing.records import LoggedEvent, Request
    from connector_sdk.testing.redis_server import RedisServer
    from connector_sdk.testing.script import (
        Comment,
        Cut,
        Duplicate,
        Garbage,
        NoResume,
        Raw,
        Redirect,
        Refuse,
        Serve,
        Silence,
        SplitEveryByte,
        Stall,
        Status,
        Step,
        WrongContentType,
    )
    from connector_sdk.testing.server import ConnectorServer
    from connector_sdk.testing.store_contract import EventStoreContract as EventStoreContract

__all__ = [
    "Comment",
    "ConnectorServer",
    "Cut",
    "Duplicate",
    "Garbage",
    "LoggedEvent",
    "NoResume",
    "PostgresServer",
    "Raw",
    "Redirect",
    "RedisServer",
    "Refuse",
    "Request",
    "Serve",
    "Silence",
    "SplitEveryByte",
    "Stall",
    "Status",
    "Step",
    "WrongContentType",
]

#: Names that need the `testing` extra, and the module that has each.
_WITH_PYTEST: Final = {
    "BufferBackendContract": "contracts",
    "EventBusContract": "bus_contract",
    "EventLogContract": "log_contract",
    "EventStoreContract": "store_contract",
    "LogOptions": "log_case",
}
_HOMES: Final = {
    **dict.fromkeys(__all__, "script"),
    "ConnectorServer": "server",
    "LoggedEvent": "records",
    "PostgresServer": "postgres_server",
    "RedisServer": "redis_server",
    "Request": "records",
    **_WITH_PYTEST,
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
