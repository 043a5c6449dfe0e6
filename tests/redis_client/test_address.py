"""What a Redis URL says, and what nobody may see of it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from connector_sdk.errors import ConfigurationError
from connector_sdk.redis_client import RedisAddress
from connector_sdk.redis_client.address import Server, Topology

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "servers", "shown"),
    [
        ("redis://localhost", [("localhost", 6379)], "redis://localhost:6379"),
        ("redis://", [("localhost", 6379)], "redis://localhost:6379"),
        ("redis://h:1/", [("h", 1)], "redis://h:1"),
        ("redis://h:1/3", [("h", 1)], "redis://h:1/3"),
        ("redis://h?db=3", [("h", 6379)], "redis://h:6379/3"),
        ("rediss://[::1]:7000/0", [("::1", 7000)], "rediss://[::1]:7000"),
        ("redis://[fe80::1]", [("fe80::1", 6379)], "redis://[fe80::1]:6379"),
        ("unix:///run/redis.sock?db=2", [("/run/redis.sock", 0)], "unix:///run/redis.sock?db=2"),
        ("unix:///run/a%20b.sock", [("/run/a b.sock", 0)], "unix:///run/a b.sock"),
        ("redis+cluster://a:7000,b,[::1]:1", [("a", 7000), ("b", 6379), ("::1", 1)],
         "redis+cluster://a:7000,b:6379,[::1]:1"),
        ("redis+cluster://a:1,a:1", [("a", 1)], "redis+cluster://a:1"),
        ("rediss+cluster://a:7000", [("a", 7000)], "rediss+cluster://a:7000"),
        ("redis+sentinel://a,b:2/main/5", [("a", 26379), ("b", 2)], "redis+sentinel://a:26379,b:2/main/5"),
        ("rediss+sentinel://a/main", [("a", 26379)], "rediss+sentinel://a:26379/main"),
    ],
)  # fmt: skip
def test_servers_are_read(url: str, servers: list[tuple[str, int]], shown: str) -> None:
    address = RedisAddress.parse(url)
    assert list(address.servers) == servers
    assert str(address) == shown
    assert shown in repr(address)
    assert address.tls == url.startswith("rediss")


def test_topology_service_and_database() -> None:
    address = RedisAddress.parse("redis+sentinel://u:p@a,b/main/5?sentinel_username=su&sentinel_password=sp")
    assert address.topology is Topology.SENTINEL
    assert (address.service, address.db) == ("main", 5)
    assert (address.username, address.password) == ("u", "p")
    assert (address.sentinel_username, address.sentinel_password) == ("su", "sp")
    assert RedisAddress.parse("redis+cluster://a").topology is Topology.CLUSTER
    assert RedisAddress.parse("redis://a").topology is Topology.STANDALONE
    assert RedisAddress.parse("unix:///a").servers == (Server("/a", 0),)


@pytest.mark.parametrize(
    ("login", "username", "password"),
    [
        ("user:pass@", "user", "pass"),
        (":pass@", None, "pass"),
        ("user@", "user", None),
        ("us%40er:p%2Fa%3As%25@", "us@er", "p/a:s%"),
        ("user:p@ss/w#rd@", "user", "p@ss/w#rd"),
        ("", None, None),
    ],
)
@pytest.mark.parametrize(
    "place", ["redis://{}h:1/0", "redis+cluster://{}h:1,[::1]", "unix://{}/h", "redis+sentinel://{}h/m"]
)
def test_logins_are_read(place: str, login: str, username: str | None, password: str | None) -> None:
    address = RedisAddress.parse(place.format(login))
    assert (address.username, address.password) == (username, password)
    assert address.servers[0].host in ("h", "/h")


def test_a_login_may_stand_in_the_options() -> None:
    address = RedisAddress.parse("redis://h?username=u&password=p%20w&client_name=me")
    assert (address.username, address.password, address.client_name) == ("u", "p w", "me")


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@h/0",
        f"redis+cluster://{SECRET}:{SECRET}@h,h2",
        f"redis+sentinel://u:{SECRET}@h/m?sentinel_password={SECRET}&sentinel_username={SECRET}",
        f"unix://u:{SECRET}@/sock?password={SECRET}",
        f"rediss://h?password={SECRET}&username={SECRET}",
    ],
)
def test_no_secret_is_shown(url: str) -> None:
    address = RedisAddress.parse(url)
    assert SECRET not in f"{address} {address!r} {address.servers}"


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        (f"http://u:{SECRET}@h", "redis://"),
        (f"u:{SECRET}@h", "redis://"),
        (f"redis://u:{SECRET}@h/name", "database number"),
        (f"redis://u:{SECRET}@h:99999", "ports"),
        (f"redis://u:{SECRET}@h:x", "ports"),
        (f"redis://u:{SECRET}@::1", "IPv6"),
        (f"redis://u:{SECRET}@[::1", "IPv6"),
        (f"redis://u:{SECRET}@a,b", "redis+cluster"),
        (f"redis+sentinel://u:{SECRET}@a", "name"),
        (f"unix://u:{SECRET}@h", "socket"),
        (f"redis://u:{SECRET}?{SECRET}@h", "%3F"),
        (f"redis://u:{SECRET}@h?passwort={SECRET}", "did you mean password"),
        (f"redis://u:{SECRET}@h?socket_timeout={SECRET}", "known are"),
        (f"redis://u:{SECRET}@h?db=-1", "database number"),
        (f"redis://u:{SECRET}@h?ssl_ca_certs=x", "rediss"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_remedy_and_no_secret(url: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisAddress.parse(url)
    assert remedy in str(caught.value)
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.given}"


def test_options_of_tls_make_its_context(tmp_path: Path) -> None:
    assert RedisAddress.parse("redis://h").ssl_context is None
    strict = RedisAddress.parse("rediss://h").ssl_context
    assert strict is not None
    assert strict.check_hostname
    assert strict.verify_mode is ssl.CERT_REQUIRED
    lax = RedisAddress.parse("rediss://h?ssl_cert_reqs=none").ssl_context
    assert lax is not None
    assert lax.verify_mode is ssl.CERT_NONE
    any_host = RedisAddress.parse("rediss://h?ssl_check_hostname=False").ssl_context
    assert any_host is not None
    assert (any_host.check_hostname, any_host.verify_mode) == (False, ssl.CERT_REQUIRED)
    with pytest.raises(ConfigurationError, match="ssl_cert_reqs"):
        RedisAddress.parse("rediss://h?ssl_cert_reqs=maybe")
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match="ssl_ca_certs"):
            _ = RedisAddress.parse(f"rediss://h?ssl_ca_certs={tmp_path / file}").ssl_context
