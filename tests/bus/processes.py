"""
A process of its own at a bus: `python -m tests.bus.processes KIND URL PREFIX WHAT ...`.

consume HOLD FILE HOW: a member of the group "G" that writes "began NUMBER ATTEMPT" and "finished NUMBER" into FILE. HOW is
"hang" (the event 3 is never finished), "slow" (the event 0 takes ten times HOLD), "quick" or "keep": the event 3 ends when
there is a file FILE.how, which says "finish" or "fail", and "finished" and "failed" are written with the attempt.

publish WRITER COUNT PAGE: publishes numbered events as fast as it can, PAGE at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import anyio

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.testing.bus_case import TOPIC, number
from tests.bus.places import make_log

__all__ = ["publish_all"]


async def publish_all(bus: EventBus, writer: str, count: int, page: int) -> None:
    """Publish events numbered from 0, in order."""
    for first in range(0, count, page):
        some = range(first, min(first + page, count))
        await bus.publish(TOPIC, [Event("created", TOPIC, {"number": one, "writer": writer}) for one in some])


def _told_to(file: Path) -> str:
    """Wait until *file* says something."""
    while not file.exists() or not file.read_text():
        time.sleep(0.005)
    return file.read_text()


async def _consume(bus: EventBus, hold: float, path: str, how: str) -> None:
    with open(path, "a", buffering=1) as file:  # noqa: ASYNC230 - a line at a time

        def keep(event: Event, message: Message) -> None:
            known = f"{number(event)} {message.attempt}"
            file.write(f"began {known}\n")
            if number(event) == 3 and _told_to(Path(path).with_suffix(".how")) == "fail":
                file.write(f"failed {known}\n")
                raise ValueError("as it was told to")
            file.write(f"finished {known}\n")

        def handle(event: Event, message: Message) -> None:
            file.write(f"began {number(event)} {message.attempt}\n")
            if how == "hang" and number(event) == 3:
                time.sleep(600)
            if how == "slow" and number(event) == 0:
                time.sleep(10 * hold)
            file.write(f"finished {number(event)}\n")

        await bus.subscribe(TOPIC, keep if how == "keep" else handle, group="G", start="beginning")
        file.write("ready\n")
        await anyio.sleep_forever()


async def main(kind: str, url: str, prefix: str, what: str, *words: str) -> None:
    """Do what the command line says."""
    hold = float(words[0]) if what == "consume" else 60.0
    async with EventBus(make_log(kind, url, prefix), hold=hold) as bus:
        if what == "consume":
            await _consume(bus, hold, words[1], words[2])
        else:
            print("ready", flush=True)
            await publish_all(bus, words[0], int(words[1]), int(words[2]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
