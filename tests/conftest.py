"""What every test may use."""

from __future__ import annotations

import pytest

#: Real servers, and proxies that cut: fixtures with "redis" in their names.
pytest_plugins = ["tests.servers.fixtures"]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Each async test runs on both event loops."""
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True)
def _no_connector_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the developer's own shell must not change a test."""
    import os

    for name in [name for name in os.environ if name.startswith("CONNECTOR_")]:
        monkeypatch.delenv(name)
