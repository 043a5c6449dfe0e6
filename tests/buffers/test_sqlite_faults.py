"""SQLiteEventBuffer when the file is damaged, the disk is full, or another process holds the lock."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from connector_sdk.errors import BufferUnavailableError, ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload
from connector_sdk.testing.store_case import Shard, new_lease, numbers, record, records
from tests.buffers.sqlite_place import PATIENCE, SQLitePlace, event, numbers_of, run_in_thread
from tests.buffers.test_fork import in_child

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

PAGE = 8192


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[SQLitePlace]:
    async with SQLitePlace.at(tmp_path) as place:
        yield place


async def _filled(place: SQLitePlace, count: int = 200) -> None:
    """Leave a file with events, all in their places."""
    shard = place.store()
    await shard.append(_large(count))
    await shard.store.aclose()


def _large(count: int, start: int = 0) -> list[Any]:
    import msgspec

    return [
        msgspec.structs.replace(record(number), body=b"%d " % number + b"x" * 2000)
        for number in range(start, start + count)
    ]


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _header(path: Path) -> None:
    _overwrite(path, 0, b"not a database at all")


def _page(path: Path) -> None:
    size = path.stat().st_size
    for page in range(3, size // PAGE, 2):  # the account is in a page before
        _overwrite(path, page * PAGE, os.urandom(PAGE))


def _truncation(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // PAGE * PAGE + 100)


def _noise(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


# -- damage


@pytest.mark.parametrize("damage", [_header, _page, _truncation, _noise])
async def test_a_damaged_file_is_set_aside_as_it_is_and_a_new_one_begun(
    place: SQLitePlace, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    await _filled(place)
    damage(place.path)
    before = place.path.read_bytes()
    async with place.buffer() as buffer:
        await buffer.add(event(1))
        assert numbers_of(await buffer.drain()) == [1]
        (aside,) = place.set_aside()
        assert aside.read_bytes() == before
        with anyio.fail_after(PATIENCE):
            while not (await buffer.stats()).findings:
                await anyio.sleep(0.02)
        assert str(aside) in (await buffer.stats()).findings[0]
        stats = await buffer.stats()
        assert stats.shared is not None
        assert stats.shared.balanced
    assert [r for r in caplog.records if r.levelname == "ERROR" and "damaged" in r.getMessage()]


async def test_what_was_in_a_damaged_file_counts_as_lost_if_its_account_can_be_read(place: SQLitePlace) -> None:
    shard = place.store()
    await shard.append(_large(200))
    await shard.drain(10)
    await shard.store.aclose()
    _page(place.path)
    shard = place.store()
    assert (await shard.append(records(1))).stored == 1
    ledger = (await shard.census()).ledger
    assert (ledger.received, ledger.delivered, ledger.buffered) == (201, 10, 1)
    assert dict(ledger.dropped) == {DropReason.LOST: 190}
    (letter,) = await shard.peek()
    assert letter.arrival > 200  # no name is used again


async def test_damage_found_while_the_file_is_in_use_is_told_to_the_reader_and_not_to_the_adder(
    place: SQLitePlace,
) -> None:
    shard = place.store()
    await shard.append(_large(600))
    with place.raw() as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    await shard.append(records(1, start=700))
    _page(place.path)
    with pytest.raises(BufferUnavailableError, match="set aside") as refused:
        await _take_all(shard)
    assert not refused.value.in_doubt
    assert len(place.set_aside()) == 1
    assert (await shard.append(records(1))).stored == 1
    assert numbers(await shard.drain()) == [0]
    assert any("set aside" in finding for finding in await shard.store.inspect(timeout=PATIENCE))
    place.set_aside()[0].unlink()
    assert await shard.store.inspect(timeout=PATIENCE) == []


async def test_processes_that_find_damage_at_once_set_aside_one_file(place: SQLitePlace) -> None:
    await _filled(place)
    _page(place.path)
    body = """
