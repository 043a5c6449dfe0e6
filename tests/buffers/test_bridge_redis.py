"""OutageBridge over real servers that are killed, paused and cut off, and in processes that are killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from connector_sdk import EventBuffer, OutageBridge, RedisEventBuffer
from connector_sdk.buffers.bridge_stats import BridgeState
from connector_sdk.buffers.protocol import BufferBackend
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.payloads import SummaryPayload
from connector_sdk.testing import RedisServer
from tests.buffers.redis_place import PATIENCE
from tests.servers.fixtures import one_kind
from tests.servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, one_kind]


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


def remote_at(url: str) -> RedisEventBuffer:
    # By arrival: the order in which events come out is then the order in which they came in.
    return RedisEventBuffer(url, "far", 3600.0, window_on="arrival", response_timeout=0.5, connect_timeout=0.5)


@pytest.fixture(params=["memory", "file"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> EventBuffer | BufferBackend:
    if request.param == "memory":
        return EventBuffer(0)
    return SQLiteEventBuffer(tmp_path / "near.db", response_timeout=PATIENCE)


class Adders:
    """Ten sessions that add one event after the other until they are told to stop."""

    def __init__(self, bridge: OutageBridge) -> None:
        self.bridge = bridge
        self.added = [0] * 10
        self.going = True

    async def run(self, session: int) -> None:
        while self.going:
            number = self.added[session]
            payload = SummaryPayload("shop", f"session-{session}", "", 0, time.time(), f"{session}-{number}")
            await self.bridge.add(payload)
            self.added[session] += 1
            await anyio.sleep(0.001)

    async def more(self, count: int) -> None:
        """Wait until *count* more events of each session were added."""
        goal = [added + count for added in self.added]
        with anyio.fail_after(PATIENCE):
            while any(added < wanted for added, wanted in zip(self.added, goal, strict=True)):
                await anyio.sleep(0.01)


@asynccontextmanager
async def adding(bridge: OutageBridge) -> AsyncIterator[Adders]:
    adders = Adders(bridge)
    async with anyio.create_task_group() as tasks:
        for session in range(10):
            tasks.start_soon(adders.run, session)
        await adders.more(5)
        yield adders
        adders.going = False


async def until(bridge: OutageBridge, state: BridgeState) -> None:
    with anyio.fail_after(PATIENCE):
        while bridge.state is not state:
            await anyio.sleep(0.01)


async def check(bridge: OutageBridge, adders: Adders) -> None:
    """Each event is in Redis once, those of a session in order, and the account says so."""
    await until(bridge, BridgeState.REMOTE)
    stats = await bridge.stats()
    total = sum(adders.added)
    assert stats.ledger.balanced
    assert (stats.ledger.received, stats.ledger.delivered, dict(stats.ledger.dropped)) == (total, total, {})
    assert stats.spilled == stats.returned > 0
    assert stats.local_size == 0
    found = [payload.event_id or "" for payload in await bridge.drain()]
    assert len(found) == total
    for session, added in enumerate(adders.added):
        ours = [int(event_id.split("-")[1]) for event_id in found if event_id.startswith(f"{session}-")]
        assert ours == list(range(added))


async def test_a_server_that_is_killed_and_comes_back(
    own_redis_server: RedisServer, local: EventBuffer | BufferBackend
) -> None:
    async with OutageBridge(remote_at(own_redis_server.url), local) as bridge:
        async with adding(bridge) as adders:
            for _ in range(3):
                await anyio.to_thread.run_sync(own_redis_server.kill)
                await adders.more(30)
                assert bridge.state is BridgeState.LOCAL
                await anyio.to_thread.run_sync(own_redis_server.restart)
                await until(bridge, BridgeState.REMOTE)
                await adders.more(10)
        await check(bridge, adders)


async def test_a_server_that_hangs(own_redis_server: RedisServer, local: EventBuffer | BufferBackend) -> None:
    async with OutageBridge(remote_at(own_redis_server.url), local) as bridge:
        async with adding(bridge) as adders:
            for _ in range(2):
                await anyio.to_thread.run_sync(own_redis_server.pause)
                await adders.more(30)
                await anyio.to_thread.run_sync(own_redis_server.resume)
                await until(bridge, BridgeState.REMOTE)
                await adders.more(10)
        await check(bridge, adders)
        assert (await bridge.stats()).in_doubt > 0


def cut(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


@pytest.mark.parametrize("fault", [cut, Proxy.swallow, lambda proxy: proxy.swallow("to_client")])
async def test_a_network_that_cuts_and_swallows(
    fault: Callable[[Proxy], None],
    own_redis_server: RedisServer,
    start_proxy: Callable[[int], Proxy],
    local: EventBuffer | BufferBackend,
) -> None:
    proxy = start_proxy(own_redis_server.port)
    async with OutageBridge(remote_at(proxy.url), local) as bridge:
        async with adding(bridge) as adders:
            for _ in range(2):
                await anyio.to_thread.run_sync(fault, proxy)
                await adders.more(30)
                await anyio.to_thread.run_sync(proxy.restore)
                await anyio.to_thread.run_sync(proxy.cut)
                await until(bridge, BridgeState.REMOTE)
                await adders.more(10)
        await check(bridge, adders)


PROGRAM = """
    import sys, time
    import anyio
    from connector_sdk import OutageBridge, RedisEventBuffer
    from connector_sdk.buffers.sqlite import SQLiteEventBuffer
    from connector_sdk.payloads import SummaryPayload

    async def main():
        far = RedisEventBuffer(sys.argv[1], "far", 3600.0, window_on="arrival")
        async with OutageBridge(far, SQLiteEventBuffer(sys.argv[2], response_timeout=20.0)) as bridge:
            number = 0
            while True:
                await bridge.add(SummaryPayload("shop", "s", "", 0, time.time(), str(number)))
                print(number, flush=True)
                number += 1

    anyio.run(main)
"""


async def test_a_process_that_is_killed_in_an_outage_leaves_its_events_to_the_next(
    own_redis_server: RedisServer, tmp_path: Path
) -> None:
    near = str(tmp_path / "near.db")
    own_redis_server.kill()

    def kill_in_the_middle() -> int:
        words = [sys.executable, "-c", textwrap.dedent(PROGRAM), own_redis_server.url, near]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) == 50:
                    process.kill()
            return int(line)

    last = await anyio.to_thread.run_sync(kill_in_the_middle)
    await anyio.to_thread.run_sync(own_redis_server.restart)
    local = SQLiteEventBuffer(near, response_timeout=PATIENCE)
    async with OutageBridge(remote_at(own_redis_server.url), local) as bridge:
        await bridge.add(SummaryPayload("shop", "s", "", 0, time.time(), "1000000"))
        # If it was killed while it looked for events to write back, they are on lease until that has run out.
        with anyio.fail_after(60):
            while bridge.state is not BridgeState.REMOTE:
                await anyio.sleep(0.05)
        found = [int(payload.event_id or "") for payload in await bridge.drain()]
        assert found[:-1] in (list(range(last + 1)), list(range(last + 2)))  # one may not have been told
        assert found[-1] == 1000000
        stats = await bridge.stats()
        assert stats.carried == len(found) - 1
        assert stats.ledger.balanced
