"""The pytest plugin: it comes with the package, costs nothing until a fixture is used, and needs no configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from connector_sdk.testing.server import ConnectorServer

__all__ = ["ConnectorServerFactory", "connector_server"]

#: Takes the arguments of ConnectorServer and returns one that serves.
ConnectorServerFactory: TypeAlias = "Callable[..., ConnectorServer]"


@pytest.fixture
def connector_server() -> Iterator[ConnectorServerFactory]:
    """
    Start scripted connectors, each closed at the end of the test.

    `server = connector_server(events, script=[Cut(after_events=1)])` takes the arguments of
    `connector_sdk.testing.ConnectorServer` and returns one that serves. The latest is closed first; what an iterator of
    events raised fails the test.
    """
    from connector_sdk.testing.server import ConnectorServer  # noqa: PLC0415 - not at the start of every pytest run

    with contextlib.ExitStack() as servers:

        def start(*args: object, **options: object) -> ConnectorServer:
            make: Callable[..., ConnectorServer] = ConnectorServer
            return servers.enter_context(make(*args, **options))

        yield start
