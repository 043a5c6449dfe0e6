"""One connection: everyone gets their own reply, in time, whatever the others do."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from connector_sdk.redis_client import RedisRefusedError, RedisUnavailableError
from connector_sdk.redis_client.address import Server as Place
from connector_sdk.redis_client.connection import Connection
from connector_sdk.redis_client.opening import Login, open_connection
from connector_sdk.redis_client.packing import pack
from tests.redis_client.fake import OK, FakeServer
from tests.servers.fixtures import Server, one_kind

pytestmark = pytest.mark.anyio


async def connect(port: int) -> Connection:
    return await open_connection(Place("127.0.0.1", port), Login(client_name="test"), 5.0)


def test_requests_are_packed_alike_whatever_their_length() -> None:
    words: list[bytes | str | int | float] = [b"\x00\r\n", "é", 0.1 + 0.2, -5, 1e300, 2**70, ""]
    short, long = pack(words), pack(words * 3)
    assert long.removeprefix(b"*21\r\n") == short.removeprefix(b"*7\r\n") * 3
    assert b"$19\r\n0.30000000000000004\r\n" in short
    for wrong in (None, True, [1]):
        for count in (1, 30):
            with pytest.raises(TypeError):
                pack([wrong] * count)  # type: ignore[list-item]  # on purpose


@one_kind
async def test_a_thousand_callers_get_their_own_replies(redis_server: Server) -> None:
    connection = await connect(redis_server.port)

    async def echo(number: int) -> None:
        for turn in range(5):
            token = b"%d-%d" % (number, turn)
            assert await connection.call(pack(("ECHO", token)), 30) == token

    await asyncio.gather(*(echo(number) for number in range(1000)))
    await connection.aclose("done")


@one_kind
async def test_cancelled_callers_leave_the_others_in_step(redis_server: Server) -> None:
    connection = await connect(redis_server.port)
    dice = random.Random(3)
    answered = cancelled = 0

    async def echo(token: bytes) -> bool:
        return await connection.call(pack(("ECHO", token)), 30) == token

    for turn in range(200):
        tasks = [asyncio.create_task(echo(b"%d-%d" % (turn, number))) for number in range(20)]
        for task in dice.sample(tasks, 10):
            # In any state: not begun, not yet written, written, answered.
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is True or isinstance(result, asyncio.CancelledError)
            answered += result is True
            cancelled += result is not True
    assert answered >= 2000
    assert cancelled > 200
    assert await connection.call(pack(("ECHO", "last")), 30) == b"last"
    await connection.aclose("done")


async def test_what_is_cancelled_before_it_was_written_is_never_sent() -> None:
    async with FakeServer() as server:
        connection = await connect(server.port)
        first = connection.call(pack(("FIRST",)), 30)
        second = connection.call(pack(("SECOND",)), 30)
        third = connection.call(pack(("THIRD",)), 30)
        second.cancel()
        assert [await first, await third] == [b"OK", b"OK"]
        assert [words[0] for words in server.seen] == [b"FIRST", b"THIRD"]
        await connection.aclose("done")


@one_kind
async def test_an_error_reply_is_for_its_caller_alone(redis_server: Server) -> None:
    connection = await connect(redis_server.port)
    requests = [("SET", "list", "x"), ("LPUSH", "list", "x"), ("NO-SUCH", "payload"), ("GET", "list")]
    replies = await asyncio.gather(*(connection.call(pack(words), 30) for words in requests), return_exceptions=True)
    assert [replies[0], replies[3]] == [b"OK", b"x"]
    wrong_type, unknown = replies[1:3]
    assert isinstance(wrong_type, RedisRefusedError)
    assert wrong_type.code == "WRONGTYPE"
    assert isinstance(unknown, RedisRefusedError)
    assert unknown.code == "ERR"
    assert "NO-SUCH" in str(unknown)
    assert "payload" not in str(unknown)
    await connection.aclose("done")


@one_kind
async def test_large_requests_and_replies(redis_server: Server) -> None:
    connection = await connect(redis_server.port)
    values = [b"%04d" % number * 500 for number in range(2000)]
    writes = [connection.call(pack(("RPUSH", "large", *values)), 30) for _ in range(5)]
    assert await asyncio.gather(*writes) == [2000, 4000, 6000, 8000, 10000]
    first, second = await asyncio.gather(*(connection.call(pack(("LRANGE", "large", 0, -1)), 30) for _ in range(2)))
    assert first == second == values * 5
    await connection.aclose("done")


async def test_a_peer_that_does_not_read_makes_requests_wait_where_they_can_be_taken_back() -> None:
    reading = asyncio.Event()
    arrived = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        assert await reader.readuntil(b"test\r\n")
        writer.write(OK)
        await reading.wait()
        while data := await reader.read(2**20):
            arrived += data.count(b"ECHO")
            writer.write(OK * data.count(b"ECHO"))

    async with FakeServer(talk=serve) as server:
        connection = await connect(server.port)
        request = pack(("ECHO", b"x" * 1_000_000))
        calls = [connection.call(request, 30) for _ in range(50)]
        await asyncio.sleep(0.1)
        for call in calls[40:]:
            call.cancel()
        reading.set()
        assert await asyncio.gather(*calls[:40]) == [b"OK"] * 40
        assert arrived == 40
        await connection.aclose("done")


async def test_silence_ends_the_connection_and_what_was_written_is_in_doubt() -> None:
    async with FakeServer(lambda _: None) as server:
        connection = await connect(server.port)
        began = time.monotonic()
        calls = [connection.call(pack(("GET", "a")), seconds) for seconds in (30, 0.2, 30)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert 0.15 < time.monotonic() - began < 5
        for result in results:
            assert isinstance(result, RedisUnavailableError)
            assert result.in_doubt
            assert "in time" in str(result)
        assert not connection.is_open
        with pytest.raises(RedisUnavailableError) as caught:
            connection.call(pack(("GET", "d")), 1)
        assert not caught.value.in_doubt
        await connection.aclose("done")


async def test_while_replies_come_a_late_one_fails_alone() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"test\r\n")
        writer.write(OK)
        assert await reader.readuntil(b"LATE\r\n")
        # A long reply to the first request keeps the others waiting, and shows that the server lives.
        writer.write(b"*100\r\n")
        for _ in range(100):
            writer.write(b":1\r\n")
            await asyncio.sleep(0.01)
        writer.write(b"+late\r\n+never mind\r\n")
        assert await reader.readuntil(b"NEXT\r\n")
        writer.write(b"+next\r\n")
        await reader.read()

    async with FakeServer(talk=serve) as server:
        connection = await connect(server.port)
        long = connection.call(pack(("LONG",)), 30)
        impatient = connection.call(pack(("IMPATIENT",)), 0.3)
        late = connection.call(pack(("LATE",)), 30)
        with pytest.raises(RedisUnavailableError) as caught:
            await impatient
        assert caught.value.in_doubt
        assert not long.done()
        assert await long == [1] * 100
        assert await late == b"never mind"
        assert await connection.call(pack(("NEXT",)), 30) == b"next"
        await connection.aclose("done")


@pytest.mark.parametrize("head", [b"$3000\r\n", b"*300\r\n"])
async def test_a_large_reply_on_a_slow_line_takes_as_long_as_it_takes(head: bytes) -> None:
    piece = b"." * 50 if head.startswith(b"$") else b":12\r\n" * 5

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"test\r\n")
        writer.write(OK)
        assert await reader.readuntil(b"LARGE\r\n")
        writer.write(head)
        for _ in range(60):
            writer.write(piece)
            await asyncio.sleep(0.02)
        writer.write(b"\r\n" if head.startswith(b"$") else b"")
        await reader.read()

    async with FakeServer(talk=serve) as server:
        connection = await connect(server.port)
        assert await connection.call(pack(("LARGE",)), 0.4) == (b"." * 3000 if head.startswith(b"$") else [12] * 300)
        await connection.aclose("done")


async def test_a_server_that_falls_silent_after_a_late_request_is_left() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"test\r\n")
        writer.write(OK)
        assert await reader.readuntil(b"IMPATIENT\r\n")
        writer.write(b"*100\r\n")
        for _ in range(30):
            writer.write(b":1\r\n")
            await asyncio.sleep(0.01)
        await reader.read()

    async with FakeServer(talk=talk) as server:
        connection = await connect(server.port)
        calls = [connection.call(pack((word,)), seconds) for word, seconds in (("LONG", 60), ("IMPATIENT", 0.2))]
        # One caller ran out of time while there was life; then there is none, and nobody calls.
        await asyncio.wait_for(asyncio.shield(connection.closed), 10)
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, RedisUnavailableError)
            assert result.in_doubt


async def test_a_server_that_reads_nothing_is_not_sent_without_bound() -> None:
    over = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"test\r\n")
        writer.write(OK)
        await over.wait()

    async with FakeServer(talk=talk) as server:
        connection = await connect(server.port)
        request = pack(("ECHO", b"x" * 2**24))
        calls = [connection.call(request, 30)]

        def call_on() -> None:
            for _ in range(20):
                calls.append(connection.call(request, 30))

        with pytest.raises(RedisUnavailableError, match="keep up") as caught:
            call_on()
        over.set()
        assert not caught.value.in_doubt
        assert len(calls) < 10
        await connection.aclose("enough")
        for call in calls:
            error = call.exception()
            assert isinstance(error, RedisUnavailableError)
            assert error.in_doubt is (call is calls[0])


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"+OK\r\n+OK\r\n", b"$-5\r\n"])
async def test_a_server_that_talks_nonsense_is_left(garbage: bytes) -> None:
    async with FakeServer(lambda _: garbage) as server:
        connection = await connect(server.port)
        await asyncio.gather(connection.call(pack(("GET", "a")), 30), return_exceptions=True)
        await asyncio.wait_for(asyncio.shield(connection.closed), 5)
        assert not connection.is_open


async def test_what_is_under_way_fails_when_the_connection_is_cut() -> None:
    async with FakeServer(lambda _: None) as server:
        connection = await connect(server.port)
        calls = [connection.call(pack(("GET", "a")), 30) for _ in range(3)]
        while len(server.seen) < 3:
            await asyncio.sleep(0.001)
        server.cut()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, RedisUnavailableError)
            assert result.in_doubt
            assert f"127.0.0.1:{server.port}" in str(result)


async def test_a_retired_connection_answers_what_is_under_way() -> None:
    async with FakeServer(lambda words: b"$%d\r\n%b\r\n" % (len(words[1]), words[1])) as server:
        connection = await connect(server.port)
        calls = [connection.call(pack(("ECHO", b"%d" % number)), 30) for number in range(3)]
        connection.retire()
        with pytest.raises(RedisUnavailableError):
            connection.call(pack(("ECHO", "x")), 30)
        assert await asyncio.gather(*calls) == [b"0", b"1", b"2"]
        await asyncio.wait_for(asyncio.shield(connection.closed), 5)
