"""The client against real servers that are killed, stopped and restarted."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import anyio
import pytest
import redis

from connector_sdk.errors import ClientStateError
from connector_sdk.redis_client import (
    RedisAddress,
    RedisClient,
    RedisRefusedError,
    RedisUnavailableError,
    Script,
    load_script,
)
from connector_sdk.testing import RedisServer
from tests.redis_client.conftest import MakeClient
from tests.redis_client.fake import FakeServer
from tests.servers.fixtures import MakeUser, Server, StartRedis, StartTls, one_kind
from tests.servers.proxy import Proxy
from tests.servers.tls import Certificates, terminated

pytestmark = pytest.mark.anyio

COUNT = Script("count", "return redis.call('INCRBY', KEYS[1], ARGV[1])")


def clients_of(port: int) -> list[dict[str, str]]:
    """The connections of ours that the server has."""
    with redis.Redis(port=port, decode_responses=True) as admin:
        return [each for each in admin.client_list() if each["name"] == "connector_sdk"]


async def wait_until_no_clients(port: int) -> None:
    # The server notices a moment later that a socket was closed.
    deadline = time.monotonic() + 10
    while clients_of(port):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_commands_and_scripts(redis_server: Server, make_client: MakeClient) -> None:
    client = make_client(redis_server.url)
    assert await client.call("SET", b"k", 1.5, key=b"k", timeout=5) == b"OK"
    assert await client.call("GET", b"k", key=b"k", timeout=5) == b"1.5"
    assert await client.call("GET", b"none", key=b"none", timeout=5) is None
    assert await client.run(COUNT, [b"n"], [2], timeout=5) == 2
    assert await client.run(COUNT, [b"n"], [3], timeout=5) == 5
    with pytest.raises(RedisRefusedError) as caught:
        await client.call("LPUSH", b"k", "x", key=b"k", timeout=5)
    assert caught.value.code == "WRONGTYPE"
    assert not caught.value.in_doubt
    with pytest.raises(TypeError):
        await client.call("SET", b"k", None, key=b"k", timeout=5)  # type: ignore[arg-type]  # on purpose


async def test_an_error_that_a_script_meets_has_the_code_of_the_error(
    start_redis: StartRedis, make_client: MakeClient
) -> None:
    client = make_client(start_redis(arguments=["--maxmemory", "1"]).url)
    with pytest.raises(RedisRefusedError) as caught:
        await client.run(COUNT, [b"n"], [1], timeout=5)
    assert caught.value.code == "OOM"
    wrong = Script("wrong", "return redis.call('LPUSH', KEYS[1], 'x')")
    await client.call("CONFIG", "SET", "maxmemory", 0, key=b"", timeout=5)
    await client.call("SET", b"k", "x", key=b"k", timeout=5)
    with pytest.raises(RedisRefusedError) as caught:
        await client.run(wrong, [b"k"], [], timeout=5)
    assert "WRONGTYPE" in str(caught.value)


async def test_scripts_that_the_server_has_forgotten_are_run_once_each(
    redis_server: Server, make_client: MakeClient
) -> None:
    client = make_client(redis_server.url)
    await client.run(COUNT, [b"n"], [0], timeout=5)
    await client.call("SCRIPT", "FLUSH", key=b"", timeout=5)
    replies = await asyncio.gather(*(client.run(COUNT, [b"n"], [1], timeout=30) for _ in range(100)))
    assert sorted(replies, key=str) == sorted(range(1, 101), key=str)


def test_a_script_is_read_from_a_file_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts_of_a_test").mkdir()
    (tmp_path / "scripts_of_a_test" / "one.lua").write_bytes(b"return 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    script = load_script("scripts_of_a_test", "one.lua")
    assert script.source == b"return 1"
    assert script.sha1 == b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
    assert "one.lua" in repr(script)


# ---------------------------------------------------------------------------------------------- logging in


@one_kind
async def test_database_name_and_socket(start_redis: StartRedis, make_client: MakeClient, tmp_path: Path) -> None:
    server = start_redis(arguments=["--unixsocket", str(tmp_path / "s")])
    client = make_client(f"redis://127.0.0.1:{server.port}/3?client_name=someone")
    await client.call("SET", b"k", "three", key=b"k", timeout=5)
    assert b"name=someone" in await _bytes(client, "CLIENT", "LIST")
    near = make_client(f"unix://{tmp_path / 's'}?db=3")
    assert await near.call("GET", b"k", key=b"k", timeout=5) == b"three"
    assert near.servers == (str(tmp_path / "s"),)
    with pytest.raises(RedisRefusedError, match="DB index"):
        await make_client(f"redis://127.0.0.1:{server.port}/999").call("PING", key=b"", timeout=5)


async def _bytes(client: RedisClient, *words: str) -> bytes:
    reply = await client.call(*words, key=b"", timeout=5)
    assert isinstance(reply, bytes)
    return reply


async def test_passwords(start_redis: StartRedis, make_client: MakeClient) -> None:
    server = start_redis()
    with redis.Redis(port=server.port) as admin:
        admin.config_set("requirepass", "pa:s s@")
        place = f"127.0.0.1:{server.port}"
        assert await make_client(f"redis://:pa%3As%20s%40@{place}").call("PING", key=b"", timeout=5) == b"PONG"
        assert await make_client(f"redis://default:pa:s s@@{place}").call("PING", key=b"", timeout=5) == b"PONG"
        for login, code in ((":wrong@", "WRONGPASS"), ("nobody:wrong@", "WRONGPASS"), ("", "NOAUTH")):
            with pytest.raises(RedisRefusedError) as caught:
                await make_client(f"redis://{login}{place}").call("PING", key=b"", timeout=5)
            assert caught.value.code == code
            assert "wrong" not in f"{caught.value!r} {caught.value.__cause__!r}"
        admin.config_set("requirepass", "")


async def test_a_user_with_few_rights(redis_user: MakeUser, make_client: MakeClient) -> None:
    client = make_client(redis_user(commands=["get", "evalsha", "eval"], keys=["mine:*"]).url)
    assert await client.call("GET", b"mine:1", key=b"mine:1", timeout=5) is None
    with pytest.raises(RedisRefusedError) as caught:
        await client.call("GET", b"yours", key=b"yours", timeout=5)
    assert caught.value.code == "NOPERM"
    assert await client.run(Script("one", "return 1"), [b"mine:1"], [], timeout=5) == 1


async def test_tls(start_tls: StartTls, make_client: MakeClient) -> None:
    server = start_tls(client_certificate=True)
    client = make_client(server.trusting_url)
    large = b"x" * 3_000_000
    assert await client.call("SET", b"k", large, key=b"k", timeout=30) == b"OK"
    assert await client.call("GET", b"k", key=b"k", timeout=30) == large
    with pytest.raises(RedisUnavailableError, match="not trusted"):
        await make_client(server.url).call("PING", key=b"", timeout=5)
    unknown = make_client(f"{server.url}?ssl_ca_certs={server.certificates.ca}")
    with pytest.raises(RedisUnavailableError):
        await unknown.call("PING", key=b"", timeout=5)


async def test_a_tls_handshake_that_is_never_answered(make_client: MakeClient) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass

    async with FakeServer(talk=talk) as server:
        client = make_client(f"rediss://127.0.0.1:{server.port}", 0.2)
        with pytest.raises(RedisUnavailableError, match=r"no answer within 0\.2 s"):
            await client.call("PING", key=b"", timeout=5)
        with pytest.raises(RedisUnavailableError, match="no connection within"):
            await client.call("PING", key=b"", timeout=0.05)
        cancelled = asyncio.create_task(client.call("PING", key=b"", timeout=5))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await client.aclose()


# ---------------------------------------------------------------------------------------------- connections


@one_kind
async def test_callers_share_one_connection_and_none_is_left(redis_server: Server, make_client: MakeClient) -> None:
    await wait_until_no_clients(redis_server.port)
    client = make_client(redis_server.url)
    assert not client.servers
    await asyncio.gather(*(client.call("PING", key=b"", timeout=30) for _ in range(500)))
    assert len(clients_of(redis_server.port)) == 1
    assert list(client.servers) == [f"127.0.0.1:{redis_server.port}"]
    await client.aclose()
    await client.aclose()
    assert not client.servers
    await wait_until_no_clients(redis_server.port)
    with pytest.raises(ClientStateError, match="closed"):
        await client.call("PING", key=b"", timeout=5)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize("repeatable", [False, True])
async def test_closing_ends_what_is_under_way(make_client: MakeClient, scheme: str, repeatable: bool) -> None:
    async with FakeServer(lambda _: None) as server:
        url = server.url.replace("redis", scheme)
        client, opening = make_client(url), make_client(url)
        call = asyncio.create_task(client.call("GET", b"k", key=b"k", timeout=30, repeatable=repeatable))
        while not server.seen:
            await asyncio.sleep(0.001)
        never = asyncio.create_task(opening.call("GET", b"k", key=b"k", timeout=30, repeatable=repeatable))
        await asyncio.sleep(0)
        await asyncio.gather(client.aclose(), opening.aclose())
        with pytest.raises(RedisUnavailableError, match="closed") as caught:
            await call
        assert caught.value.in_doubt
        with pytest.raises(RedisUnavailableError, match="closed") as caught:
            await never
        assert not caught.value.in_doubt
        assert server.count(b"GET") == 1


@one_kind
async def test_a_cancelled_caller_does_not_disturb_the_connecting_of_others(
    redis_server: Server, make_client: MakeClient
) -> None:
    client = make_client(redis_server.url)
    calls = [asyncio.create_task(client.call("ECHO", b"%d" % number, key=b"", timeout=30)) for number in range(10)]
    await asyncio.sleep(0)
    calls[0].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [b"%d" % number for number in range(1, 10)]


# ---------------------------------------------------------------------------------------------- faults


async def test_a_restarted_server_is_used_again(own_redis_server: RedisServer, make_client: MakeClient) -> None:
    client = make_client(own_redis_server.url)
    assert await client.run(COUNT, [b"n"], [1], timeout=5) == 1
    own_redis_server.kill()
    own_redis_server.restart()
    # Nobody has noticed yet that the connection is gone; the script is gone as well.
    replies = await asyncio.gather(*(client.run(COUNT, [b"n"], [0], timeout=10, repeatable=True) for _ in range(20)))
    assert replies == [1] * 20
    assert len(clients_of(own_redis_server.port)) == 1


async def test_a_server_that_is_down_is_reported_at_once(
    own_redis_server: RedisServer, make_client: MakeClient
) -> None:
    client = make_client(own_redis_server.url)
    assert await client.run(COUNT, [b"n"], [1], timeout=5) == 1
    own_redis_server.kill()
    for repeatable in (False, True, False):
        began = time.monotonic()
        with pytest.raises(RedisUnavailableError, match=f"127.0.0.1:{own_redis_server.port}") as caught:
            await client.run(COUNT, [b"n"], [1], timeout=10, repeatable=repeatable)
        assert time.monotonic() - began < 5
    # The first may have been written to a connection that was about to end; the others found none.
    assert not caught.value.in_doubt
    own_redis_server.restart()
    assert await client.run(COUNT, [b"n"], [1], timeout=5) == 2


async def test_a_stopped_server_costs_no_more_than_the_time_out(
    own_redis_server: RedisServer, make_client: MakeClient
) -> None:
    client = make_client(own_redis_server.url, connect_timeout=0.2)
    assert await client.run(COUNT, [b"n"], [1], timeout=5) == 1
    own_redis_server.pause()
    doubts = []
    for repeatable in (False, True, True):
        began = time.monotonic()
        with pytest.raises(RedisUnavailableError) as caught:
            await client.run(COUNT, [b"n"], [0], timeout=0.5, repeatable=repeatable)
        assert time.monotonic() - began < 2
        doubts.append(caught.value.in_doubt)
    # The first was sent; after it no connection could be made.
    assert doubts == [True, False, False]
    own_redis_server.resume()
    assert await client.run(COUNT, [b"n"], [0], timeout=10) == 1


async def test_what_may_not_be_repeated_is_sent_once(make_client: MakeClient) -> None:
    async with FakeServer(lambda _: None) as server:

        def cut(words: list[bytes]) -> bytes | None:
            server.cut()
            return None

        server.answer = cut
        client = make_client(server.url)
        with pytest.raises(RedisUnavailableError) as caught:
            await client.call("INCR", b"k", key=b"k", timeout=5)
        assert caught.value.in_doubt
        assert server.count(b"INCR") == 1

        turns = 0

        def cut_twice(words: list[bytes]) -> bytes | None:
            nonlocal turns
            turns += 1
            return cut(words) if turns < 3 else b":1\r\n"

        server.answer = cut_twice
        assert await client.call("SET", b"k", 1, key=b"k", timeout=5, repeatable=True) == 1
        assert server.count(b"SET") == 3

        turns = 0
        refused = b"-OOM command not allowed\r\n"
        server.answer = lambda words: cut_twice(words) and refused
        with pytest.raises(RedisRefusedError) as refusal:
            await client.call("SET", b"k", 1, key=b"k", timeout=5, repeatable=True)
        assert refusal.value.in_doubt, "an earlier attempt may have been carried out"


@one_kind
async def test_a_request_that_a_cut_connection_never_took_is_not_in_doubt(
    redis_server: Server, redis_proxy: Proxy, make_client: MakeClient
) -> None:
    client = make_client(redis_proxy.url)
    assert await client.run(COUNT, [b"n"], [1], timeout=5) == 1
    redis_proxy.refuse()
    redis_proxy.cut()
    await asyncio.sleep(0.05)  # let the loop see that it was cut; a later moment proves no less
    with pytest.raises(RedisUnavailableError) as caught:
        await client.run(COUNT, [b"n"], [1], timeout=5, repeatable=True)
    assert not caught.value.in_doubt
    redis_proxy.restore()
    assert await client.run(COUNT, [b"n"], [1], timeout=5) == 2


@one_kind
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_a_black_hole_costs_no_more_than_the_time_out(
    redis_proxy: Proxy, make_client: MakeClient, direction: str
) -> None:
    fresh, used = make_client(redis_proxy.url, 0.3), make_client(redis_proxy.url, 0.3)
    await used.call("PING", key=b"", timeout=5)
    redis_proxy.swallow(direction)  # type: ignore[arg-type]  # one of the two
    for client in (fresh, used, used):
        began = time.monotonic()
        results = await asyncio.gather(
            *(client.call("PING", key=b"", timeout=0.3, repeatable=bool(n % 2)) for n in range(10)),
            return_exceptions=True,
        )
        assert all(isinstance(result, RedisUnavailableError) for result in results)
        assert time.monotonic() - began < 2
    redis_proxy.restore()
    redis_proxy.cut()
    for client in (fresh, used):
        assert await client.call("PING", key=b"", timeout=5, repeatable=True) == b"PONG"


# ---------------------------------------------------------------------------------------------- loops and processes


@pytest.mark.parametrize("tls", [False, True])
@one_kind
def test_a_loop_after_another(redis_server: Server, certificates: Certificates, tls: bool) -> None:
    with terminated(redis_server.port, certificates) as secure:
        use_in_loops(secure.trusting_url if tls else redis_server.url)
    deadline = time.monotonic() + 10
    while clients_of(redis_server.port):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def use_in_loops(url: str) -> None:
    client = RedisClient(RedisAddress.parse(url))

    async def use() -> object:
        return await client.call("PING", key=b"", timeout=5)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert asyncio.run(use()) == b"PONG"
        gc.collect()
        kept = asyncio.new_event_loop()  # neither closed nor running when the next one begins
        assert kept.run_until_complete(use()) == b"PONG"
        assert asyncio.run(use()) == b"PONG"
        kept.run_until_complete(asyncio.sleep(0))
        kept.close()
        asyncio.run(client.aclose())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@one_kind
async def test_a_loop_beside_another_is_refused(redis_server: Server, make_client: MakeClient) -> None:
    client = make_client(redis_server.url)
    await client.call("PING", key=b"", timeout=5)
    errors: list[BaseException] = []

    async def use() -> None:
        await client.call("PING", key=b"", timeout=5)

    def elsewhere() -> None:
        for attempt in (use, client.aclose):
            try:
                asyncio.run(attempt())
            except ClientStateError as error:
                errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert len(errors) == 2
    assert "another event loop" in str(errors[0])
    assert await client.call("PING", key=b"", timeout=5) == b"PONG"


@one_kind
def test_a_forked_child_starts_anew_and_the_parent_goes_on(redis_server: Server) -> None:
    program = f"""
        import asyncio, gc, os
        from connector_sdk.redis_client import RedisAddress, RedisClient

        client = RedisClient(RedisAddress.parse("{redis_server.url}"))

        async def ident():
            return await client.call("CLIENT", "ID", key=b"", timeout=5)

        async def in_child():
            there = await ident()
            await client.aclose()
            return there

        async def main():
            here = await ident()
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                gc.collect()
                code = 1
                try:
                    there = asyncio.run(in_child())
                    os.write(writer, str(there).encode())
                    gc.collect()
                    code = 0
                finally:
                    os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert int(os.read(reader, 100)) != here
            assert await ident() == here, "the parent's connection was harmed"
            await client.aclose()

        asyncio.run(main())
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_but_asyncio_will_do() -> None:
    client = RedisClient(RedisAddress.parse("redis://u:p@h"))
    assert repr(client) == "RedisClient('redis://h:6379')"

    async def use() -> None:
        await client.call("PING", key=b"", timeout=5)

    with pytest.raises(ClientStateError, match="asyncio"):
        anyio.run(use, backend="trio")
    anyio.run(client.aclose, backend="trio")
