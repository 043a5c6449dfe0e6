"""`connector-sdk demo --bus`: one stream, two groups that share the work, one who watches it all; a kill and a poison event."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import anyio
import msgspec

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.log import GroupInfo
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.cli.bus_account import BusAccount, DeadLetterSeen, GroupAccount, Worker
from connector_sdk.cli.bus_members import GuestMember, Member, ProcessMember, read_notes
from connector_sdk.cli.bus_place import BusPlace, open_bus_place
from connector_sdk.cli.bus_story import (
    how_it_ends,
    tell_bus_account,
    tell_bus_beginning,
    tell_bus_moment,
    tell_bus_next,
    tell_dead_letter,
    tell_line,
)
from connector_sdk.cli.bus_worker import Task
from connector_sdk.cli.console import (
    BadInputError,
    FailedError,
    OutputConsole,
    Terminated,
    on_signal,
    signals,
)
from connector_sdk.cli.source import Played, Source
from connector_sdk.client.aio import AsyncConnectorClient
from connector_sdk.errors import ConnectorError
from connector_sdk.plugins import create_event_bus
from connector_sdk.testing.server import ConnectorServer

__all__ = ["BusDemoOptions", "bus_demo"]

TOPIC: Final = "connector:demo"
GROUPS: Final = ("search", "analytics")
_MEMBERS: Final = 2  # of each group
_HOLD: Final = 3.0  # seconds without a sign of life after which a member counts as dead
_TICK: Final = 0.1
_TELL_EVERY: Final = 1.0  # seconds
_GRACE: Final = 40.0  # seconds beyond the planned time after which the demo gives up and shows what there is


class BusDemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `demo --bus`; `rate` (events a second) goes before `seconds`."""

    bus: str
    seconds: float = 12.0
    rate: float | None = None
    most_events: int = 50_000
    is_json: bool = False


def bus_demo(source: Source, options: BusDemoOptions) -> None:
    """
    Play *source* through server, client and bus to everyone who reads, and show the account.

    The story goes to stdout, or with `is_json` to stderr and the account as one JSON object to stdout. Raises FailedError
    when the account does not balance.
    """
    console = OutputConsole(highlight=False, stderr=options.is_json)
    payloads = list(islice(source.payloads(), options.most_events))
    with (
        signals(),
        open_bus_place(options.bus) as place,
        tempfile.TemporaryDirectory(prefix="connector-demo-") as folder,
    ):
        run = _Run(source, options, payloads, place=place, folder=Path(folder), console=console)
        account = anyio.run(run.run)
    if account is None:
        raise KeyboardInterrupt if run.ended_by == signal.SIGINT else Terminated
    tell_bus_account(console, account, is_shared=place.is_shared)
    console.print()
    tell_bus_next(console, is_shared=place.is_shared)
    if options.is_json:
        sys.stdout.buffer.write(msgspec.json.encode(account.to_dict()) + b"\n")
        sys.stdout.buffer.flush()
    if not account.balances:
        raise FailedError("the account does not balance" + (f" ({run.broken_off})" if run.broken_off else ""))


