"""The user that `docs/howto/redis.md` describes may do all that a buffer does, and nothing that it does not."""

from __future__ import annotations

import re
import time
from pathlib import Path

import anyio
import pytest
import redis

import connector_sdk
from connector_sdk import LeaseExpiredError, RedisEventBuffer, SummaryPayload
from tests.docs.pages import DOCS
from tests.servers.fixtures import MakeUser, Server

PAGE = DOCS / "howto" / "redis.md"
LUA = Path(connector_sdk.__file__).parent / "buffers" / "lua"
#: What is sent besides scripts.
COMMANDS = {"client|setname", "eval", "evalsha", "hscan", "info", "lrange"}


def rights() -> tuple[set[str], list[str]]:
    """The commands and the patterns of keys of the line on the page."""
    found = re.search(r"^ACL SETUSER clicks (.+)$", PAGE.read_text(), re.MULTILINE)
    assert found is not None
    words = found[1].split()
    assert words[:4] == ["on", ">password", "resetkeys", "resetchannels"]
    commands = {word[1:] for word in words if word.startswith("+")}
    keys = [word[1:] for word in words if word.startswith("~")]
    assert {word for word in words[4:] if not word.startswith(("+", "~"))} == {"-@all"}
    return commands, keys


def test_the_commands_are_those_of_the_code() -> None:
    source = "".join(path.read_text() for path in LUA.glob("*.lua"))
    in_scripts = {name.lower() for name in re.findall(r"\bcall(?:_with)?\((?:[\w.\[\]]+, )?'([A-Z]+)'", source)}
    assert len(in_scripts) > 20
    assert rights()[0] == in_scripts | COMMANDS


def event(number: int, session: str | None, time: float) -> SummaryPayload:
    return SummaryPayload("shop", session, f"event {number}", 1, time, event_id=str(number))


async def do_everything(buffer: RedisEventBuffer, port: int) -> None:
    now = time.time()
    for number in range(20):  # more than max_sessions and max_per_session let in
        await buffer.add(event(number, f"session-{number % 5}", now + number / 1000))
    await buffer.add(event(0, "session-0", now))
    await buffer.peek(2)
    await buffer.size()
    await buffer.sessions()
    async with buffer.lease(2) as lease:
        await lease.extend(5.0)
        await lease.ack(lease.events[:1])
    async with buffer.lease(2) as lease:
        await lease.give_back()
    for _ in range(2):
        async with buffer.lease(2) as lease:
            await lease.fail(lease.events[0], ValueError("no"))
            await lease.give_back()
        (letter,) = await buffer.dead_letters.list()
        assert await buffer.dead_letters.get(letter.id) == letter
        assert (await buffer.dead_letters.replay([letter.id])).replayed == 1
    assert await buffer.dead_letters.purge() == 0
    await buffer.drain(1, types={"summary"})
    await buffer.drain(session_id="session-4")
    await buffer.drain_by_type(actions=True, summaries=False)
    await buffer.add(event(30, "session-1", now))
    with redis.Redis(port=port) as admin:
        for key in admin.keys("*:session:session-1"):
            admin.zadd(key, {b"no payload": 1.0})
    assert await buffer.drain()
    assert len(await buffer.quarantined()) == 1
    await buffer.add(event(40, "session-1", now))
    with pytest.raises(LeaseExpiredError):
        async with buffer.lease(1, timeout=0.05, renew=False):
            await anyio.sleep(0.1)
    await anyio.sleep(1.1)  # until the window is over
    await buffer.add(event(41, "session-1", time.time()))
    assert await buffer.size() == 1
    await anyio.sleep(1.7)  # until the session was idle for too long
    assert await buffer.size() == 0
    await buffer.add(event(42, None, time.time()))
    await buffer.clear()


def test_that_user_may_do_everything_that_a_buffer_does(redis_server: Server, redis_user: MakeUser) -> None:
    commands, keys = rights()
    user = redis_user(commands=sorted(commands), keys=keys)

    async def main() -> None:
        async with RedisEventBuffer(
            user.url, "clicks", 1.0, grace_seconds=0.5, max_per_session=3, max_sessions=4, dedupe_seconds=1.0
        ) as buffer:
            await do_everything(buffer, redis_server.port)
            stats = await buffer.stats()
        assert stats.outages == 0
        assert stats.failed_reads == 0
        assert stats.findings == []
        assert stats.ledger.dropped == {"duplicate": 1}

    with redis.Redis(port=redis_server.port) as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        anyio.run(main)
        assert admin.execute_command("ACL", "LOG") == []
        with pytest.raises(redis.ResponseError), redis.Redis.from_url(user.url) as other:
            other.execute_command("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, "{other:0}:state")
