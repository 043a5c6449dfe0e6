"""What every test may use."""

from __future__ import annotations

import os
import signal

import pytest

#: Real servers, and proxies that cut: fixtures with "redis" in their names.
pytest_plugins = ["tests.servers.fixtures"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and the programs that the tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """
    What `-n auto` means: two processes for each core, for most tests wait most of their time.

    One process for a server that REDIS_URL names: some tests count all that it has.
    """
    return 0 if os.environ.get("REDIS_URL") else min(2 * (os.cpu_count() or 1), 8)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let one process have all busy tests: each begins with an equal part of the list (`--dist worksteal`)."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("busy") is None)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Each async test runs on both event loops."""
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True)
def _no_connector_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the developer's own shell must not change a test."""
    for name in [name for name in os.environ if name.startswith("CONNECTOR_")]:
        monkeypatch.delenv(name)
