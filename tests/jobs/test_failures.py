"""What becomes of events when the handler fails: splitting, order, dead letters, outages."""

from __future__ import annotations

import math
import random

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers.dead_letters import Evidence
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.errors import ConfigurationError
from connector_sdk.jobs.attempts import RetryLater
from connector_sdk.payloads import Payload
from tests.jobs.samples import PATIENCE, Index, event, filled, job, number_of

pytestmark = pytest.mark.anyio


async def test_a_poison_event_is_found_in_halves_of_halves() -> None:
    index = Index(bad=[2])
    done = job(filled(range(8)), index, max_attempts=3)
    report = await done.run_once()
    assert report.drained
    # No probes: 0 and 1 were done after the batch failed, so the handler works.
    assert index.calls == [
        [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7], [2], [2],
    ]  # fmt: skip
    stats = done.stats()
    assert (stats.delivered, stats.dead_lettered, stats.splits, stats.retries) == (7, 1, 3, 2)
    assert stats.balanced


async def test_dead_letters_have_the_evidence_and_are_replayed_after_the_fix() -> None:
    buffer, index = filled(range(4)), Index(bad=[3])
    done = job(buffer, index, max_attempts=2, name="indexing")
    await done.run_once()
    (letter,) = buffer.dead_letters.list()
    assert number_of(letter.payload) == 3
    assert [attempt.batch_size for attempt in letter.attempts] == [4, 2, 1, 1]
    assert {attempt.error_type for attempt in letter.attempts} == {"ValueError"}
    assert letter.last.message == "cannot index 3"
    assert letter.last.traceback_digest
    assert letter.attempts == sorted(letter.attempts, key=lambda attempt: attempt.at)
    assert letter.deaths[0].consumer.startswith("indexing on ")
    index.bad.clear()
    assert buffer.dead_letters.replay().replayed == 1
    assert (await done.run_once()).drained
    assert sorted(index.done) == [0, 1, 2, 3]
    assert buffer.dead_letters.count() == 0


async def test_a_session_stays_in_order_around_its_poison_event() -> None:
    index = Index(bad=[4])
    done = job(filled(range(40), lambda number: f"s-{number % 4}"), index, batch_size=10, max_attempts=3)
    assert (await done.run_once()).drained
    for session in range(4):
        mine = [number for number in index.done if number % 4 == session]
        assert mine == sorted(mine)
    assert sorted(index.done) == [number for number in range(40) if number != 4]
    # Later events of the session were not even handed over before the poison event was given up.
    last_try = max(place for place, call in enumerate(index.calls) if call == [4])
    assert not any(set(call) & {8, 12, 16, 36} for call in index.calls[1:last_try] if 4 not in call)
    # All others were done before its first retry.
    assert index.calls[last_try] == [4]


async def test_events_without_a_session_wait_for_nobody() -> None:
    buffer, index = EventBuffer(), Index(bad=[0])
    for number in range(4):
        payload = event(number)
        buffer.add(type(payload)("shop", None, "", 0, 0.0, str(number)))
    done = job(buffer, index, max_attempts=3)
    assert (await done.run_once()).drained
    assert sorted(index.done) == [1, 2, 3]
    assert index.calls[-1] == [0], "the retries came last"


async def test_a_poison_event_among_ten_thousand_delays_nobody() -> None:
    index = Index(bad=[5000])
    attempts, pauses = 12, 0.3  # its own retries take some seconds; the others do not wait for them
    done = job(
        filled(range(10_000)),
        index,
        batch_size=500,
        max_attempts=attempts,
        retry_initial=pauses,
        retry_max=pauses,
        interval=3600,
    )
    async with done:
        with anyio.fail_after(PATIENCE):
            while len(index.done) < 9_999:
                await anyio.sleep(0.001)
        assert done.stats().dead_lettered == 0, "the others were done while the poison event waited to be tried again"
        with anyio.fail_after(PATIENCE):
            while not done.stats().dead_lettered:
                await anyio.sleep(0.01)
    assert sorted(index.done) == [number for number in range(10_000) if number != 5000]
    extra = len(index.calls) - 20
    assert extra <= 2 * math.ceil(math.log2(500)) + attempts


