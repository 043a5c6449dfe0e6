"""Lanes: whatever happens in whatever order, the account balances, sessions keep their order, ids never overtake."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_sdk.client.delivery import Delivery, Lane, Outcome
from connector_sdk.client.handlers import Handler, Plan
from connector_sdk.client.lanes import Lanes
from connector_sdk.client.options import OverflowPolicy
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import SummaryPayload


async def _async_handler(payload: object) -> None: ...


ASYNC = Plan((Handler(_async_handler, "log"),))
THREADED = Plan((Handler(lambda payload: None, "log"),))


def lanes(max_size: int = 5, policy: OverflowPolicy = "drop_newest", concurrency: int = 1) -> Lanes:
    return Lanes(max_size=max_size, policy=policy, concurrency=concurrency)


def delivery(number: int, session: str = "a", plan: Plan = ASYNC) -> Delivery:
    return Delivery(SummaryPayload("p", session, str(number), event_id=str(number)), plan, 0.0)


def numbers(deliveries: list[Delivery] | None) -> list[str]:
    return [one.payload.event_id or "" for one in deliveries or []]


def test_drop_newest_keeps_what_waits() -> None:
    queue = lanes(3)
    assert [numbers(queue.offer(delivery(n))) for n in range(5)] == [[], [], [], ["3"], ["4"]]
    assert queue.ledger().dropped == {DropReason.OVERFLOW: 2}
    assert queue.ledger().balanced


def test_drop_oldest_drops_the_oldest_of_all_sessions_that_has_not_begun() -> None:
    queue = lanes(3, "drop_oldest")
    for n, session in enumerate("abab"):
        queue.offer(delivery(n, session))
    taken = queue.take()
    assert taken is not None
    assert (queue.queued, queue.ledger().in_flight) == (2, 1)
    assert taken[1].payload.event_id in ("1", "2")
    queue.offer(delivery(4, "a"))
    assert numbers(queue.offer(delivery(5, "b"))) == ["2" if taken[1].payload.event_id == "1" else "1"]
    assert queue.ledger().balanced


def test_block_refuses_without_counting() -> None:
    queue = lanes(1, "block")
    assert queue.offer(delivery(1)) == []
    assert queue.offer(delivery(2)) is None
    assert queue.ledger().received == 1
    calls: list[int] = []
    assert queue.when_space(lambda: calls.append(1))
    taken = queue.take()
    assert taken is not None
    queue.finish(*taken, Outcome.DELIVERED)
    assert calls == [1]
    assert not queue.when_space(lambda: calls.append(2)), "there is space now"


def test_one_lane_has_as_many_runners_as_allowed() -> None:
    for concurrency in (1, 3):
        queue = lanes(10, concurrency=concurrency)
        for n in range(5):
            queue.offer(delivery(n))
        held = []
        while (taken := queue.take()) is not None:
            held.append(taken)
        assert len(held) == concurrency


def test_an_id_is_finished_when_all_before_it_are() -> None:
    queue = lanes(10)
    for n, session in enumerate("abc"):
        queue.offer(delivery(n, session))
    held = [queue.take() for _ in range(3)]
    for index, expected in ((2, None), (0, "0"), (1, "2")):
        taken = held[index]
        assert taken is not None
        queue.finish(*taken, Outcome.FAILED if index == 0 else Outcome.DELIVERED)
        assert queue.finished_id == expected


def test_an_unfinished_event_is_never_passed() -> None:
    queue = lanes(10)
    queue.offer(delivery(0, "a"))
    queue.offer(delivery(1, "b"))
    queue.pass_id("2")
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    queue.finish(*second, Outcome.DELIVERED)
    queue.finish(*first, Outcome.UNFINISHED)
    assert queue.finished_id is None
    assert queue.ledger().dropped == {DropReason.ABANDONED: 1}


def test_parked_events_wait_until_taken_and_are_bounded() -> None:
    queue = lanes(2)
    for n in range(3):
        queue.offer(delivery(n))
        taken = queue.take()
        assert taken is not None
        queue.finish(*taken, Outcome.PARKED)
    assert (queue.ledger().buffered, queue.parked) == (2, 2)
    assert [payload.event_id for payload in queue.take_parked()] == ["1", "2"]
    ledger = queue.ledger()
    assert (ledger.delivered, ledger.dropped, ledger.balanced) == (2, {DropReason.HANDLER_FAILED: 1}, True)


def test_a_lane_moves_between_kinds_of_runner_and_keeps_its_order() -> None:
    queue = lanes(10)
    for n, plan in enumerate([ASYNC, THREADED, THREADED, ASYNC]):
        queue.offer(delivery(n, plan=plan))
    order = []
    for take in (queue.take, queue.take_threaded, queue.take):
        taken = take()
        assert taken is not None
        while taken is not None:
            order.append(taken[1].payload.event_id)
            taken = queue.finish(*taken, Outcome.DELIVERED)
    assert order == ["0", "1", "2", "3"]
    assert not queue.is_busy("a")


KINDS = [
    "offer",
    "offer",
    "offer",
    "take",
    "take",
    "take_threaded",
    "finish",
    "finish",
    "pass",
    "refuse",
    "inline",
    "parked",
]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.sampled_from(list(Outcome))), max_size=80)


@settings(max_examples=400, deadline=None)
@given(
    steps=STEPS,
    policy=st.sampled_from(["drop_newest", "drop_oldest", "block"]),
    max_size=st.integers(1, 6),
)
def test_any_history_balances_and_keeps_order(
    steps: list[tuple[str, int, Outcome]], policy: OverflowPolicy, max_size: int
) -> None:
    queue = lanes(max_size, policy)
    number = 0
    held: list[tuple[Lane, Delivery]] = []
    done: dict[str, list[int]] = defaultdict(list)
    unfinished: set[int] = set()
    for step, which, outcome in steps:
        session = f"s{which}"
        if step == "offer":
            number += 1
            unfinished.add(number)
            dropped = queue.offer(delivery(number, session, THREADED if which == 3 else ASYNC))
            unfinished -= {int(n) for n in numbers(dropped)}
            if dropped is None:
                unfinished.discard(number)
        elif step in ("take", "take_threaded"):
            taken = queue.take() if step == "take" else queue.take_threaded()
            held += [taken] if taken else []
        elif step == "finish" and held:
            lane, current = held.pop(which % len(held))
            done[lane.key].append(int(current.payload.event_id or 0))
            if outcome is not Outcome.UNFINISHED:
                unfinished.discard(int(current.payload.event_id or 0))
            following = queue.finish(lane, current, outcome)
            held += [following] if following else []
        elif step == "pass":
            number += 1
            queue.pass_id(str(number))
        elif step == "refuse":
            number += 1
            queue.refused(DropReason.UNHANDLED, str(number))
        elif step == "inline" and not queue.is_busy(session):
            number += 1
            if outcome is Outcome.UNFINISHED:
                unfinished.add(number)
            queue.ran_inline(delivery(number, session), outcome)
        elif step == "parked":
            queue.take_parked()
        ledger = queue.ledger()
        assert ledger.balanced, ledger
        assert ledger.in_flight == len(held)
        assert queue.queued <= max_size
        if queue.finished_id is not None:
            assert not [n for n in unfinished if n <= int(queue.finished_id)], "an id was passed by"
    assert all(order == sorted(order) for order in done.values())


def test_threads_share_the_lanes_without_loss() -> None:
    queue = lanes(50, "block", concurrency=1)
    total, sessions = 6000, 7
    seen: dict[str, list[int]] = defaultdict(list)
    offered = threading.Event()

    def run() -> None:
        while not (offered.is_set() and not queue.queued):
            taken = queue.take()
            while taken is not None:
                seen[taken[0].key].append(int(taken[1].payload.event_id or 0))
                assert queue.ledger().balanced
                taken = queue.finish(*taken, Outcome.DELIVERED)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(total):
        while queue.offer(delivery(n, f"s{n % sessions}")) is None:
            space = threading.Event()
            if queue.when_space(space.set):
                assert space.wait(20)
    offered.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sum(map(len, seen.values())) == total
    assert all(order == sorted(order) for order in seen.values())
    assert queue.finished_id == str(total - 1)


def test_behind_an_event_that_never_ends_nothing_piles_up() -> None:
    queue = lanes(10)
    queue.offer(delivery(0, "stuck"))
    stuck = queue.take()
    assert stuck is not None
    for n in range(1, 20_000):
        queue.offer(delivery(n, "a"))
        taken = queue.take()
        assert taken is not None
        queue.finish(*taken, Outcome.DELIVERED)
    assert len(queue._in_order) < 5000
    assert queue.finished_id is None
    queue.finish(*stuck, Outcome.DELIVERED)
    assert queue.finished_id == "19999"


@pytest.mark.parametrize("number", [1, 2])
def test_abandoned_lanes_start_clean(number: int) -> None:
    queue = lanes(10)
    for n in range(number):
        queue.offer(delivery(n))
    taken = queue.take()
    assert taken is not None
    queue.abandon()
    queue.offer(delivery(7))
    assert queue.finish(*taken, Outcome.DELIVERED) is None, (
        "whoever is left of the old run takes nothing of the new one"
    )
    assert queue.is_busy("a"), "the new lane of the same session is another one"
    again = queue.take()
    assert again is not None
    queue.finish(*again, Outcome.DELIVERED)
    assert queue.ledger().balanced
