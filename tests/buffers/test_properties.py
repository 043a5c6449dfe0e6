"""Any history keeps the account: one thread against a model that is plainly right, and many threads against the sums."""

from __future__ import annotations

import math
import random
import sys
import threading
from dataclasses import dataclass
from typing import get_args

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from connector_sdk.buffers.dead_letters import Replayed
from connector_sdk.buffers.leases import Lease, LeaseState
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.state import Overflow
from connector_sdk.buffers.window import Window
from connector_sdk.errors import BufferFullError, LeaseError, LeaseExpiredError
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, encode_payload
from tests.buffers.samples import Clock, Crew, number_of, numbers

KINDS: dict[str, type[ActionsPayload | SummaryPayload]] = {"actions": ActionsPayload, "summary": SummaryPayload}


def payload_of(number: int, kind: str, extra: int) -> Payload:
    return KINDS[kind](product_id="x" * extra, event_id=str(number))


@dataclass
class Loan:
    lease: Lease
    numbers: list[int]
    deadline: float
    state: LeaseState = LeaseState.OPEN


class BufferMachine(RuleBasedStateMachine):
    """The buffer against a model: a list of numbers in order, with what is known of each event looked up by its number."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.sizes: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.arrived: dict[int, float] = {}
        self.place: dict[int, int] = {}  # in the order of arrival; the last when it was replayed
        self.dead: list[int] = []
        self.waiting: list[int] = []
        self.loans: list[Loan] = []
        self.drops: list[int] = []  # in order, as the hook must be told
        self.told: list[Payload] = []
        self.counts = dict.fromkeys(DropReason, 0)
        self.received = self.delivered = 0

    @initialize(
        max_size=st.integers(0, 6),
        overflow=st.sampled_from(["drop_oldest", "drop_oldest", "drop_newest", "raise", "block"]),
        max_bytes=st.sampled_from([None, None, 200, 10_000]),
        max_age=st.sampled_from([None, None, 5.0]),
    )
    def make(self, max_size: int, overflow: Overflow, max_bytes: int | None, max_age: float | None) -> None:
        self.max_size, self.overflow, self.max_bytes, self.max_age = max_size, overflow, max_bytes, max_age
        self.buffer = EventBuffer(
            max_size,
            self.told.append,
            overflow=overflow,
            block_timeout=0.0 if overflow == "block" else None,
            max_bytes=max_bytes,
            max_age=max_age,
            _clock=self.clock,
        )

    # -- the model

    def bytes_waiting(self) -> int:
        return sum(self.sizes[number] for number in self.waiting)

    def has_room(self, size: int) -> bool:
        if not self.waiting:
            return True
        if self.max_size and len(self.waiting) >= self.max_size:
            return False
        return self.max_bytes is None or self.bytes_waiting() + size <= self.max_bytes

    def drop_oldest(self, reason: DropReason) -> None:
        self.drops.append(self.waiting.pop(0))
        self.counts[reason] += 1

    def put_back(self, loans: list[Loan], state: LeaseState) -> None:
        for loan in loans:
            self.waiting = sorted(self.waiting + loan.numbers, key=self.place.__getitem__)
            loan.numbers, loan.state = [], state
        while (
            self.overflow == "drop_oldest"
            and len(self.waiting) > 1
            and (
                (self.max_size and len(self.waiting) > self.max_size)
                or (self.max_bytes is not None and self.bytes_waiting() > self.max_bytes)
            )
        ):
            self.drop_oldest(DropReason.OVERFLOW)

    def tidy(self) -> None:
        """What every operation but a roomy add on an untimed buffer finds done."""
        expired = [loan for loan in self.loans if loan.numbers and loan.deadline <= self.clock.now]
        self.put_back([loan for loan in expired if loan.state is LeaseState.OPEN], LeaseState.EXPIRED)
        while (
            self.max_age is not None and self.waiting and self.arrived[self.waiting[0]] <= self.clock.now - self.max_age
        ):
            self.drop_oldest(DropReason.EXPIRED)

    # -- operations

    @rule(kind=st.sampled_from(sorted(KINDS)), extra=st.sampled_from([0, 0, 30, 300]))
    def add(self, kind: str, extra: int) -> None:
        self.buffer.size  # noqa: B018 - a fast add need not notice that a lease ran out; a look makes both sides agree
        self.tidy()
        number = self.received
        payload = payload_of(number, kind, extra)
        self.sizes[number], self.kinds[number] = len(encode_payload(payload)), kind
        self.arrived[number] = self.clock.now
        self.place[number] = self.received
        self.received += 1
        if not self.has_room(self.sizes[number]):
            if self.overflow in ("raise", "block"):
                with pytest.raises(BufferFullError):
                    self.buffer.add(payload)
                self.counts[DropReason.REJECTED] += 1
                return
            if self.overflow == "drop_newest":
                self.buffer.add(payload)
                self.drops.append(number)
                self.counts[DropReason.OVERFLOW] += 1
                return
        while not self.has_room(self.sizes[number]):
            self.drop_oldest(DropReason.OVERFLOW)
        self.waiting.append(number)
        self.buffer.add(payload)

    @rule(limit=st.none() | st.integers(0, 4), types=st.none() | st.sets(st.sampled_from([*sorted(KINDS), "survey"])))
    def drain(self, limit: int | None, types: set[str] | None) -> None:
        self.tidy()
        chosen = [number for number in self.waiting if types is None or self.kinds[number] in types][:limit]
        self.waiting = [number for number in self.waiting if number not in chosen]
        self.delivered += len(chosen)
        assert numbers(self.buffer.drain(limit, types=types)) == chosen

    @rule()
    def clear(self) -> None:
        self.tidy()
        self.counts[DropReason.CLEARED] += len(self.waiting)
        self.waiting.clear()
        self.buffer.clear()

    @rule(n=st.none() | st.integers(0, 8))
    def peek(self, n: int | None) -> None:
        self.tidy()
        expected = self.waiting if n is None else self.waiting[max(0, len(self.waiting) - n) :]
        assert numbers(self.buffer.peek(n)) == expected

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_by(seconds)

    @rule(
        target=leases,
        limit=st.integers(1, 4),
        timeout=st.sampled_from([0.5, 2.0, 60.0]),
        renew=st.booleans(),
        types=st.none() | st.sets(st.sampled_from([*sorted(KINDS), "survey"]), min_size=1),
    )
    def open_lease(self, limit: int, timeout: float, renew: bool, types: set[str] | None) -> Loan:
        self.tidy()
        taken = [number for number in self.waiting if types is None or self.kinds[number] in types][:limit]
        self.waiting = [number for number in self.waiting if number not in taken]
        lease = self.buffer.lease(limit, timeout, renew=renew, types=types).__enter__()
        assert numbers(lease) == taken
        loan = Loan(lease, list(taken), math.inf if renew else self.clock.now + timeout)
        self.loans.append(loan)
        return loan

    def expected_error(self, loan: Loan) -> type[Exception] | None:
        if loan.state is LeaseState.OPEN:
            return None
        return LeaseExpiredError if loan.state is LeaseState.EXPIRED else LeaseError

    @rule(loan=leases, which=st.none() | st.sets(st.integers(0, 3)))
    def acknowledge(self, loan: Loan, which: set[int] | None) -> None:
        self.tidy()
        events = None if which is None else [event for i, event in enumerate(loan.lease.events) if i in which]
        if (error := self.expected_error(loan)) is not None:
            with pytest.raises(error):
                loan.lease.ack(events)
            return
        loan.lease.ack(events)
        done = loan.numbers if events is None else [n for n in numbers(events) if n in loan.numbers]
        self.delivered += len(done)
        loan.numbers = [number for number in loan.numbers if number not in done]
        if events is None:
            loan.state = LeaseState.ACKNOWLEDGED

    @rule(loan=leases)
    def give_back(self, loan: Loan) -> None:
        self.tidy()
        if loan.state in (LeaseState.ACKNOWLEDGED, LeaseState.RETURNED):
            with pytest.raises(LeaseError):
                loan.lease.give_back()
            return
        loan.lease.give_back()
        if loan.state is LeaseState.OPEN:
            self.put_back([loan], LeaseState.RETURNED)

    @rule(loan=leases, timeout=st.sampled_from([0.5, 5.0]))
    def extend(self, loan: Loan, timeout: float) -> None:
        self.tidy()
        if (error := self.expected_error(loan)) is not None:
            with pytest.raises(error):
                loan.lease.extend(timeout)
            return
        loan.lease.extend(timeout)
        if loan.deadline != math.inf:
            loan.deadline = self.clock.now + timeout

    # -- dead letters

    @rule(loan=leases, which=st.integers(0, 3))
    def fail(self, loan: Loan, which: int) -> None:
        self.tidy()
        if not (events := loan.lease.events[which : which + 1]):
            return
        if (error := self.expected_error(loan)) is not None:
            with pytest.raises(error):
                loan.lease.fail(events[0], ValueError())
            return
        loan.lease.fail(events[0], ValueError())
        (number,) = numbers(events)
        if number in loan.numbers:
            loan.numbers.remove(number)
            self.counts[DropReason.DEAD_LETTER] += 1
            self.dead.append(number)

    @rule(limit=st.none() | st.integers(1, 3))
    def replay(self, limit: int | None) -> None:
        self.tidy()
        matched = len(self.dead[:limit])
        replayed = 0
        while replayed < matched and self.has_room(self.sizes[self.dead[0]]):
            number = self.dead.pop(0)
            self.waiting.append(number)
            self.place[number] = self.received
            self.received += 1
            self.arrived[number] = self.clock.now
            replayed += 1
        assert self.buffer.dead_letters.replay(limit=limit) == Replayed(matched=matched, replayed=replayed)

    # -- what must hold

    @precondition(lambda self: hasattr(self, "buffer"))
    @invariant()
    def the_account_is_the_model(self) -> None:
        self.tidy()
        stats = self.buffer.stats()
        assert stats.ledger == Ledger(
            received=self.received,
            delivered=self.delivered,
            buffered=len(self.waiting),
            in_flight=sum(len(loan.numbers) for loan in self.loans),
            dropped={reason: count for reason, count in self.counts.items() if count},
        )
        assert stats.ledger.balanced
        assert stats.dead_letters == len(self.dead)
        assert numbers(letter.payload for letter in self.buffer.dead_letters) == self.dead
        assert numbers(self.told) == self.drops
        assert stats.bytes == (None if self.max_bytes is None else self.bytes_waiting())
        if self.waiting:
            true = self.clock.now - self.arrived[self.waiting[0]]
            assert stats.oldest_age is not None
            assert stats.oldest_age >= true - 1e-9
            assert self.max_age is None or stats.oldest_age == pytest.approx(true)
        else:
            assert stats.oldest_age is None


TestBufferMachine = pytest.mark.timeout(120)(BufferMachine.TestCase)
BufferMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(
    kinds=st.lists(st.sampled_from("abc"), max_size=60),
    marks=st.lists(st.integers(0, 60), max_size=6),
    takes=st.lists(st.sets(st.sampled_from("abc"), max_size=2), max_size=4),
)
def test_marks_stay_in_front_of_the_events_they_speak_of(
    kinds: list[str], marks: list[int], takes: list[set[str]]
) -> None:
    """Taking events out of the middle moves the marks along: no event may come to look younger than it is."""
    window = Window(0, None, keep_times=False)
    for number, kind in enumerate(kinds):
        if window.mark_due(number) or number in marks:
            window.mark(number, float(number))
        window.push(SummaryPayload(product_id=kind, event_id=str(number)), 0, float(number))
    for take in takes:
        selected = [payload.product_id in take for payload in window.items]
        window._take_selected(selected, len(kinds))
    while window.items:
        oldest = window.oldest_time(len(kinds))
        assert oldest is not None
        assert oldest <= number_of(window.items[0])
        window.take(1)


@pytest.mark.parametrize("overflow", get_args(Overflow))
@pytest.mark.parametrize("seed", range(3))
def test_any_history_of_many_threads_keeps_the_account_and_the_order(overflow: Overflow, seed: int) -> None:
    """Producers, consumers, leases of every end and auditors at once; afterwards each event has exactly one fate."""
    told: list[Payload] = []
    buffer = EventBuffer(50, told.append, overflow=overflow, block_timeout=30.0 if overflow == "block" else None)
    per_producer, producers = 1500, 3
    rejected: list[list[int]] = [[] for _ in range(producers)]
    delivered: list[list[int]] = [[], [], []]
    done = threading.Event()

    def produce(producer: int) -> None:
        for number in range(producer * per_producer, (producer + 1) * per_producer):
            try:
                buffer.add(payload_of(number, "actions" if number % 3 else "summary", 0))
            except BufferFullError:
                rejected[producer].append(number)

    def drain() -> None:
        dice = random.Random(seed)
        while not done.is_set():
            types = dice.choice([None, None, {"summary"}])
            delivered[0].extend(numbers(buffer.drain(dice.choice([None, 1, 5]), types=types)))
            buffer.wait(timeout=0.001)

    def lease(into: list[int], seed: int) -> None:
        dice = random.Random(seed)
        while not done.is_set():
            buffer.wait(timeout=0.001)
            part = 0
            loan = buffer.lease(dice.randint(1, 20), timeout=dice.choice([60.0, 60.0, 0.0001]), renew=False)
            try:
                with loan:
                    part = dice.randint(0, len(loan))
                    loan.ack(loan.events[:part])
                    into.extend(numbers(loan.events[:part]))
                    if dice.random() < 0.5:
                        loan.give_back()
                    elif dice.random() < 0.2:
                        raise ZeroDivisionError
            except (LeaseExpiredError, ZeroDivisionError):
                continue
            if loan.state is LeaseState.ACKNOWLEDGED:
                into.extend(numbers(loan.events[part:]))

    def audit() -> None:
        while not done.is_set():
            account = buffer.stats().ledger
            assert account.balanced, account
            order = numbers(buffer.peek())
            for producer in range(producers):
                mine = [number for number in order if number // per_producer == producer]
                assert mine == sorted(mine)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with Crew() as crew:
            crew.start(drain)
            crew.start(lease, delivered[1], seed)
            crew.start(lease, delivered[2], seed + 100)
            crew.start(audit)
            try:
                with Crew() as line:
                    for producer in range(producers):
                        line.start(produce, producer)
            finally:
                done.set()
    finally:
        sys.setswitchinterval(switch)
    left = numbers(buffer.drain())
    account = buffer.stats().ledger
    assert account.balanced
    assert (account.received, account.in_flight, account.buffered) == (producers * per_producer, 0, 0)
    fates = [*left, *numbers(told), *(n for part in [*delivered, *rejected] for n in part)]
    assert sorted(fates) == list(range(producers * per_producer))
    assert account.dropped.get(DropReason.OVERFLOW, 0) == len(told)
    assert account.dropped.get(DropReason.REJECTED, 0) == sum(map(len, rejected))
    for producer in range(producers):
        mine = [number for number in left if number // per_producer == producer]
        assert mine == sorted(mine)
