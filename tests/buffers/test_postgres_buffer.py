"""PostgresStore and PostgresEventBuffer: options, bounds, texts, setting up, many processes, forks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import psycopg
import pytest

from connector_sdk.buffers.postgres import PostgresEventBuffer
from connector_sdk.buffers.postgres_schema import prepare
from connector_sdk.buffers.store import Record
from connector_sdk.errors import BufferUnavailableError, ClientStateError, ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import new_lease, numbers, record, records
from tests.buffers.postgres_place import PATIENCE, PostgresPlace
from tests.buffers.samples import numbers as numbers_of_ids
from tests.buffers.samples import summary
from tests.buffers.sqlite_place import event, numbers_of
from tests.buffers.test_fork import in_child

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
async def place(postgres_url: str) -> AsyncIterator[PostgresPlace]:
    async with PostgresPlace.at(postgres_url) as place:
        yield place


# -- options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("key_prefix", ""), ("key_prefix", "a\0b"), ("key_prefix", "\ud800"), ("key_prefix", 5), ("key_prefix", "x" * 501),
        ("max_events", 0), ("max_bytes", 0), ("max_age", 0), ("dedupe_seconds", -1), ("max_dead_letters", 0),
        ("dead_letter_seconds", 0), ("connections", 0), ("connections", 101), ("connect_timeout", 0), ("codec", "xml"),
        ("overflow", "raise"), ("dsn", ""), ("dsn", None), ("dsn", "postgresql://u:secret@h:port/d"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(option: str, value: object) -> None:
    options: dict[str, Any] = {"dsn": "postgresql://127.0.0.1:1/d", option: value}
    with pytest.raises(ConfigurationError) as caught:
        PostgresEventBuffer(**options)
    assert caught.value.option == option
    assert "secret" not in str(caught.value)


def test_without_psycopg_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from connector_sdk.buffers.postgres import PostgresEventBuffer\n"
        "PostgresEventBuffer('postgresql://u:secret@h/d')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("connector_sdk.errors.ConfigurationError: dsn=<hidden>")
    assert "pip install 'connector_sdk[postgres]'" in last


async def test_no_secret_is_told(place: PostgresPlace) -> None:
    dsn = place.dsn.replace("postgres@", "postgres:hush@")
    buffer = PostgresEventBuffer(dsn, "p")
    store = buffer._store
    assert store.name.startswith("postgresql://127.0.0.1:")
    assert store.name.endswith(" 'p'")
    assert "hush" not in f"{store.name} {store!r} {buffer!r}"
    await buffer.aclose()
    gone = PostgresEventBuffer("postgresql://u:hush@127.0.0.1:1/d", response_timeout=PATIENCE)
    with pytest.raises(BufferUnavailableError) as caught:
        await gone.clear()
    assert "hush" not in str(caught.value)
    await gone.aclose()


# -- bounds


async def test_the_oldest_go_when_there_are_too_many(place: PostgresPlace) -> None:
    shard = place.store(max_events=5)
    assert (await shard.append(records(4))).dropped == {}
    appended = await shard.append(record(number) for number in range(4, 8))
    assert (appended.size, appended.dropped) == (5, {DropReason.OVERFLOW: 3})
    assert numbers(await shard.drain()) == [3, 4, 5, 6, 7]
    assert (await shard.census()).ledger.dropped == {DropReason.OVERFLOW: 3}


async def test_the_oldest_go_when_they_are_too_large(place: PostgresPlace) -> None:
    shard = place.store(max_bytes=1000)
    batch = [Record("s", float(number), "summary", b"%d " % number + bytes(300)) for number in range(6)]
    appended = await shard.append(batch)
    assert (appended.size, appended.dropped) == (3, {DropReason.OVERFLOW: 3})
    assert [event.time for event in await shard.peek()] == [3.0, 4.0, 5.0]
    assert (await shard.append([Record("s", 9.0, "summary", bytes(2000))])).size == 0


async def test_events_that_waited_for_too_long_expire(place: PostgresPlace) -> None:
    shard = place.store(max_age=0.3)
    await shard.append(records(3))
    lease = new_lease()
    (held,) = (await shard.take(lease, 1)).events
    with anyio.fail_after(PATIENCE):
        while not (census := await shard.census()).dropped:
            await anyio.sleep(0.02)
    assert census.dropped == census.ledger.dropped == {DropReason.EXPIRED: 2}
    assert await shard.acknowledge(lease, [held])  # what is on lease does not expire


async def test_ids_are_forgotten_in_time(place: PostgresPlace) -> None:
    shard = place.store(dedupe=0.3)
    await shard.append([record(1, event_id="a"), record(2, event_id="a")])
    assert (await shard.append([record(3, event_id="a")])).duplicates == 1
    assert len(await shard.drain()) == 1
    with anyio.fail_after(PATIENCE):
        while not (await shard.append([record(4, event_id="a")])).stored:
            await anyio.sleep(0.02)
    assert (await shard.append([record(5, event_id="a")])).duplicates == 1  # it is that of the new one now


async def test_dead_letters_go_in_time(place: PostgresPlace) -> None:
    shard = place.store(dead_letter_life=0.4)
    await shard.append([record(1, event_id="a")])
    lease = new_lease()
    page = await shard.take(lease)
    assert await shard.bury(lease, [(page.events[0], b"why")])
    with anyio.fail_after(PATIENCE):
        while await shard.all_dead_letters():
            await anyio.sleep(0.02)
    with place.raw() as connection:
        assert connection.execute("SELECT count(*) FROM connector_buffers.evidence").fetchone() == (0,)


async def test_any_text_is_kept_as_it_is(place: PostgresPlace) -> None:
    shard = place.store()
    texts = ["", "nul\0inside", "lone \ud800", "é ☃", "a" * 3000]
    batch = [Record(text, float(place), text, b"\0\xff", text, text) for place, text in enumerate(texts)]
    await shard.append(batch)
    assert (await shard.append(batch)).duplicates == len(texts)
    assert await shard.sessions() == dict.fromkeys(texts, 1)
    for text in texts:
        (found,) = (await shard.take(new_lease(), session=text, kinds=[text])).events
        assert (found.kind, found.event_id, found.origin, found.body) == (text, text, text, b"\0\xff")


@pytest.mark.parametrize("connections", [1, 3])
async def test_events_of_one_time_stay_in_the_order_in_which_they_were_added(
    place: PostgresPlace, connections: int
) -> None:
    buffer = place.buffer(overflow="block", connections=connections, max_concurrent=10)
    async with anyio.create_task_group() as tasks:
        for number in range(1000):
            tasks.start_soon(buffer.add, summary(number))
    assert numbers_of_ids(await buffer.drain()) == list(range(1000))


async def test_buffers_of_one_database_know_nothing_of_each_other(place: PostgresPlace) -> None:
    one = place.buffer(overflow="block")
    other = PostgresEventBuffer(place.dsn, "other", overflow="block")
    await one.add(summary(1))
    await other.add(summary(1))
    await other.add(summary(2))
    assert (await one.size(), await other.size()) == (1, 2)
    await one.clear()
    assert await one.size() == 0
    assert await other.size() == 2
    await other.aclose()


# -- setting up


async def test_many_may_come_first_at_once(place: PostgresPlace) -> None:
    shards = [place.store() for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for number, shard in enumerate(shards):
            tasks.start_soon(shard.append, [record(number)])
    assert (await shards[0].census()).ledger.received == 6


async def test_what_somebody_removed_is_made_anew(place: PostgresPlace) -> None:
    buffer = place.buffer(overflow="block")
    await buffer.add(event(1))
    with place.raw() as connection:
        connection.execute("DROP SCHEMA connector_buffers CASCADE")
    await buffer.add(event(2))
    assert numbers_of(await buffer.drain()) == [2]


async def test_tables_of_a_later_version_are_left_alone(place: PostgresPlace) -> None:
    await place.store().census()
    with place.raw() as connection:
        connection.execute("UPDATE connector_buffers.release SET tables = tables + 1")
    with pytest.raises(ConfigurationError, match="later version"):
        await place.store().census()


async def test_functions_of_an_earlier_version_are_replaced_and_of_a_later_one_left(place: PostgresPlace) -> None:
    await place.store().census()
    lost = "DROP FUNCTION connector_buffers.extend"
    with place.raw() as connection:
        connection.execute(f"{lost}; UPDATE connector_buffers.release SET steps = 0")
        assert not await place.store().extend("no such")
        connection.execute(f"{lost}; UPDATE connector_buffers.release SET steps = 1000000")
        client = place.client()
        await client.run(prepare, timeout=PATIENCE)
        await client.aclose()
        assert connection.execute("SELECT steps FROM connector_buffers.release").fetchone() == (1000000,)


async def test_a_user_with_few_rights_finds_what_another_made(place: PostgresPlace) -> None:
    await place.store().census()
    name = f"few_{place.dsn.rpartition('_')[2]}"
    with place.raw() as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'".encode())
        try:
            few = PostgresPlace(place.dsn.replace("postgres@", f"{name}:x@"), "few", place._stack)
            buffer = few.buffer(overflow="drop_newest")
            with pytest.raises(BufferUnavailableError, match="permission denied"):
                await buffer.clear()
            connection.execute(
                f"GRANT USAGE ON SCHEMA connector_buffers TO {name}; "
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA connector_buffers TO {name}".encode()
            )
            shard = few.store()
            await shard.append([record(1, event_id="a")])
            assert numbers(await shard.drain()) == [1]
            await shard.store.aclose()
            await buffer.aclose()
        finally:
            connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


async def test_other_isolation_levels_of_the_server_do_no_harm(place: PostgresPlace) -> None:
    with place.raw() as connection:
        name = place.dsn.rpartition("/")[2]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'".encode())
    shards = [place.store() for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(shards[number % 3].append, [record(number, event_id=str(number))])
    assert (await shards[0].census()).ledger.received == 30


async def test_settings_that_may_cost_events_are_told(place: PostgresPlace) -> None:
    with place.raw() as connection:
        name = place.dsn.rpartition("/")[2]
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = 'off'".encode())
    findings = await place.store().store.inspect(timeout=PATIENCE)
    assert any("synchronous_commit" in finding for finding in findings)


# -- processes and event loops


async def test_processes_add_and_drain_and_one_is_killed(place: PostgresPlace) -> None:
    adding = "for n in range(start, start + count): await buffer.add(event(n))\nawait buffer.aclose()"
    draining = """
