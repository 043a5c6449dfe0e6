"""Buses made by `create_event_bus`, on real servers: each option counts, and no secret comes out while all goes wrong."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import anyio
import psycopg
import pytest
import redis

from connector_sdk.errors import BusUnavailableError, ConfigurationError
from connector_sdk.plugins import create_event_bus
from connector_sdk.testing import PostgresServer
from connector_sdk.testing.bus_case import TOPIC, Seen, event, until
from tests.bus.places import PATIENCE
from tests.servers.fixtures import StartRedis, one_kind
from tests.servers.tls import Certificates, TlsServer

pytestmark = pytest.mark.anyio

SECRET = "hush:h/us@h?#%"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def goes_through(config: Mapping[str, object]) -> None:
    """Publish and receive an event."""
    seen = Seen(PATIENCE)
    async with create_event_bus(config) as bus:
        await bus.subscribe(TOPIC, seen)
        await bus.publish(TOPIC, event(1))
        assert list(await seen.wait_for(1)) == [1]


@one_kind
@pytest.mark.parametrize("nested", [False, True])
async def test_the_database_user_and_password_are_those_of_the_configuration(
    start_redis: StartRedis, nested: bool
) -> None:
    """X35: the option `db` was documented and ignored."""
    server = start_redis(arguments=("--requirepass", SECRET))
    options = {"host": "127.0.0.1", "port": server.port, "db": 3, "password": SECRET, "key_prefix": "mine"}
    await goes_through({"backend": "redis", **({"redis": options} if nested else options)})
    with redis.Redis(port=server.port, password=SECRET) as client:
        databases = client.info("keyspace")
        assert isinstance(databases, dict)
        assert set(databases) == {"db3"}
        client.select(3)
        keys = client.keys("*")
        assert isinstance(keys, list)
        assert keys
        assert all(b"mine" in key for key in keys)
    wrong = {"backend": "redis", **options, "password": SECRET[::-1]}
    with pytest.raises(ConfigurationError) as caught:
        await goes_through(wrong)
    said = "".join(traceback.format_exception(caught.value))
    assert SECRET[::-1] not in said
    assert quote(SECRET[::-1], safe="") not in said


async def test_ssl_means_tls(redis_tls: TlsServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    await goes_through({"backend": "redis", "host": "127.0.0.1", "port": redis_tls.port, "ssl": True})
    with pytest.raises((BusUnavailableError, ConfigurationError)):
        await goes_through({"backend": "redis", "host": "127.0.0.1", "port": redis_tls.port, "ssl": False})


async def test_postgres_by_configuration(postgres_url: str) -> None:
    config = {"connection_string": postgres_url, "channel_prefix": "mine", "max_events": 50}
    await goes_through({"backend": "postgres", **config})
    await goes_through({"backend": "postgres", "postgres": config})
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables
    assert all(name.startswith("mine") for (name,) in tables)


async def no_secret_comes_out(config: Mapping[str, object], server: object, caplog: pytest.LogCaptureFixture) -> None:
    """Use a bus, kill its server under it, and look at everything that says something."""
    said: list[str] = []
    seen = Seen(PATIENCE)

    class Observer:
        def bus_state(self, *, bus: str, state: str) -> None:
            said.append(f"{bus} {state}")

    async def fails(one: object) -> None:
        raise LookupError("on purpose")

    with caplog.at_level(logging.DEBUG):
        bus = create_event_bus(config, observer=Observer())
        said.append(repr(bus))
        async with bus:
            said += [repr(await bus.subscribe(TOPIC, seen)), repr(await bus.subscribe("*", seen, group="G"))]
            said.append(repr(await bus.subscribe(TOPIC, fails, group="F", max_attempts=1)))
            await bus.publish(TOPIC, event(1))
            await bus.settle(PATIENCE)
            said += [repr(bus), repr(bus.stats()), repr(await bus.dead_letters.list()), repr(await bus.info(TOPIC))]
            await anyio.to_thread.run_sync(server.kill)  # type: ignore[attr-defined]  # servers of every kind have it
            with pytest.raises(BusUnavailableError) as caught:
                await bus.publish(TOPIC, event(2))
            said.append("".join(traceback.format_exception(caught.value)))
            await until(lambda: not bus.is_connected, PATIENCE)
            said += [repr(await bus.health()), repr(bus)]
            await bus.close(timeout=0)
    with pytest.raises(BusUnavailableError) as refused:
        await create_event_bus(config).connect()
    said.append("".join(traceback.format_exception(refused.value)))
    said += [record.getMessage() + str(record.exc_text) for record in caplog.records]
    assert any("unavailable" in one for one in said)
    for text in said:
        assert "hush" not in text
        assert "h%2Fus" not in text


@one_kind
async def test_no_secret_of_redis_comes_out(start_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    """X30: the masking of URLs left the password readable."""
    server = start_redis(arguments=("--requirepass", SECRET))
    place = {"host": "127.0.0.1", "port": server.port, "password": SECRET}
    await no_secret_comes_out({"backend": "redis", **place}, server, caplog)


async def test_no_secret_of_postgres_comes_out(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """X30, for the other log."""
    parts = urlsplit(postgres_server.url)
    url = parts._replace(netloc=f"{parts.username}:hush%3Ah%2Fus%40h@127.0.0.1:{parts.port}").geturl()
    await no_secret_comes_out({"backend": "postgres", "connection_string": url}, postgres_server, caplog)
