"""TLS and users with few rights: all works, and what is wrong with either is told and harms nobody."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

import anyio
import pytest
import redis

from connector_sdk.ledger import DropReason
from connector_sdk.payloads import ActionsPayload
from tests.faults.books import Books, MakeBuffer, check_account, drain_all, settled
from tests.faults.traffic import finish
from tests.servers.acl import PASSWORD
from tests.servers.cluster import Cluster
from tests.servers.fixtures import MakeUser, Server, StartTls, one_kind
from tests.servers.proxy import Proxy
from tests.servers.tls import Certificates, TlsServer

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

_GUIDE: Final = Path(__file__).parents[2] / "docs" / "howto" / "redis.md"


def rights() -> tuple[list[str], str]:
    """The commands and the pattern of keys that the documentation asks for."""
    [line] = re.findall(r"^ACL SETUSER (.*)$", _GUIDE.read_text(), re.MULTILINE)
    commands = re.findall(r"\+(\S+)", line)
    [keys] = re.findall(r"~(\S+)", line)
    assert len(commands) > 20
    return commands, keys.replace("clicks", "faults")


# -- TLS


async def test_over_tls_with_verification(redis_tls: TlsServer, make_buffer: MakeBuffer, books: Books) -> None:
    buffer = make_buffer(f"{redis_tls.url}?ssl_ca_certs={redis_tls.certificates.ca}")
    async with anyio.create_task_group() as group:
        for number in range(500):
            group.start_soon(buffer.add, books.new(f"s{number % 10}"))
    async with buffer.lease(100) as lease:
        books.took(lease.events)
    await drain_all(buffer, books)
    books.check()
    assert not books.dropped
    check_account(await buffer.stats(), books)


async def test_tls_that_is_cut(
    redis_tls: TlsServer, start_proxy: type[Proxy], make_buffer: MakeBuffer, books: Books
) -> None:
    proxy = start_proxy(redis_tls.port)
    buffer = make_buffer(f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={redis_tls.certificates.ca}")
    for offset in (0, 1, 100, 1000, 3000, 10_000):
        for reset in (False, True):
            await buffer.add(books.new())
            proxy.cut_after(offset, "to_client" if reset else "to_server", reset=reset)
            async with anyio.create_task_group() as group:
                for number in range(60):
                    group.start_soon(buffer.add, books.new(f"s{number % 4}"))
            proxy.restore()
            await settled(buffer)
    assert proxy.accepted > 2
    await finish(buffer, books)
    books.check()


@pytest.fixture(params=["another authority", "no authority"])
def distrust(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Options for a URL with which no server of the tests is trusted."""
    return f"?ssl_ca_certs={Certificates.make(tmp_path).ca}" if request.param == "another authority" else ""


async def test_a_certificate_that_is_not_trusted(
    redis_tls: TlsServer, make_buffer: MakeBuffer, books: Books, caplog: pytest.LogCaptureFixture, distrust: str
) -> None:
    buffer = make_buffer(redis_tls.url + distrust)
    for _ in range(20):
        await buffer.add(books.new())
    assert await buffer.drain() == []
    stats = await buffer.stats()
    assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 20}
    assert stats.state == "open"
    check_account(stats, books)
    assert "certificate is not trusted" in caplog.text


