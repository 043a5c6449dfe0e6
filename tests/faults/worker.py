"""
A process of the conservation test. Arguments: role, URL, name, file.

"add" adds from many tasks until its input ends, then prints a JSON object of what it did. "drain", "lease" and "die" take
events until their input ends and write a line for each to the file: id, session, time of the event, time of the taking.
"drain" and "lease" write what is theirs for good; "die", which is to be killed, writes before it acknowledges.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable

from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.errors import LeaseExpiredError
from connector_sdk.payloads import Payload, SummaryPayload

PREFIX = "conservation"
HOLD = 1.5  # seconds
TASKS = 10


def event(event_id: str, session: str, at: float) -> SummaryPayload:
    return SummaryPayload("shop", session, event_id, 0, at, event_id)


async def add(url: str, name: str, is_over: Callable[[], bool]) -> None:
    """
    Each task has sessions of its own and waits for each event, so that each session has its events in order. Now and then
    it adds an event a second time, and one that is too old for its session (if that has any).
    """
    told: list[str | None] = []
    counts: dict[str, int] = {}
    stale: list[str] = []
    repeated = 0

    async def task(number: int) -> None:
        nonlocal repeated
        count = 0
        while not is_over():
            session = f"{name}-{number}-{count % 3}"
            payload = event(f"{name}-{number}-{count}", session, time.time())
            count += 1
            counts[str(number)] = count
            await buffer.add(payload)
            if count % 50 == 0:
                repeated += 1
                await buffer.add(payload)
            if count % 70 == 0:
                stale.append(f"stale-{name}-{number}-{count}")
                await buffer.add(event(stale[-1], session, time.time() - 1000))
            await asyncio.sleep(0.005)

    async with RedisEventBuffer(url, PREFIX, on_drop=lambda payload: told.append(payload.event_id)) as buffer:
        await asyncio.gather(*(task(number) for number in range(TASKS)))
    stats = await buffer.stats()
    print(
        json.dumps(
            {
                "counts": counts,
                "stale": stale,
                "repeated": repeated,
                "told": told,
                "delivered": stats.ledger.delivered,
                "dropped": stats.ledger.dropped,
                "balanced": stats.ledger.balanced,
                "in_doubt": stats.in_doubt,
            }
        )
    )


class Notes:
    """The file, written through to the disk."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, payloads: Iterable[Payload]) -> None:
        now = time.time()
        lines = "".join(f"{each.event_id} {each.session_id} {each.forwarded_at} {now}\n" for each in payloads)
        os.write(self._file, lines.encode())
        os.fsync(self._file)


async def drain(url: str, notes: Notes, is_over: Callable[[], bool]) -> None:
    async with RedisEventBuffer(url, PREFIX) as buffer:
        while not is_over():
            payloads = await buffer.drain()
            assert [each.forwarded_at for each in payloads] == sorted(each.forwarded_at for each in payloads)
            notes.write(payloads)
            await asyncio.sleep(0.02)
        assert (await buffer.stats()).in_doubt == 0


async def lease(url: str, notes: Notes, is_over: Callable[[], bool]) -> None:
    async with RedisEventBuffer(url, PREFIX) as buffer:
        while not is_over():
            try:
                async with buffer.lease(300, HOLD) as loan:
                    await loan.ack(loan.events[::2])
            except LeaseExpiredError:
                # Held up for so long: half of them may be ours, and nobody can say.
                sys.exit("a lease ran out")
            notes.write(loan.events)
            await asyncio.sleep(0.02)


async def die(url: str, notes: Notes, is_over: Callable[[], bool]) -> None:
    async with RedisEventBuffer(url, PREFIX) as buffer:
        while not is_over():
            try:
                async with buffer.lease(100, HOLD) as loan:
                    await asyncio.sleep(random.random() * 0.05)
                    notes.write(loan.events)
                    await asyncio.sleep(random.random() * 0.05)
                    await loan.ack(loan.events[: len(loan) // 2])
                    await asyncio.sleep(random.random() * 0.05)
            except LeaseExpiredError:
                continue


async def main(role: str, url: str, name: str, path: str) -> None:
    over = asyncio.Event()

    async def watch() -> None:
        await asyncio.to_thread(sys.stdin.read)
        over.set()

    watcher = asyncio.create_task(watch())
    print("ready", flush=True)
    if role == "add":
        await add(url, name, over.is_set)
    else:
        await {"drain": drain, "lease": lease, "die": die}[role](url, Notes(path), over.is_set)
    await watcher


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