class _Run:
    """One run."""

    def __init__(
        self,
        source: Source,
        options: BusDemoOptions,
        payloads: Sequence[Played],
        *,
        place: BusPlace,
        folder: Path,
        console: OutputConsole,
    ) -> None:
        self._source = source
        self._payloads = payloads
        self._place = place
        self._folder = folder
        self._console = console
        self._rate = options.rate or max(1.0, len(payloads) / options.seconds)
        self._log = MemoryLog(max_events=100_000) if not place.is_shared else None
        self._fixed = folder / "fixed"
        self._watched: Counter[str] = Counter()
        self._letters: list[DeadLetterSeen] = []
        self._begin = 0.0
        self.broken_off = ""
        self.ended_by = 0  #: the number of a signal

    async def run(self) -> BusAccount | None:
        """Play everything; return the account, or None when a signal came."""
        loop = asyncio.get_running_loop()
        with anyio.CancelScope() as scope:

            def end(number: int) -> None:
                self.ended_by = number
                loop.call_soon_threadsafe(scope.cancel)

            # Raised by the handler, it would come up in whatever task runs at that moment, one of the bus perhaps.
            with on_signal(end):
                return await self._run()
        return None

    async def _run(self) -> BusAccount:
        planned = len(self._payloads) / self._rate
        with ConnectorServer(self._payloads, rate=self._rate, end="stop") as server:
            async with await self._connected_bus() as bus:
                tell_bus_beginning(
                    self._console, label=self._source.label, events=len(self._payloads), url=server.url,
                    place=self._place.name, is_shared=self._place.is_shared, hold=_HOLD,
                )  # fmt: skip
                members = self._members()
                try:
                    await self._start(bus, members)
                    with anyio.move_on_after(planned + _GRACE) as scope:
                        await self._play(bus, server, members, planned)
                    if scope.cancelled_caught:
                        self.broken_off = f"broken off after {planned + _GRACE:.0f} s"
                    return await self._account(bus, server, members)
                finally:
                    with anyio.CancelScope(shield=True):
                        async with anyio.create_task_group() as group:
                            for member in members:
                                group.start_soon(member.stop)

    # -- who takes part

    async def _connected_bus(self) -> EventBus:
        try:
            if self._log is not None:
                bus = EventBus(self._log, hold=_HOLD)
            else:
                bus = create_event_bus({**self._place.config, "hold": _HOLD})
            await bus.connect()
        except ConnectorError as error:
            raise BadInputError(f"--bus: {error}") from error
        return bus

    def _members(self) -> list[Member]:
        # Somewhere in the first half, so that its attempts are over in time.
        poison = str(max(1, len(self._payloads) // 4))
        made: list[Member] = []
        for group in GROUPS:
            for letter in "AB"[:_MEMBERS]:
                name = f"{group} {letter}"
                task = Task(
                    config=self._place.config,
                    topic=TOPIC,
                    group=group,
                    notes=str(self._folder / f"{group}-{letter}"),
                    poison=poison if group == GROUPS[0] else "",
                    fixed=str(self._fixed),
                    hold=_HOLD,
                )
                if self._log is None:
                    made.append(ProcessMember(name, task))
                else:
                    made.append(GuestMember(name, task, EventBus(self._log, hold=_HOLD)))
        return made

    async def _start(self, bus: EventBus, members: Sequence[Member]) -> None:
        async def watch(event: Event) -> None:
            self._watched[event.event_id] += 1

        await bus.subscribe("connector:*", watch)
        async with anyio.create_task_group() as group:
            for member in members:
                group.start_soon(member.start)
        self._begin = time.monotonic()

    # -- the run

    async def _play(self, bus: EventBus, server: ConnectorServer, members: Sequence[Member], planned: float) -> None:
        client = AsyncConnectorClient(server.url, overflow="block").into(bus.topic("connector:{product_id}"))
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            group.start_soon(self._tell, bus)
            await anyio.sleep(0.4 * planned)
            victim = members[0]
            await victim.kill()
            how = how_it_ends(is_shared=self._place.is_shared)
            tell_line(self._console, f"{self._seconds():5.1f} s  the member {victim.name} {how}")
            await self._mend(bus)
            while not await self._is_over(bus):  # noqa: ASYNC110 - it is other processes that make it true
                await anyio.sleep(_TICK)
            group.cancel_scope.cancel()
        await self._tell_moment(bus)

    async def _mend(self, bus: EventBus) -> None:
        """Wait for the poison event among the dead letters, mend what was wrong, and let it come again."""
        while not (found := await bus.dead_letters.list(TOPIC)):  # noqa: ASYNC110 - as above
            await anyio.sleep(_TICK)
        letter = found[0]
        attempts = letter.evidence.attempts
        event_id = "" if letter.event is None else letter.event.event_id
        tell_dead_letter(self._console, self._seconds(), event_id, letter.group or "", attempts)
        self._fixed.touch()
        redriven = await bus.dead_letters.redrive(letter.id)
        tell_line(self._console, f"{self._seconds():5.1f} s  what was wrong is mended; the dead letter is redriven")
        self._letters.append(
            DeadLetterSeen(
                id=letter.id,
                group=letter.group or "",
                event_id=event_id,
                error=f"{attempts[-1].error_type}: {attempts[-1].message}",
                attempts=len(attempts),
                was_redriven=redriven.redriven == 1,
            )
        )

    async def _is_over(self, bus: EventBus) -> bool:
        """Whether everything was published, and nothing waits with anybody."""
        if bus.stats().events_published < len(self._payloads) or len(self._watched) < len(self._payloads):
            return False
        groups = await self._groups(bus)
        return len(groups) == len(GROUPS) and not any(group.pending or group.lag for group in groups.values())

    async def _groups(self, bus: EventBus) -> dict[str, GroupInfo]:
        info = await bus.info(TOPIC)
        return {} if info is None else {group.name: group for group in info.groups}

    async def _tell(self, bus: EventBus) -> None:
        """One line a second."""
        while True:
            await anyio.sleep(_TELL_EVERY)
            await self._tell_moment(bus)

    async def _tell_moment(self, bus: EventBus) -> None:
        groups = await self._groups(bus)
        waiting = {name: group.pending + (group.lag or 0) for name, group in groups.items()}
        letters = len(await bus.dead_letters.list(TOPIC))
        counts = (bus.stats().events_published, len(self._watched), letters)
        tell_bus_moment(self._console, self._seconds(), counts, waiting)

    def _seconds(self) -> float:
        return time.monotonic() - self._begin

    # -- the account

    async def _account(self, bus: EventBus, server: ConnectorServer, members: Sequence[Member]) -> BusAccount:
        info = await bus.info(TOPIC)
        stats = bus.stats()
        return BusAccount(
            place=self._place.name,
            sent=len(server.log),
            published=stats.events_published,
            kept=0 if info is None else info.length,
            watched=len(self._watched),
            watched_again=self._watched.total() - len(self._watched),
            groups=[self._group_account(name, await self._groups(bus), members) for name in GROUPS],
            letters=self._letters,
            letters_left=len(await bus.dead_letters.list(TOPIC)),
            lost=sum(stats.lost.values()),
        )

    def _group_account(self, name: str, infos: dict[str, GroupInfo], members: Sequence[Member]) -> GroupAccount:
        notes = {member.name: read_notes(member) for member in members if member.task.group == name}
        handled = sum(notes.values(), Counter[str]())
        killed = {member.name: member.was_killed for member in members}
        info = infos.get(name)
        return GroupAccount(
            name=name,
            workers=[Worker(name=who, handled=noted.total(), was_killed=killed[who]) for who, noted in notes.items()],
            handled=len(handled),
            again=handled.total() - len(handled),
            pending=0 if info is None else info.pending,
            lag=0 if info is None else info.lag or 0,
        )