say("ready")
while not await anyio.Path(path + ".go").exists(): await anyio.sleep(0.001)
for n in range(start, start + count): await buffer.add(event(n))
say("done")
await anyio.sleep(0.2)
await buffer.aclose()
"""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(place.program(body, turn * 100, 50)) for turn in range(4)]
        assert [program.line() for program in programs] == ["ready"] * 4
        place.beside(".go").touch()
        assert [program.rest() for program in programs] == [["done"]] * 4
    assert len(place.set_aside()) == 1
    shard = place.store()
    assert len(await shard.drain()) == 200


async def test_the_log_of_a_new_file_outlives_those_who_had_the_old_one_open(place: SQLitePlace) -> None:
    """SQLite deletes the log by its name when the last one closes, whosever log it is by then."""
    old, finder = place.store(), place.store()
    await old.append(_large(200))
    with place.raw() as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _page(place.path)
    assert (await finder.append(records(5))).stored == 5
    assert len(place.set_aside()) == 1
    await old.store.aclose()
    other = place.store()
    assert numbers(await other.peek()) == numbers(await finder.peek()) == [0, 1, 2, 3, 4]


async def test_who_had_a_file_open_that_was_set_aside_or_deleted_goes_on_with_the_new_one(place: SQLitePlace) -> None:
    shard, other = place.store(), place.store()
    await shard.append(records(3))
    await other.census()
    for path in place.folder.glob("events.db*"):
        if not path.name.endswith("-lock"):
            path.unlink()
    assert (await shard.append(records(2))).stored == 2
    assert (await other.append(records(1, start=2))).stored == 1
    assert numbers(await other.drain()) == [0, 1, 2]


async def test_a_log_of_noise_costs_no_more_than_what_was_in_it(place: SQLitePlace) -> None:
    await _filled(place)
    place.beside("-wal").write_bytes(os.urandom(100_000))
    place.beside("-shm").write_bytes(os.urandom(32_768))
    shard = place.store()
    assert (await shard.census()).ledger.buffered == 200
    await shard.append(records(1, start=300))
    assert len(await shard.drain()) == 201
    assert place.set_aside() == []


# -- files of others


def _of_another_program(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
        other.commit()


def _of_a_later_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("make", [_of_another_program, _of_a_later_version])
async def test_a_file_of_another_program_or_version_is_refused_and_left_alone(
    place: SQLitePlace, make: Callable[[Path], None]
) -> None:
    if make is _of_a_later_version:
        await _filled(place, 1)
    make(place.path)
    before = place.path.read_bytes()
    buffer = place.buffer()
    for use in (lambda: buffer.add(event(1)), buffer.drain, buffer.size):
        with pytest.raises(ConfigurationError, match=r"another program|a later one"):
            await use()
    await buffer.aclose()
    assert place.path.read_bytes() == before
    assert {path.name for path in place.folder.iterdir()} <= {"events.db", "events.db-lock"}


@pytest.mark.parametrize("path", ["missing/events.db", "file/events.db", "folder", "/proc/events.db"])
async def test_a_path_that_cannot_be_is_told_clearly(place: SQLitePlace, path: str) -> None:
    (place.folder / "file").touch()
    (place.folder / "folder").mkdir()
    place.path = place.folder / path
    buffer = place.buffer()
    with pytest.raises(ConfigurationError, match="folder") as refused:
        await buffer.add(event(1))
    assert refused.value.option == "path"
    assert await _refused(buffer.drain)


async def _refused(use: Callable[[], Any]) -> bool:
    with pytest.raises(ConfigurationError):
        await use()
    return True


# -- no room


@contextlib.contextmanager
def _quota(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond *size* bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def _take_all(shard: Shard) -> None:
    while (await shard.take(new_lease(), 100)).events:
        pass


async def _until_full(shard: Shard) -> int:
    for number in range(1000):
        try:
            await shard.append(_large(20, start=number * 20))
        except BufferUnavailableError as error:
            return number * 20 if error.full and not error.in_doubt else -1
    raise AssertionError("it never gets full")


def test_on_a_full_disk_events_can_be_taken_out_and_then_there_is_room_again(tmp_path: Path) -> None:
    mount = ["unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size=12m tmpfs {tmp_path} && "$@"', "sh"]
    if subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import anyio
from pathlib import Path
from tests.buffers.test_sqlite_faults import fill_a_disk_and_empty_it
anyio.run(fill_a_disk_and_empty_it, Path({str(tmp_path)!r}))
"""
    done = subprocess.run(
        [*mount, sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")


async def fill_a_disk_and_empty_it(folder: Path) -> None:
    async with SQLitePlace.at(folder) as place:
        shard = place.store()
        for turn in range(3):
            stored = await _until_full(shard)
            assert stored >= 1500  # events of 2 kB
            assert len(await shard.peek()) == stored
            assert (await shard.census()).ledger.buffered == stored
            lease = new_lease()
            events = (await shard.take(lease, 100)).events
            assert await shard.bury(lease, [(events[0], b"why")])
            assert await shard.acknowledge(lease, events[1:50])
            assert await shard.give_back(lease)
            drained = 0
            while page := await shard.drain(500):  # as a buffer does it: a page at a time
                drained += len(page)
            assert drained == stored - 50
            census = await shard.census()
            assert (census.ledger.balanced, census.dead_letters) == (True, turn + 1)
        assert place.set_aside() == []


def test_a_file_that_may_not_grow_refuses_events_and_can_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with SQLitePlace.at(tmp_path) as place:
            shard = place.store()
            await shard.append(_large(1))
            with _quota(1_000_000):
                stored = 1 + await _until_full(shard)
                assert stored > 100
                assert len(await shard.peek()) == stored
                assert (await shard.census()).ledger.buffered == stored
            assert (await shard.append(_large(50, start=6000))).stored == 50
            assert len(await shard.drain()) == stored + 50
            assert (await shard.census()).ledger.balanced
            assert place.set_aside() == []

    in_child(lambda: run_in_thread(main))


@pytest.mark.parametrize("overflow", ["drop_newest", "block"])
def test_a_buffer_on_a_full_disk_drops_or_waits_and_goes_on_when_there_is_room(tmp_path: Path, overflow: str) -> None:
    async def main() -> None:
        told: list[Payload] = []
        async with SQLitePlace.at(tmp_path) as place:
            buffer = place.buffer(overflow=overflow, on_drop=told.append)
            await buffer.add(event(0))
            payloads = [event(number, event_id=None) for number in range(1, 400)]
            large = [
                type(each)("shop", "s", str(n) + " " + "x" * 5000, 0, each.forwarded_at)
                for n, each in enumerate(payloads)
            ]
            done = 0
            async with anyio.create_task_group() as tasks:
                with _quota(400_000):

                    async def add() -> None:
                        nonlocal done
                        for each in large:
                            await buffer.add(each)
                            done += 1

                    tasks.start_soon(add)
                    if overflow == "block":
                        before = -1
                        while before != done or not done:
                            before = done
                            await anyio.sleep(0.5)
                        assert done < len(large)
                    else:
                        with anyio.fail_after(PATIENCE):
                            while done < len(large):
                                await anyio.sleep(0.01)
                        assert told
                        dropped = (await buffer.stats()).ledger.dropped
                        assert dict(dropped) == {DropReason.STORE_FULL: len(told)}
                        assert await buffer.size() == 400 - len(told)
            if overflow == "block":
                assert not told
                assert await buffer.size() == 400
            await buffer.add(event(1000))
            assert (await buffer.stats()).ledger.balanced

    in_child(lambda: run_in_thread(main))


# -- locks


async def test_a_lock_that_is_held_for_too_long_is_a_store_that_is_away_and_readers_go_on(place: SQLitePlace) -> None:
    shard = place.store(patience=0.2)
    patient = place.store()
    await patient.append(records(3))
    await shard.census()
    with place.raw() as raw:
        raw.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(BufferUnavailableError) as refused:
            await shard.append(records(1))
        assert time.monotonic() - started < PATIENCE / 2
        assert (refused.value.full, len(await shard.peek())) == (False, 3)
        raw.execute("ROLLBACK")
    assert (await patient.append(records(1, start=5))).stored == 1


async def test_a_stopped_process_that_holds_the_lock_keeps_others_out_until_it_goes_on(place: SQLitePlace) -> None:
    told: list[Payload] = []
    body = """
db = __import__("sqlite3").connect(path, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
say("locked")
await anyio.sleep(0.5)
db.execute("COMMIT")
say("done")
await anyio.sleep(60)
"""
    buffer = place.buffer(response_timeout=0.3, acquire_timeout=0.3, on_drop=told.append)
    await buffer.add(event(0))
    with place.program(body) as program:
        assert program.line() == "locked"
        program.pause()
        await buffer.add(event(1))
        with anyio.fail_after(PATIENCE):
            while (await buffer.stats()).state != "open":
                await buffer.add(event(2))
                await anyio.sleep(0.05)
        program.resume()
        assert program.line() == "done"
        with anyio.fail_after(PATIENCE):
            while (await buffer.stats()).state != "closed":
                await anyio.sleep(0.05)
        await buffer.add(event(3))
        stats = await buffer.stats()
        assert stats.ledger.balanced
        assert stats.ledger.received == stats.ledger.delivered + len(told) + stats.ledger.dropped.get(
            DropReason.DUPLICATE, 0
        )
    assert 3 in numbers_of(await buffer.drain())


async def test_a_process_killed_within_a_transaction_leaves_nothing_half_done(place: SQLitePlace) -> None:
    shard = place.store()
    await shard.append(records(3))
    body = """
db = __import__("sqlite3").connect(path, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
db.execute("DELETE FROM events")
say("locked")
await anyio.sleep(60)
"""
    with place.program(body) as program:
        assert program.line() == "locked"
        program.kill()
    assert (await shard.append(records(1, start=3))).stored == 1
    assert numbers(await shard.drain()) == [0, 1, 2, 3]
