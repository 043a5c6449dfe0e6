"""PostgresLog passes the public contract suite, on asyncio, woken by notifications and by looking; and its options."""

from __future__ import annotations

import itertools
from typing import Unpack

import pytest

from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.bus.postgres_publisher import Bounds, Retention
from connector_sdk.errors import ConfigurationError
from connector_sdk.testing import EventLogContract, LogOptions
from tests.servers.fixtures import every_postgres

_prefixes = itertools.count()


@pytest.fixture
def anyio_backend() -> str:
    """The driver works in asyncio alone."""
    return "asyncio"


@every_postgres
class TestPostgresLog(EventLogContract):
    hold = 1.0

    @pytest.fixture(autouse=True)
    def _place(self, postgres: str) -> None:
        # Databases take time to make; prefixes are as good as that here.
        self.dsn, self.prefix = postgres, f"log-{next(_prefixes)}"

    async def make_log(self, **options: Unpack[LogOptions]) -> PostgresLog:
        return PostgresLog(self.dsn, self.prefix, connect_timeout=20.0, response_timeout=20.0, **options)

    async def make_aging_log(self, ttl_seconds: float) -> PostgresLog:
        log = await self.make_log()
        log._retention = Retention(Bounds(1000, ttl_seconds, 100_000, 604_800.0), {})
        return log


@pytest.mark.anyio
async def test_topics_may_have_a_retention_of_their_own(postgres: str) -> None:
    log = PostgresLog(postgres, "own-retention", retention={"short": (10, 60.0)}, response_timeout=20.0)
    await log.connect()
    for number in range(30):
        await log.append([("short", b"%d" % number), ("usual", b"%d" % number)])
    short, usual = await log.info("short"), await log.info("usual")
    assert short is not None
    assert usual is not None
    assert (short.length, usual.length) == (10, 30)
    await log.tend()
    assert await log.info("usual") is not None
    with pytest.raises(ConfigurationError):
        PostgresLog(postgres, retention={"short": (9, 60.0)})
    await log.aclose()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_events", 9),
        ("max_events", 100_001),
        ("ttl_seconds", 59.9),
        ("ttl_seconds", 604_801),
        ("max_events", 50.0),
        ("ttl_seconds", True),
        ("max_backlog", 999),
        ("max_backlog_seconds", 3599),
        ("max_dead_letters", -1),
        ("dead_letter_seconds", 0),
        ("connect_timeout", 0),
        ("response_timeout", 0),
        ("poll_interval", 0),
        ("notify", "always"),
        ("key_prefix", ""),
        ("key_prefix", 'a"b'),
        ("key_prefix", "x" * 41),
        ("dsn", "mysql://localhost"),
    ],
)
def test_options_that_cannot_work_are_refused(option: str, value: object) -> None:
    options: dict[str, object] = {"dsn": "postgresql://127.0.0.1/nowhere"}
    options[option] = value
    with pytest.raises(ConfigurationError) as refused:
        PostgresLog(**options)  # type: ignore[arg-type]  # wrong on purpose
    assert refused.value.option == option
