"""One member of a group in a demo of the bus, in a process of its own: `python -m connector_sdk.cli.bus_worker CONFIG`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import anyio
import msgspec

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.cli.console import prepare_output
from connector_sdk.plugins import create_event_bus

__all__ = ["MAX_ATTEMPTS", "Task", "take_part"]

MAX_ATTEMPTS: Final = 3
_RETRY_DELAYS: Final = (0.2, 0.5)  # seconds
_WORK: Final = 0.001  # seconds that an event takes


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a member is to do."""

    config: dict[str, object]
    topic: str
    group: str
    notes: str  #: the file in which it writes down what it has handled
    poison: str = ""  #: the id of the event that it cannot handle
    fixed: str = ""  #: until this file exists
    hold: float = 3.0


def handler_of(task: Task) -> Callable[[Event], Awaitable[None]]:
    """Return a handler that takes a moment, and then writes the id down."""
    notes = os.open(task.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def handle(event: Event) -> None:
        await anyio.sleep(_WORK)
        if event.event_id == task.poison and not Path(task.fixed).exists():  # noqa: ASYNC240 - one event only
            raise ValueError("no product has this number, says the index")
        os.write(notes, f"{event.event_id}\n".encode())

    return handle


async def take_part(bus: EventBus, task: Task) -> None:
    """Join the group."""
    await bus.subscribe(
        task.topic,
        handler_of(task),
        group=task.group,
        start="beginning",
        max_attempts=MAX_ATTEMPTS,
        retry_delays=_RETRY_DELAYS,
    )


async def _main(task: Task) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with create_event_bus({**task.config, "hold": task.hold}) as bus:
            await take_part(bus, task)
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            async for _ in signals:
                break


if __name__ == "__main__":
    prepare_output()  # the demo tells what goes wrong
    anyio.run(_main, msgspec.json.decode(sys.argv[1], type=Task))
