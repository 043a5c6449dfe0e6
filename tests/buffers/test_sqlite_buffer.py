"""SQLiteEventBuffer: options, bounds, order, ids, restarts, many processes, clocks, forks."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

import connector_sdk
from connector_sdk.buffers import sqlite_worker
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.buffers.sqlite_clock import StoreClock
from connector_sdk.errors import ClientStateError, ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import new_lease, numbers, record, records
from tests.buffers.samples import Crew
from tests.buffers.sqlite_place import PATIENCE, SQLitePlace, event, numbers_of, run_in_thread
from tests.buffers.test_fork import in_child

pytestmark = pytest.mark.anyio


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[SQLitePlace]:
    async with SQLitePlace.at(tmp_path) as place:
        yield place


class TurnableClock(StoreClock):
    """Clocks that are set by hand."""

    def __init__(self, boot: str = "first") -> None:
        super().__init__(wall=lambda: self.wall_time, monotonic=lambda: self.since_boot, boot=boot)
        self.wall_time = 1_700_000_000.0
        self.since_boot = 100.0

    def pass_by(self, seconds: float) -> None:
        self.wall_time += seconds
        self.since_boot += seconds


# -- options


def test_it_is_public() -> None:
    assert connector_sdk.SQLiteEventBuffer is SQLiteEventBuffer


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("path", ""), ("path", b"events.db"), ("path", 7), ("path", ":memory:"), ("path", "a\0b"), ("path", "folder/"),
        ("path", "sqlite://events.db"), ("path", "sqlite:events.db"), ("path", "sqlite:///"),
        ("max_events", 0), ("max_bytes", 0), ("max_age", 0), ("max_age", "1"), ("max_dead_letters", 0),
        ("dead_letter_seconds", 0), ("dedupe_seconds", -1), ("synchronous", "off"), ("codec", "xml"), ("overflow", "x"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_by_name(option: str, value: object) -> None:
    options: dict[str, Any] = {"path": "events.db", option: value}
    with pytest.raises(ConfigurationError) as refused:
        SQLiteEventBuffer(**options)
    assert refused.value.option == option


@pytest.mark.parametrize("form", ["text", "path", "url", "relative url"])
async def test_the_path_may_be_given_as_a_url(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my events.db"
    forms: dict[str, str | Path] = {
        "text": str(path), "path": path, "url": f"sqlite:///{quote(str(path))}", "relative url": "sqlite:///my%20events.db",
    }  # fmt: skip
    given = forms[form]
    buffer = SQLiteEventBuffer(given, acquire_timeout=PATIENCE, response_timeout=PATIENCE)
    assert not path.exists()  # nothing is done before the first use
    monkeypatch.chdir("/")
    async with buffer:
        await buffer.add(event(1))
        assert await buffer.size() == 1
    assert path.exists()


async def test_closing_leaves_one_file_and_a_lock(place: SQLitePlace) -> None:
    async with place.buffer() as buffer:
        await buffer.add(event(1))
    assert {path.name for path in place.folder.iterdir()} == {"events.db", "events.db-lock"}


async def test_commits_are_synced_by_default_and_otherwise_not(place: SQLitePlace) -> None:
    found: list[int] = []
    for options in ({}, {"synchronous": "normal"}):
        async with place.buffer(**options) as buffer:
            await buffer.add(event(1))
            connection = buffer._store._worker._file._connection  # type: ignore[attr-defined]  # how it is set up
            found.append(connection.execute("PRAGMA synchronous").fetchone()[0])
    assert found == [2, 1]


# -- bounds


async def test_the_oldest_go_when_there_are_too_many(place: SQLitePlace) -> None:
    shard = place.store(max_events=5)
    await shard.append(records(4))
    appended = await shard.append(records(4, start=4))
    assert (appended.stored, appended.size, dict(appended.dropped)) == (4, 5, {DropReason.OVERFLOW: 3})
    assert numbers(await shard.peek()) == [3, 4, 5, 6, 7]
    appended = await shard.append(records(1))  # older than all that wait
    assert dict(appended.dropped) == {DropReason.OVERFLOW: 1}
    assert numbers(await shard.drain()) == [3, 4, 5, 6, 7]
    assert dict((await shard.census()).ledger.dropped) == {DropReason.OVERFLOW: 4}


async def test_the_oldest_go_when_there_are_too_many_bytes(place: SQLitePlace) -> None:
    shard = place.store(max_bytes=10)
    await shard.append(records(10))  # a byte each
    assert numbers(await shard.peek()) == list(range(10))
    appended = await shard.append([record(1000), record(1001)])  # four bytes each
    assert (appended.size, dict(appended.dropped)) == (4, {DropReason.OVERFLOW: 8})
    assert numbers(await shard.peek()) == [8, 9, 1000, 1001]
    appended = await shard.append([record(10**20)])
    assert (appended.size, appended.dropped[DropReason.OVERFLOW]) == (0, 5)
    assert (await shard.census()).ledger.buffered == 0


async def test_bytes_are_counted_right_through_leases_and_dead_letters(place: SQLitePlace) -> None:
    shard = place.store(max_bytes=10)
    await shard.append(records(10))
    lease = new_lease()
    events = (await shard.take(lease, 6)).events
    assert await shard.bury(lease, [(events[0], b"why")])
    assert await shard.acknowledge(lease, events[1:2])
    assert await shard.give_back(lease)
    assert await shard.redrive([events[0].arrival]) == [events[0].arrival]
    assert dict((await shard.append(records(1, start=9))).dropped) == {}  # the tenth byte
    assert dict((await shard.append(records(1, start=9))).dropped) == {DropReason.OVERFLOW: 1}


async def test_what_is_too_old_expires_by_its_arrival(place: SQLitePlace) -> None:
    clock = TurnableClock()
    shard = place.store(max_age=60.0, clock=clock)
    await shard.append([record(0, time=1.0), record(1, time=4e9)])  # their own times are of no account
    clock.pass_by(40)
    await shard.append(records(2, start=2))
    assert (await shard.census()).oldest_age == pytest.approx(40)
    clock.pass_by(30)
    census = await shard.census()
    assert dict(census.dropped) == dict(census.ledger.dropped) == {DropReason.EXPIRED: 2}
    assert numbers(await shard.peek()) == [2, 3]
    assert (await shard.census()).dropped == {}
    clock.pass_by(40)
    page = await shard.take(new_lease())
    assert (list(page.events), dict(page.dropped)) == ([], {DropReason.EXPIRED: 2})


async def test_what_is_on_lease_or_was_redriven_does_not_expire_with_its_number(place: SQLitePlace) -> None:
    clock = TurnableClock()
    shard = place.store(max_age=60.0, clock=clock)
    await shard.append(records(3))
    held, dead = new_lease(), new_lease()
    await shard.take(held, 1, hold=1000)
    events = (await shard.take(dead, 1, hold=1000)).events
    assert await shard.bury(dead, [(events[0], b"why")])
    clock.pass_by(70)
    await shard.append(records(1, start=3))
    assert await shard.redrive([events[0].arrival])
    clock.pass_by(30)
    assert sorted(numbers(await shard.peek())) == [1, 3]
    assert await shard.give_back(held)
    clock.pass_by(5)
    assert sorted(numbers(await shard.peek())) == [1, 3]
    assert dict((await shard.census()).ledger.dropped) == {DropReason.EXPIRED: 2, DropReason.DEAD_LETTER: 1}


# -- ids


async def test_an_id_is_forgotten_when_its_event_has_been_gone_for_long_enough(place: SQLitePlace) -> None:
    clock = TurnableClock()
    shard = place.store(dedupe=600.0, clock=clock)
    batch = [record(number, event_id=str(number)) for number in range(1200)]
    await shard.append(batch)
    clock.pass_by(10_000)
    assert (await shard.append(batch)).duplicates == 1200  # they wait
    await shard.drain()
    clock.pass_by(590)
    assert (await shard.append(batch)).duplicates == 1200
    clock.pass_by(20)
    appended = await shard.append([*batch[:700], *batch[:10]])
    assert (appended.stored, appended.duplicates) == (700, 10)
    assert (await shard.append(batch[:1])).duplicates == 1
    await shard.census()
    with place.raw() as raw:  # the others are not kept for ever
        assert raw.execute("SELECT count(*) FROM ids").fetchone() == (700,)


async def test_dead_letters_and_their_ids_go_after_their_time(place: SQLitePlace) -> None:
    clock = TurnableClock()
    shard = place.store(dead_letter_life=1000.0, dedupe=10.0, clock=clock)
    for number in range(2):
        await shard.append([record(number, event_id=str(number))])
        lease = new_lease()
        events = (await shard.take(lease)).events
        assert await shard.bury(lease, [(events[0], b"why")])
        clock.pass_by(600)
    assert [letter.event.body for letter in await shard.all_dead_letters()] == [b"1"]
    assert (await shard.append([record(0, event_id="0")])).duplicates == 1
    clock.pass_by(20)
    assert (await shard.append([record(0, event_id="0")])).stored == 1
    assert (await shard.append([record(1, event_id="1")])).duplicates == 1  # a dead letter still


async def test_ids_and_the_account_outlive_a_restart(place: SQLitePlace) -> None:
    async with place.buffer() as buffer:
        for number in range(5):
            await buffer.add(event(number))
        assert numbers_of(await buffer.drain(2)) == [0, 1]
    async with place.buffer() as again:
        for number in (0, 4, 5):
            await again.add(event(number))
        stats = await again.stats()
        assert stats.shared is not None
        assert (stats.shared.received, stats.shared.delivered, stats.shared.buffered) == (8, 2, 4)
        assert dict(stats.shared.dropped) == {DropReason.DUPLICATE: 2}
        assert numbers_of(await again.drain()) == [2, 3, 4, 5]


async def test_sessions_are_told_and_drained_apart(place: SQLitePlace) -> None:
    async with place.buffer() as buffer:
        for number, session in enumerate(["a", "b", None, "a"]):
            await buffer.add(event(number, session))
        assert await buffer.sessions() == {"a": 2, "b": 1, None: 1}
        assert numbers_of(await buffer.drain(session_id="a")) == [0, 3]
        assert numbers_of(await buffer.drain(session_id=None)) == [2]
        assert numbers_of(await buffer.drain()) == [1]


async def test_a_text_that_has_no_utf_8_comes_out_as_it_went_in(place: SQLitePlace) -> None:
    shard = place.store()
    lone = "a\ud800b"
    given = record(1, lone, kind=lone, event_id=lone, origin=lone)
    await shard.append([given])
    assert (await shard.append([given])).duplicates == 1
    assert await shard.sessions() == {lone: 1}
    (found,) = (await shard.take(new_lease(), session=lone, kinds=[lone])).events
    assert (found.kind, found.event_id, found.origin) == (lone, lone, lone)


# -- order


async def test_drains_are_in_the_order_of_the_events_times(place: SQLitePlace) -> None:
    async with place.buffer() as buffer:
        for number in (3, 1, 2, 0):
            await buffer.add(event(number, age=100.0 - number))
        assert numbers_of(await buffer.peek(2)) == [2, 3]
        assert numbers_of(await buffer.drain(2)) == [0, 1]
        await buffer.add(event(9, age=1000.0))
        assert numbers_of(await buffer.drain()) == [9, 2, 3]


# -- many at once


async def test_hundreds_of_adders_share_commits(place: SQLitePlace) -> None:
    async with place.buffer() as buffer:
        before = buffer._store._worker._file  # type: ignore[attr-defined]  # counts commits
        commits = 0
        transact = before.transact

        def counted(*arguments: Any, **options: Any) -> object:
            nonlocal commits
            commits += options["writes"]
            return transact(*arguments, **options)

        before.transact = counted
        async with anyio.create_task_group() as tasks:
            for number in range(600):
                tasks.start_soon(buffer.add, event(number))
        assert commits < 100
        assert sorted(numbers_of(await buffer.drain())) == list(range(600))


async def test_processes_add_and_drain_at_once_and_lose_nothing(place: SQLitePlace) -> None:
    adding = "for n in range(start, start + count): await buffer.add(event(n))\nawait buffer.aclose()"
    draining = """
