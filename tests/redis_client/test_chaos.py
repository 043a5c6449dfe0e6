"""Many callers over a bad network: everyone is told the truth."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
import redis

from connector_sdk.redis_client import RedisRefusedError, RedisUnavailableError
from tests.redis_client.conftest import MakeClient
from tests.servers.fixtures import Server, one_kind
from tests.servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SECONDS = 3.0


class Story:
    """What callers were told about their tokens."""

    def __init__(self) -> None:
        self.done: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.in_doubt: set[bytes] = set()


@one_kind
@pytest.mark.parametrize("repeatable", [False, True])
async def test_everyone_is_told_the_truth(
    redis_server: Server, redis_proxy: Proxy, make_client: MakeClient, repeatable: bool
) -> None:
    dice = random.Random(7)
    client = make_client(redis_proxy.url, 0.2)
    story = Story()
    stop = asyncio.Event()

    async def caller(name: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            token = b"%d-%d" % (name, number)
            story.in_doubt.add(token)
            try:
                # The reply is the token itself, so that a reply to somebody else's request shows.
                words = ("EVAL", "redis.call('RPUSH', KEYS[1], ARGV[1]) return ARGV[1]", 1, b"tokens", token)
                reply = await client.call(
                    *words, key=b"tokens", timeout=dice.choice((0.02, 0.1, 0.5)), repeatable=repeatable
                )
            except RedisUnavailableError as error:
                if not error.in_doubt:
                    story.in_doubt.remove(token)
                    story.refused.add(token)
                    await asyncio.sleep(0.001)
            except RedisRefusedError as error:
                pytest.fail(f"nobody refused anything: {error}")
            else:
                assert reply == token
                story.in_doubt.remove(token)
                story.done.add(token)

    async def canceller() -> None:
        while not stop.is_set():
            number = dice.randrange(len(callers))
            callers[number].cancel()
            await asyncio.gather(callers[number], return_exceptions=True)
            callers[number] = asyncio.create_task(caller(next(names)))
            await asyncio.sleep(dice.random() * 0.01)

    def cut() -> None:
        redis_proxy.cut(reset=dice.random() < 0.5)

    def cut_after() -> None:
        redis_proxy.cut_after(dice.randrange(200), dice.choice(("to_client", "to_server")))

    def swallow() -> None:
        redis_proxy.swallow(dice.choice(("to_client", "to_server", None)))

    def delay() -> None:
        redis_proxy.delay(dice.random() * 0.05)

    faults = [cut, cut_after, swallow, delay, redis_proxy.refuse]

    async def network() -> None:
        while not stop.is_set():
            for fault in dice.sample(faults, len(faults)):
                await asyncio.to_thread(fault)
                await asyncio.sleep(dice.random() * 0.1)
                if fault is swallow:
                    # What was swallowed is missing: no real network goes on from there.
                    await asyncio.to_thread(redis_proxy.cut)
                await asyncio.to_thread(redis_proxy.restore)
                await asyncio.sleep(dice.random() * 0.1)

    names = iter(range(1_000_000))
    callers = [asyncio.create_task(caller(next(names))) for _ in range(50)]
    others = [asyncio.create_task(canceller()), asyncio.create_task(network())]
    await asyncio.sleep(SECONDS)
    stop.set()
    await asyncio.wait_for(asyncio.gather(*others), 30)
    await asyncio.wait_for(asyncio.gather(*callers), 30)
    await client.aclose()

    with redis.Redis(port=redis_server.port) as admin:
        # Requests that the proxy held may arrive late, but not after the connections were closed.
        redis_proxy.cut()
        redis_proxy.wait_for_connections(0)
        stored = Counter(admin.lrange("tokens", 0, -1))
    assert len(story.done) > 500
    assert story.refused
    assert story.done <= stored.keys()
    assert not story.refused & stored.keys()
    if not repeatable:
        assert max(stored.values()) == 1
