"""Options of buses, logs and consumers: what cannot work is refused by name, before anything is sent."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.bus.redis import RedisLog
from connector_sdk.decisions import RetryAfter
from connector_sdk.errors import ConfigurationError
from connector_sdk.streams import Consumer, GroupConsumer
from connector_sdk.testing.bus_case import TOPIC

NO_NUMBERS = [-1, math.nan, math.inf, -math.inf, True, "5", b"5", [], 10**400, -(10**400)]
CONSTRUCTORS: dict[type, tuple[object, ...]] = {
    EventBus: (MemoryLog(),),
    MemoryLog: (),
    RedisLog: ("redis://localhost",),
    PostgresLog: ("postgresql://localhost/shop",),
    Consumer: ("redis://localhost", "stream"),
    GroupConsumer: ("redis://localhost", "stream", "group"),
}
NUMBERS = [
    (cls, name)
    for cls in CONSTRUCTORS
    for name, one in inspect.signature(cls).parameters.items()
    if type(one.default) in (int, float)
]


def refuses(option: str, call: Callable[[], object], value: object) -> None:
    """Row 75: the error names the option, the value, and what would do."""
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert caught.value.option == option
    assert repr(value) in str(caught.value)
    assert caught.value.allowed


@pytest.mark.parametrize(("cls", "option"), NUMBERS, ids=lambda one: getattr(one, "__name__", one))
def test_what_is_no_number_in_its_range_is_refused_by_name(cls: type, option: str) -> None:
    """Also what no float can hold: every option of every class that has numbers, those of tomorrow included."""
    for value in NO_NUMBERS:
        if type(value) is int and value > 0 and type(inspect.signature(cls).parameters[option].default) is int:
            continue  # a count without a bound is one
        refuses(option, lambda value=value: cls(*CONSTRUCTORS[cls], **{option: value}), value)  # type: ignore[misc]


def test_there_are_numbers_to_test() -> None:
    assert len(NUMBERS) > 30


@pytest.mark.parametrize(
    ("cls", "option", "value"),
    [
        (MemoryLog, "max_backlog_seconds", 1e300), (RedisLog, "max_backlog_seconds", 1e300),
        (PostgresLog, "max_backlog_seconds", 1e300), (RedisLog, "dead_letter_seconds", 1e300),
        (PostgresLog, "dead_letter_seconds", 1e300), (GroupConsumer, "hold", 1e9), (EventBus, "hold", 1e9),
        (MemoryLog, "max_backlog", 999), (RedisLog, "max_backlog", 999), (PostgresLog, "max_backlog", 999),
        (MemoryLog, "max_backlog_seconds", 3599), (PostgresLog, "max_backlog_seconds", 3599),
    ],
)  # fmt: skip
def test_what_no_storage_could_keep_is_refused(cls: type, option: str, value: float) -> None:
    """PostgreSQL has no such interval and Redis no such expiry: burying and trimming would fail for ever."""
    refuses(option, lambda: cls(*CONSTRUCTORS[cls], **{option: value}), value)


@pytest.mark.parametrize("cls", [MemoryLog, RedisLog, PostgresLog])
@pytest.mark.parametrize(
    ("retention", "option"),
    [
        ({"orders:*": (10, 60.0)}, "retention"), ({"": (10, 60.0)}, "retention"), ({7: (10, 60.0)}, "retention"),
        ({TOPIC: 10}, "retention"), ({TOPIC: (10,)}, "retention"), ({TOPIC: (10, 60.0, 1)}, "retention"),
        ([(TOPIC, (10, 60.0))], "retention"), ("orders", "retention"),
        ({TOPIC: (9, 60.0)}, "max_events"), ({TOPIC: (10, 59.0)}, "ttl_seconds"), ({TOPIC: ("10", 60.0)}, "max_events"),
    ],
)  # fmt: skip
def test_a_retention_that_would_never_count_is_refused_by_every_log(cls: type, retention: object, option: str) -> None:
    """A pattern among them was taken without a word, and its topics had the usual retention."""
    with pytest.raises(ConfigurationError) as caught:
        cls(*CONSTRUCTORS[cls], retention=retention)
    assert caught.value.option == option


async def use(found: Any) -> None:
    """Await what a method returned, or enter it."""
    await (found.__aenter__() if hasattr(found, "__aenter__") else found)


@pytest.mark.anyio
async def test_times_given_to_a_bus_are_checked() -> None:
    async with EventBus(MemoryLog()) as bus:
        await bus.subscribe(TOPIC, print, group="G")
        calls: dict[str, Callable[[Any], Any]] = {
            "settle": bus.settle, "health": bus.health, "close": bus.close, "once": lambda ttl: bus.once("key", ttl),
            "recover": lambda idle: bus.recover("G", idle), "retry": RetryAfter,
            "subscribe": lambda delay: bus.subscribe(TOPIC, print, retry_delays=(delay,)),
        }  # fmt: skip
        for call in calls.values():
            for value in NO_NUMBERS:
                with pytest.raises(ConfigurationError):
                    await use(call(value))
        assert await bus.health()


def test_a_postgres_log_without_psycopg_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "import asyncio, connector_sdk\n"
        "try:\n"
        "    asyncio.run(connector_sdk.PostgresLog('postgresql://localhost/shop').connect())\n"
        "except connector_sdk.ConfigurationError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "connector_sdk[postgres]" in done.stdout