async def test_several_poison_events_side_by_side_do_not_hide_the_others() -> None:
    bad = {*range(30), 77, 99}
    buffer, index = filled(range(100)), Index(bad=bad)
    done = job(buffer, index, max_attempts=2, batch_size=50)
    for _ in range(100):
        if (await done.run_once()).drained:
            break
    assert sorted(index.done) == sorted(set(range(100)) - bad)
    assert sorted(number_of(letter.payload) for letter in buffer.dead_letters) == sorted(bad)


async def test_in_an_outage_nothing_is_given_up_and_few_calls_are_made() -> None:
    buffer, index = filled(range(1000)), Index()
    index.is_away = True
    done = job(buffer, index, max_attempts=3)
    for _ in range(5):
        report = await done.run_once()
        assert not report.drained
        assert report.left == 1000
    assert buffer.dead_letters.count() == 0
    stats = done.stats()
    assert stats.handler_outages == 15
    assert stats.suspects == 0
    assert stats.last_error == "ConnectionError: the index is away"
    # The first round searches; all the others ask with four single events.
    assert len(index.calls) <= 10 + 4 + 14 * 4
    assert all(len(call) == 1 for call in index.calls[20:])
    index.is_away = False
    assert (await done.run_once()).drained
    assert sorted(index.done) == list(range(1000))


async def test_an_outage_that_ends_during_a_run_is_survived_by_it() -> None:
    buffer, index = filled(range(100)), Index()
    index.is_away = True

    def back_soon(error: BaseException, events: list[Payload]) -> None:
        index.is_away = len(index.calls) < 20

    done = job(buffer, index, max_attempts=5, on_error=back_soon)
    assert (await done.run_once()).drained
    assert sorted(index.done) == list(range(100))
    assert buffer.dead_letters.count() == 0


async def test_an_index_that_goes_away_in_two_steps_makes_no_dead_letters() -> None:
    buffer, index = filled(range(40)), Index(bad=range(1, 40, 2))

    def gone_soon(error: BaseException, events: list[Payload]) -> None:
        index.is_away = len(index.done) >= 20

    done = job(buffer, index, max_attempts=5, on_error=gone_soon)
    for _ in range(3):
        report = await done.run_once()
        assert (report.drained, report.left) == (False, 20)
    assert done.stats().retries >= 20 * 4, "they had their attempts"
    assert buffer.dead_letters.count() == 0
    index.bad.clear()
    index.is_away = False
    with anyio.fail_after(PATIENCE):
        while not (await done.run_once()).drained:
            index.is_away = False
    assert sorted(index.done) == list(range(40))


@pytest.mark.parametrize("max_attempts", [2, None])
async def test_an_event_that_cannot_be_settled_ends_no_run(max_attempts: int | None) -> None:
    done: list[int] = []

    async def slow(payloads: list[Payload]) -> None:
        await anyio.sleep(0.005)
        if 3 in map(number_of, payloads):
            raise ValueError("poison")
        done.extend(map(number_of, payloads))

    def no_place(payload: Payload, evidence: Evidence) -> None:
        raise OSError("the place for dead letters is away")

    work = job(filled(range(500)), slow, batch_size=10, max_attempts=max_attempts, dead_letters=no_place)
    with anyio.fail_after(PATIENCE):
        report = await work.run_once()
    assert sorted(done) == [number for number in range(500) if number != 3]
    assert (report.drained, report.left) == (False, 1)
    assert work.stats().given_back >= 2, "it went back during the run, and came again"


async def test_an_event_that_is_alone_is_given_up_after_patience_only() -> None:
    buffer, index = filled([1]), Index(bad=[1])
    done = job(buffer, index, max_attempts=2, patience=3600.0)
    assert (await done.run_once()).left == 1
    assert (await done.run_once()).left == 1
    assert len(index.calls) == 3, "its attempts are remembered from run to run"
    buffer.add(event(2))
    assert (await done.run_once()).drained
    assert buffer.dead_letters.count() == 1, "now the handler is known to work"
    assert job(buffer, index, max_attempts=2, patience=0.0)
    impatient = job(buffer, index, max_attempts=2, patience=0.0)
    buffer.add(event(1))
    assert (await impatient.run_once()).drained
    assert buffer.dead_letters.count() == 2


