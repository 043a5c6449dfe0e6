"""A process of its own that publishes, or is a member: `python -m tests.bus.postgres_child URL publish|work NAME ...`."""

from __future__ import annotations

import asyncio
import sys

from connector_sdk.bus.log import START
from connector_sdk.bus.postgres import PostgresLog


async def publish(log: PostgresLog, writer: str, amount: int, page: int) -> None:
    """Store numbered entries in two topics, in batches of several sizes, two batches at a time."""

    async def one(name: str) -> None:
        for start in range(0, amount, page):
            numbers = range(start, min(start + page, amount))
            await log.append([("topic", b"%s %d" % (name.encode(), number)) for number in numbers])
            await log.append([("zoo", b"another"), ("topic:too", b"another")])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one(f"{writer}-a"))
        tasks.create_task(one(f"{writer}-b"))


async def work(log: PostgresLog, consumer: str, hold: float, finish: bool) -> None:
    """Claim and say what it got, for ever; acknowledge it, or have it in hand."""
    member = log.member("group", consumer, hold=hold)
    await member.follow("topic", START)
    print("ready", flush=True)
    while True:
        claim = await member.claim(7, wait=0.5)
        for delivery in claim.deliveries:
            assert isinstance(delivery.body, bytes)
            print(delivery.body.decode(), flush=True)
        if finish:
            await member.acknowledge(claim.deliveries)


async def main(url: str, what: str, name: str, *rest: str) -> None:
    """Do it."""
    log = PostgresLog(url, max_events=100_000, connect_timeout=20.0, response_timeout=20.0)
    await log.connect()
    try:
        if what == "publish":
            await publish(log, name, int(rest[0]), int(rest[1]))
        else:
            await work(log, name, float(rest[0]), rest[1] == "finish")
    finally:
        await log.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