while True:
    was_done = done.exists()
    got = [p.summary for p in await buffer.drain(50)]
    for each in got: say(each)
    if was_done and not got: break
    await anyio.sleep(0.001)
await buffer.aclose()
"""
    done = place.folder / "done"
    draining = f"import pathlib\ndone = pathlib.Path({str(done)!r})" + draining
    with (
        place.program(adding, 0, 300) as one,
        place.program(adding, 300, 300) as other,
        place.program(draining) as first,
        place.program(draining) as second,
    ):
        assert one.rest() == other.rest() == []
        done.touch()
        drained = [int(line) for line in first.rest() + second.rest()]
    assert sorted(drained) == list(range(600))
    stats = await place.buffer().stats()
    assert stats.shared is not None
    assert (stats.shared.delivered, stats.shared.buffered, stats.shared.balanced) == (600, 0, True)


async def test_an_adder_killed_at_any_time_loses_nothing_that_was_confirmed(place: SQLitePlace) -> None:
    confirmed: list[int] = []
    for turn in range(4):
        body = "n = start\nwhile True:\n    await buffer.add(event(n))\n    say(n)\n    n += 1"
        with place.program(body, turn * 10_000) as program:
            seen = [int(program.line()) for _ in range(20 + 7 * turn)]
            confirmed += seen + [int(line) for line in program.kill()]
    async with place.buffer() as buffer:
        found = numbers_of(await buffer.drain())
        assert set(confirmed) <= set(found)
        assert len(found) - len(confirmed) <= 4  # stored, and killed before it could say so
        assert len(set(found)) == len(found)
        stats = await buffer.stats()
    assert stats.shared is not None
    assert stats.shared.balanced


async def test_what_a_killed_drainer_had_comes_again(place: SQLitePlace) -> None:
    async with place.buffer() as buffer:
        for number in range(10):
            await buffer.add(event(number))
        body = "async with buffer.lease(6, 0.3, renew=False) as lease:\n    say(len(lease.events))\n    await anyio.sleep(60)"
        body = body if _lease_renews(buffer) else body.replace(", renew=False", "")
        with place.program(body) as program:
            assert program.line() == "6"
            program.kill()
        with anyio.fail_after(PATIENCE):
            while await buffer.size() < 10:
                await anyio.sleep(0.02)
        assert numbers_of(await buffer.drain()) == list(range(10))


def _lease_renews(buffer: SQLiteEventBuffer) -> bool:
    import inspect

    return "renew" in inspect.signature(buffer.lease).parameters


# -- clocks


@pytest.mark.parametrize("jump", [-1e6, 1e6])
async def test_setting_the_wall_clock_changes_no_lease_and_no_age(place: SQLitePlace, jump: float) -> None:
    clock = TurnableClock()
    shard = place.store(max_age=1000.0, clock=clock)
    await shard.append(records(2))
    lease = new_lease()
    await shard.take(lease, 1, hold=100.0)
    clock.wall_time += jump
    clock.pass_by(50)
    assert await shard.extend(lease, 100.0)
    assert numbers(await shard.peek()) == [1]
    assert (await shard.census()).oldest_age == pytest.approx(50)
    clock.pass_by(101)
    assert not await shard.extend(lease)
    assert numbers(await shard.peek()) == [0, 1]


async def test_leases_end_with_the_run_of_the_machine_and_ages_go_on(place: SQLitePlace) -> None:
    clock = TurnableClock()
    shard = place.store(max_age=1000.0, clock=clock)
    await shard.append(records(2))
    await shard.take(new_lease(), 1, hold=500.0)
    clock.pass_by(10)
    await shard.store.aclose()
    again = TurnableClock("second")
    again.wall_time, again.since_boot = clock.wall_time + 90, 3.0
    shard = place.store(max_age=1000.0, clock=again)
    assert numbers(await shard.peek()) == [0, 1]
    assert (await shard.census()).oldest_age == pytest.approx(100)
    again.pass_by(901)
    assert (await shard.census()).ledger.dropped == {DropReason.EXPIRED: 2}


async def test_a_machine_that_was_started_with_a_wrong_clock_does_not_go_back_in_time(place: SQLitePlace) -> None:
    clock = TurnableClock()
    shard = place.store(max_age=1000.0, clock=clock)
    await shard.append(records(1))
    await shard.store.aclose()
    again = TurnableClock("second")
    again.wall_time = 0.0  # 1970
    shard = place.store(max_age=1000.0, clock=again)
    assert (await shard.census()).oldest_age == pytest.approx(0)
    again.pass_by(400)
    again.wall_time = clock.wall_time + 500  # somebody sets it
    assert (await shard.census()).oldest_age == pytest.approx(400)


async def test_without_names_for_runs_of_the_machine_a_clock_set_back_holds_no_lease_for_ever(
    place: SQLitePlace,
) -> None:
    clock = TurnableClock(boot="")
    shard = place.store(clock=clock)
    await shard.append(records(2))
    held = new_lease()
    await shard.take(held, 1, hold=60.0)
    clock.wall_time -= 86_400
    assert not await shard.extend(held)
    assert numbers(await shard.peek()) == [0, 1]


async def test_processes_of_one_machine_have_one_clock(place: SQLitePlace) -> None:
    shard = place.store()
    await shard.append(records(1))
    with place.program("say((await buffer.stats()).oldest_age)\nawait buffer.aclose()") as program:
        (age,) = program.rest()
    assert 0 <= float(age) < PATIENCE


# -- forks


def test_the_child_of_a_fork_opens_the_file_anew(tmp_path: Path) -> None:
    buffer = SQLiteEventBuffer(tmp_path / "events.db", overflow="block", response_timeout=PATIENCE)

    async def add(first: int) -> None:
        for number in range(first, first + 20):
            await buffer.add(event(number))

    async def main() -> None:
        await add(0)
        in_child(lambda: run_in_thread(add, 100))
        await add(50)
        assert await buffer.size() == 60
        await buffer.aclose()

    anyio.run(main)
    with_raw = sqlite3.connect(tmp_path / "events.db")
    assert with_raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert with_raw.execute("SELECT received, waiting FROM account").fetchone() == (60, 60)
    with_raw.close()


def test_forks_while_the_thread_is_at_work_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    buffer = SQLiteEventBuffer(path, overflow="block", response_timeout=PATIENCE)

    async def add(first: int, count: int) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(first, first + count):
                tasks.start_soon(buffer.add, event(number))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for turn in range(6):
                tasks.start_soon(add, turn * 1000, 50)
                for _ in range(turn + 2):
                    await anyio.sleep(0.001)
                in_child(partial(run_in_thread, add, turn * 1000 + 500, 10))
        assert await buffer.size() == 360
        assert sorted(numbers_of(await buffer.drain())) == sorted(
            number for turn in range(6) for start, count in ((0, 50), (500, 10))
            for number in range(turn * 1000 + start, turn * 1000 + start + count)
        )  # fmt: skip
        await buffer.aclose()

    anyio.run(main)


def test_a_file_that_cannot_be_closed_before_a_fork_is_not_used_in_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_worker, "_FORK_PATIENCE", 0.1)
    buffer = SQLiteEventBuffer(tmp_path / "events.db", overflow="block", response_timeout=PATIENCE)

    def use() -> None:
        with pytest.raises(ClientStateError, match="fork"):
            anyio.run(buffer.add, event(7))
        with pytest.raises(ClientStateError, match="fork"):
            anyio.run(SQLiteEventBuffer(tmp_path / "events.db").add, event(7))

    def use_in_thread() -> None:
        with Crew() as crew:
            crew.start(use)

    async def main() -> None:
        await buffer.add(event(0))
        with contextlib.closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(buffer.add, event(1))
                await anyio.sleep(0.2)  # its thread waits for the lock
                in_child(use_in_thread)
                other.execute("ROLLBACK")
        assert await buffer.size() == 2
        await buffer.aclose()

    anyio.run(main)


def test_one_buffer_serves_one_event_loop_after_the_other(tmp_path: Path) -> None:
    buffer = SQLiteEventBuffer(tmp_path / "events.db", overflow="block", response_timeout=PATIENCE)

    async def add(number: int) -> int:
        await buffer.add(event(number))
        return await buffer.size()

    assert anyio.run(add, 1) == 1
    assert anyio.run(add, 2, backend="trio") == 2
    assert anyio.run(add, 3) == 3
    anyio.run(buffer.aclose, backend="trio")
    assert not os.path.exists(f"{tmp_path}/events.db-wal")


async def test_a_cancelled_request_that_has_not_begun_is_not_done(place: SQLitePlace) -> None:
    shard = place.store()
    await shard.append(records(1))
    with place.raw() as raw:
        raw.execute("BEGIN IMMEDIATE")
        with anyio.move_on_after(0.2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(shard.append, records(1, start=2))
                await anyio.sleep(0.1)  # it waits for the lock by now, and the others wait for it
                for number in range(3, 6):
                    tasks.start_soon(shard.append, records(1, start=number))
        raw.execute("ROLLBACK")
    started = time.monotonic()
    found = numbers(await shard.drain())
    assert time.monotonic() - started < PATIENCE
    assert found[0] == 0
    assert len(found) <= 2  # at most the one that had begun