async def test_retry_later_blames_nobody_and_splits_nothing() -> None:
    calls: list[int] = []

    async def handler(payloads: list[Payload]) -> None:
        calls.append(len(payloads))
        if len(calls) < 3:
            raise RetryLater(after=0.01)

    done = job(filled(range(100)), handler, batch_size=100)
    assert (await done.run_once()).drained
    assert done.stats().splits == 0
    assert calls[0] == 100
    assert sum(calls[2:]) == 100


async def test_dead_letters_of_ones_own() -> None:
    kept: list[tuple[int, Evidence]] = []

    class Place:
        async def add(self, payload: Payload, evidence: Evidence) -> None:
            if not kept:
                kept.append((-1, evidence))
                raise OSError("no place yet")
            kept.append((number_of(payload), evidence))

    buffer = filled(range(4))
    done = job(buffer, Index(bad=[1]), max_attempts=1, dead_letters=Place())
    assert (await done.run_once()).left == 1, "it comes again when it cannot be kept"
    assert done.stats().last_error == "OSError: no place yet"
    buffer.add(event(9))
    assert (await done.run_once()).drained
    assert [number for number, _ in kept] == [-1, 1]
    assert kept[1][1].attempts[-1].error_type == "ValueError"
    assert buffer.dead_letters.count() == 0


async def test_a_buffer_without_dead_letters_needs_a_place_for_them() -> None:
    class Plain:
        async def add(self, payload: Payload) -> None: ...
        async def drain(self) -> list[Payload]:
            return []

        async def size(self) -> int:
            return 0

    with pytest.raises(ConfigurationError, match=r"dead_letters=None .* Plain keeps none"):
        job(Plain(), Index())
    job(Plain(), Index(), max_attempts=None)
    kept: list[Payload] = []
    done = job(Plain(), Index(), dead_letters=lambda payload, evidence: kept.append(payload))
    assert (await done.run_once()).drained


async def test_a_cancellation_of_the_handlers_own_is_a_failure(anyio_backend: str) -> None:
    if anyio_backend == "trio":
        pytest.skip("only trio itself can make its Cancelled")

    async def handler(payloads: list[Payload]) -> None:
        if 1 in map(number_of, payloads):
            raise anyio.get_cancelled_exc_class()

    buffer = filled(range(3))
    assert (await job(buffer, handler, max_attempts=2).run_once()).drained
    assert buffer.dead_letters.count() == 1


async def test_hooks_that_raise_harm_nothing() -> None:
    def broken(error: BaseException, events: list[Payload]) -> None:
        raise RuntimeError("hook")

    buffer = filled(range(4))
    done = job(buffer, Index(bad=[1]), max_attempts=1, on_error=broken)
    assert (await done.run_once()).drained
    assert done.stats().hook_errors == done.stats().failed_calls == 3


async def test_what_comes_again_is_not_overtaken_by_later_batches_of_its_session() -> None:
    buffer, index = filled(range(20), lambda number: "s"), Index(bad=[0])
    done = job(buffer, index, max_attempts=2, batch_size=5)
    assert (await done.run_once()).left == 20, "nobody can say yet whether the handler works at all"
    assert index.done == []
    index.bad.clear()
    assert (await done.run_once()).drained
    assert index.done == list(range(20))


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_fails_all_are_done_or_dead_and_sessions_stay_in_order(seed: int) -> None:
    chance = random.Random(seed)
    bad = set(chance.sample(range(300), 20))
    buffer = filled(range(300), lambda number: f"s-{number % 17}")
    done: list[int] = []

    async def flaky(payloads: list[Payload]) -> None:
        await anyio.lowlevel.checkpoint()
        if chance.random() < 0.1:
            raise OSError("now and then")
        if bad & set(map(number_of, payloads)):
            raise ValueError("bad")
        done.extend(map(number_of, payloads))

    work = job(buffer, flaky, max_attempts=6, batch_size=40, patience=0.0)
    with anyio.fail_after(PATIENCE):
        while not (await work.run_once()).drained:
            pass
    dead = [number_of(letter.payload) for letter in buffer.dead_letters.list(300)]
    assert sorted(done + dead) == list(range(300))
    assert bad <= set(dead)
    for session in range(17):
        mine = [number for number in done if number % 17 == session]
        assert mine == sorted(mine)
    assert work.stats().balanced
    assert buffer.stats().ledger.balanced
