"""A process that takes entries and writes down what it began and finished. Arguments: Redis URL, stream, hold, log, how."""

from __future__ import annotations

import asyncio
import os
import sys

from connector_sdk.streams import Entry, GroupConsumer


async def main(url: str, stream: str, hold: str, log: str, how: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what: str, entry: Entry) -> None:
        os.write(out, f"{what} {entry.text['n']} {entry.attempt}\n".encode())

    async def handle(entry: Entry) -> None:
        note("began", entry)
        if how == "hang":
            await asyncio.sleep(600)
        elif how == "slow" and entry.text["n"] == "0":
            await asyncio.sleep(10 * float(hold))
        note("finished", entry)

    async with GroupConsumer(
        url, stream, "g", hold=float(hold), buffer_size=3, connect_timeout=20.0, response_timeout=20.0
    ) as consumer:
        await consumer.run(handle)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
