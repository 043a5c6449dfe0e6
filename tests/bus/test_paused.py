"""Members of a group whose process stands still for longer than `hold`, as by SIGSTOP or a suspended machine, and goes on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.testing.bus_case import TOPIC, event, number, until
from tests.bus.places import PATIENCE, Place
from tests.servers.fixtures import one_kind

pytestmark = [
    pytest.mark.anyio,
    one_kind,
    pytest.mark.parametrize("place", ["redis", "postgres"], indirect=True),
]

HOLD = 2.0

Attempts: TypeAlias = "list[tuple[int, int]]"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Paused:
    """A process that is a member, and writes down what it does. It keeps the event 3 until it is told how to end it."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def send(self, number_of: signal.Signals) -> None:
        self._process.send_signal(number_of)

    def end_with(self, how: str) -> None:
        """Let the event 3 end: "finish" or "fail"."""
        self._log.with_suffix(".how").write_text(how)

    def wrote(self, word: str) -> Attempts:
        """What it began, finished or failed: number and attempt."""
        lines = [line.split() for line in self._log.read_text().splitlines()]
        return [(int(line[1]), int(line[2])) for line in lines if line[0] == word and len(line) == 3]

    async def until(self, word: str, value: int) -> None:
        await until(lambda: value in [one for one, _ in self.wrote(word)], PATIENCE)


@pytest.fixture
def member(place: Place, tmp_path: Path) -> Iterator[Callable[[], Paused]]:
    """Start the process; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run() -> Paused:
        log = tmp_path / "log"
        log.touch()
        started.append(subprocess.Popen(place.command("consume", HOLD, log, "keep"), text=True))
        return Paused(started[-1], log)

    yield run
    for process in started:
        process.kill()
        process.communicate()


class Other:
    """The handler of another member, which finishes the event 3 when it is let go, or fails then."""

    def __init__(self, *, at_once: bool, fails: bool = False) -> None:
        self.began: Attempts = []
        self.finished: Attempts = []
        self.go_on = anyio.Event()
        self._fails = fails
        if at_once:
            self.go_on.set()

    async def __call__(self, one: Event, message: Message) -> None:
        self.began.append((number(one), message.attempt))
        if number(one) == 3:
            await self.go_on.wait()
            if self._fails:
                raise ValueError("too late to matter")
        self.finished.append((number(one), message.attempt))

    def numbers(self) -> set[int]:
        return {one for one, _ in self.finished}


async def until_settled(bus: EventBus) -> None:
    """Wait until the group has finished everything."""
    with anyio.fail_after(PATIENCE):
        while True:
            info = await bus.info(TOPIC)
            assert info is not None
            if [(group.pending, group.lag) for group in info.groups] == [(0, 0)]:
                assert not info.dead_letters
                return
            await anyio.sleep(0.02)


async def test_work_of_a_paused_member_is_taken_over_and_it_works_on(
    place: Place, member: Callable[[], Paused]
) -> None:
    """Another finishes what it had; its own end of the same event, much later, harms nothing; then it is a member as before."""
    other = Other(at_once=True)
    async with place.bus(hold=HOLD) as bus:
        await bus.publish(TOPIC, [event(n) for n in range(10)])
        paused = member()
        await paused.until("began", 3)
        paused.send(signal.SIGSTOP)
        subscription = await bus.subscribe(TOPIC, other, group="G")
        await until(lambda: set(range(3, 10)) <= other.numbers(), PATIENCE)
        await until_settled(bus)
        assert (3, 2) in other.finished
        assert subscription.stats.recovered >= 1

        paused.end_with("finish")
        paused.send(signal.SIGCONT)
        await paused.until("finished", 3)
        await subscription.cancel()
        await bus.publish(TOPIC, [event(n) for n in range(10, 20)])
        await paused.until("finished", 19)
        await until_settled(bus)
        done = [*paused.wrote("finished"), *other.finished]
        assert {one for one, _ in done} == set(range(20))
        assert len(set(done)) == len(done), "no attempt was made twice"
        assert max(attempt for _, attempt in done) == 2
        assert {attempt for one, attempt in done if one >= 10} == {1}


@pytest.mark.parametrize("how", ["finish", "fail"])
async def test_the_late_end_of_an_attempt_leaves_the_one_of_another_alone(
    place: Place, member: Callable[[], Paused], how: str
) -> None:
    """
    It goes on while another is at the same event.

    If it fails, the other has it still, and no third attempt is made. If it succeeds, the event is done anyway.
    """
    other = Other(at_once=False, fails=how == "finish")
    async with place.bus(hold=HOLD) as bus:
        await bus.publish(TOPIC, [event(n) for n in range(4)])
        paused = member()
        await paused.until("began", 3)
        paused.send(signal.SIGSTOP)
        subscription = await bus.subscribe(TOPIC, other, group="G", retry_delays=(0.01,))
        await until(lambda: (3, 2) in other.began, PATIENCE)
        paused.end_with(how)
        paused.send(signal.SIGCONT)
        await paused.until({"finish": "finished", "fail": "failed"}[how], 3)
        # The other has its hands full: this one gets what is new, and what would come again.
        for value in (4, 5, 6):
            await bus.publish(TOPIC, event(value))
            await paused.until("finished", value)
            await anyio.sleep(0.3)  # longer than the pause before another attempt, which must not come
        other.go_on.set()
        await until(lambda: subscription.stats.running == 0, PATIENCE)
        await until_settled(bus)
        await bus.publish(TOPIC, event(7))
        await until(lambda: 7 in {*other.numbers(), *(one for one, _ in paused.wrote("finished"))}, PATIENCE)
        await until_settled(bus)
        attempts = [*paused.wrote("began"), *other.began]
        assert sorted(attempt for one, attempt in attempts if one == 3) == [1, 2]
        assert len(set(attempts)) == len(attempts)


async def test_what_is_given_to_a_member_that_sleeps_goes_to_the_living(
    place: Place, member: Callable[[], Paused]
) -> None:
    """It was waiting for events when it was stopped: those that the server hands to it then are not lost with it."""
    other = Other(at_once=True)
    async with place.bus(hold=HOLD) as bus:
        await bus.publish(TOPIC, [event(n) for n in range(3)])
        paused = member()
        await paused.until("finished", 2)
        await until_settled(bus)
        paused.send(signal.SIGSTOP)
        await bus.publish(TOPIC, [event(n) for n in range(4, 10)])
        await bus.subscribe(TOPIC, other, group="G")
        await until(lambda: set(range(4, 10)) <= other.numbers(), PATIENCE)
        await until_settled(bus)
        paused.send(signal.SIGCONT)
        value = 10
        while not any(one >= 10 for one, _ in paused.wrote("finished")):
            await bus.publish(TOPIC, [event(value), event(value + 1)])
            value += 2
            await anyio.sleep(0.02)
            assert value < 5000
        await until_settled(bus)
        done = [*paused.wrote("finished"), *other.finished]
        assert {one for one, _ in done} == {*range(3), *range(4, value)}
        assert len(set(done)) == len(done), "no attempt was made twice"