while True:
    async with buffer.lease(20, timeout=2.0) as lease:
        for each in lease.events: say(each.summary)
"""
    with (
        place.program(adding, 0, 200) as one,
        place.program(adding, 200, 200) as other,
        place.program(draining) as first,
        place.program(draining) as second,
    ):
        said = [first.line() for _ in range(30)]
        said += first.kill()
        assert one.rest() == other.rest() == []
        watched = place.buffer()
        drained: set[int] = {int(line) for line in said}

        def read() -> None:
            while drained < set(range(400)):
                line = second.line()
                assert line
                drained.add(int(line))

        with anyio.fail_after(PATIENCE):
            await anyio.to_thread.run_sync(read)
            while True:
                stats = await watched.stats()
                assert stats.shared is not None
                if stats.shared.delivered == 400:
                    break
                await anyio.sleep(0.05)
    assert (stats.shared.received, stats.shared.buffered, stats.shared.in_flight) == (400, 0, 0)


def test_the_child_of_a_fork_and_its_parent_both_go_on(postgres_url: str) -> None:
    buffer = PostgresEventBuffer(
        postgres_url, "p", overflow="block", response_timeout=PATIENCE, connect_timeout=PATIENCE
    )

    async def child() -> None:
        await buffer.add(event(2))
        await buffer.aclose()

    async def parent() -> None:
        await buffer.add(event(1))
        with psycopg.connect(postgres_url) as connection:
            before = connection.execute(_BACKENDS).fetchall()
            assert before
        await anyio.to_thread.run_sync(lambda: in_child(lambda: anyio.run(child)))
        with psycopg.connect(postgres_url) as connection:
            # The child closed no connection of ours; its own may still be closing.
            assert set(before) <= set(connection.execute(_BACKENDS).fetchall())
        await buffer.add(event(3))
        assert numbers_of(await buffer.drain()) == [1, 2, 3]
        await buffer.aclose()

    anyio.run(parent)


_BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND application_name = 'connector_sdk' ORDER BY pid"
)


def test_one_event_loop_after_the_other_may_use_it(postgres_url: str) -> None:
    buffer = PostgresEventBuffer(
        postgres_url, "p", overflow="block", response_timeout=PATIENCE, connect_timeout=PATIENCE
    )
    anyio.run(buffer.add, event(1))
    anyio.run(buffer.add, event(2))
    assert numbers_of(anyio.run(buffer.drain)) == [1, 2]
    anyio.run(buffer.aclose)


def test_on_trio_it_says_that_it_cannot(postgres_url: str) -> None:
    buffer = PostgresEventBuffer(postgres_url)
    with pytest.raises(ClientStateError, match="asyncio"):
        anyio.run(buffer.clear, backend="trio")
    anyio.run(buffer.aclose, backend="trio")