async def test_a_client_certificate(
    start_tls: StartTls, make_buffer: MakeBuffer, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_tls(client_certificate=True)
    buffer = make_buffer(server.trusting_url)
    for _ in range(20):
        await buffer.add(books.new())
    await drain_all(buffer, books)
    assert len(books.taken) == 20
    stranger = make_buffer(f"{server.url}?ssl_ca_certs={server.certificates.ca}")
    for _ in range(20):
        await stranger.add(books.new())
    assert await stranger.drain() == []
    assert len(books.dropped) == 20
    assert "is away" in caplog.text
    books.check()


# -- users


async def do_everything(buffer_url: str, make_buffer: MakeBuffer, books: Books, **options: object) -> None:
    """Every operation of a buffer, with every kind of event and bound; nothing may be refused."""
    buffer = make_buffer(buffer_url, max_per_session=40, max_sessions=60, **options)
    for number in range(100):
        await buffer.add(books.new(f"s{number % 10}" if number % 7 else None, with_id=number % 2 == 0))
    for _ in range(2):
        await buffer.add(ActionsPayload("shop", "s1", forwarded_at=time.time(), event_id="a"))
    assert await buffer.size() == 101
    assert len(await buffer.peek()) == 101
    assert len(await buffer.sessions()) == 11
    assert len(await buffer.drain_by_type(summaries=False)) == 1
    books.took(await buffer.drain(10))
    books.took(await buffer.drain(session_id="s1"))
    async with buffer.lease(20, timeout=5.0) as lease:
        await lease.extend(10.0)
        await lease.ack(lease.events[:5])
        books.took(lease.events)
    async with buffer.lease(20, timeout=5.0) as lease:
        await lease.ack(lease.events[:5])
        books.took(lease.events[:5])
        await lease.give_back()
    async for page in buffer.drain_pages(7):
        books.took(page)
    for number in range(100):
        await buffer.add(books.new(f"t{number}"))
        await buffer.add(books.new("many"))
    books.took(await buffer.drain())
    assert await buffer.quarantined() == []
    await buffer.clear()
    stats = await settled(buffer)
    assert stats.shared is not None
    assert stats.shared.balanced
    pushed_out = stats.shared.dropped_total - stats.shared.dropped[DropReason.DUPLICATE]
    assert pushed_out > 0
    books.check(missing=pushed_out)
    assert (stats.failed_reads, stats.outages, stats.findings) == (0, 0, [])
    assert stats.ledger.dropped == {DropReason.DUPLICATE: 1}


async def test_a_user_with_the_rights_that_the_documentation_names(
    redis_server: Server, redis_user: MakeUser, make_buffer: MakeBuffer, books: Books
) -> None:
    commands, keys = rights()
    user = redis_user(commands=commands, keys=[keys])
    await do_everything(user.url, make_buffer, books)
    with redis.Redis(port=redis_server.port, decode_responses=True) as admin:
        assert all(key.startswith("{faults:0}:") for key in admin.scan_iter())


@one_kind
async def test_such_a_user_in_a_cluster(redis_cluster: Cluster, make_buffer: MakeBuffer, books: Books) -> None:
    commands, keys = rights()
    rules = [*(f"+{command}" for command in [*commands, "cluster|slots", "asking"]), f"~{keys}"]
    for node in redis_cluster.nodes:
        node.do("ACL", "SETUSER", "few", "reset", "on", f">{PASSWORD}", "-@all", *rules)
    try:
        url = f"redis+cluster://few:{PASSWORD}@127.0.0.1:{redis_cluster.up[0].port}"
        await do_everything(url, make_buffer, books, shards=6)
    finally:
        for node in redis_cluster.nodes:
            node.do("ACL", "DELUSER", "few")


@pytest.mark.parametrize("lacks", ["evalsha", "hmget", "zadd", "rpush", "pexpire", "hget", "unlink"])
async def test_a_user_who_lacks_a_right(
    redis_user: MakeUser, make_buffer: MakeBuffer, books: Books, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    commands, keys = rights()
    assert lacks in commands
    user = redis_user(commands=[command for command in commands if command != lacks], keys=[keys])
    buffer = make_buffer(user.url)
    for _ in range(100):
        await buffer.add(books.new())
    books.took(await buffer.drain())
    assert not books.taken
    stats = await buffer.stats()
    check_account(stats, books)
    # Without one of the rights that only draining needs, adding works; one may only not get at the events.
    assert len(books.dropped) == 100 or lacks in ("rpush", "hget", "unlink")
    assert stats.failed_reads > 0
    assert re.search(r"(?i)no permission|can't run this command|NOPERM", caplog.text)
    assert len(caplog.records) < 12
    assert PASSWORD not in caplog.text


@one_kind
async def test_a_user_for_other_keys_and_a_wrong_password(
    redis_user: MakeUser, make_buffer: MakeBuffer, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    commands, _ = rights()
    user = redis_user(commands=commands, keys=["{others:*}*"])
    for url in (user.url, user.url.replace(PASSWORD, "wrong-password")):
        buffer = make_buffer(url)
        for _ in range(20):
            await buffer.add(books.new())
        assert await buffer.drain() == []
        stats = await buffer.stats()
        assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 20}
        assert stats.ledger.balanced
    books.check()
    assert "NOPERM" in caplog.text
    assert "WRONGPASS" in caplog.text
    assert PASSWORD not in caplog.text
    assert "wrong-password" not in caplog.text
