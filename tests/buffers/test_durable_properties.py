"""Whatever is added, cancelled, taken and broken: the accounts balance at each step, and no event is lost or doubled."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.buffers.durable_lease import DurableLease
from connector_sdk.errors import BufferUnavailableError, LeaseError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload, SummaryPayload
from tests.buffers.memory_store import Fault, MemoryStore, bug, full, refused, unanswered
from tests.buffers.samples import PATIENCE, numbers

_FAULTS = [refused, lambda: unanswered(applied=True), lambda: unanswered(applied=False), full, bug]
_ACTIONS = [
    "add",
    "add",
    "add",
    "cancelled add",
    "drain",
    "page",
    "types",
    "lease",
    "cancelled drain",
    "step",
    "recover",
]


class Run:
    """One run over a store whose calls fail by chance, and what became of each event."""

    def __init__(self, chance: random.Random, shards: int, overflow: DurableOverflow) -> None:
        self.chance = chance
        self.store = MemoryStore(shards)
        self.buffer = DurableBuffer(
            self.store,
            on_drop=lambda payload: self.told.append(payload),
            overflow=overflow,
            max_batch=3,
            max_concurrent=2,
            page_size=2,
            acquire_timeout=PATIENCE if overflow == "block" else chance.choice([0.005, PATIENCE]),
            response_timeout=0.05,
        )
        self.told: list[Payload] = []
        self.out: list[Payload] = []
        self.added = 0
        self.returned: set[int] = set()
        self.seen: set[int] = set()  # on a lease, and acknowledged without an answer, perhaps

    def fault(self, operation: str, shard: int) -> Fault | None:
        return self.chance.choice(_FAULTS)() if self.chance.random() < self.trouble else None

    trouble = 0.0

    async def add(self, number: int) -> None:
        with contextlib.suppress(BufferUnavailableError):
            await self.buffer.add(SummaryPayload("shop", f"s-{number % 3}", "", 0, float(number % 7), str(number)))
        self.returned.add(number)

    async def drain(self, action: str) -> None:
        if action == "page":
            self.out += await self.buffer.drain_page(2)
        elif action == "types":
            self.out += await self.buffer.drain_types({"summary"}, 2)
        else:
            self.out += await self.buffer.drain()

    async def lease(self) -> None:
        with contextlib.suppress(BufferUnavailableError, LeaseError):
            async with self.buffer.lease(3, types=self.chance.choice([None, {"summary", "survey"}])) as lease:
                done, rest = lease.events[:2], lease.events[2:]
                await self.acknowledge(lease, done)
                if self.chance.random() < 0.5:
                    await lease.give_back()
                else:
                    await self.acknowledge(lease, rest)

    async def acknowledge(self, lease: DurableLease, events: list[Payload]) -> None:
        self.seen |= set(numbers(events))
        await lease.ack(events)
        self.out += events

    async def act(self, action: str, tasks: anyio.abc.TaskGroup) -> None:
        if "add" in action:
            scope = anyio.CancelScope()
            self.added += 1
            tasks.start_soon(self._within, scope, self.add, self.added)
            if action == "cancelled add":
                for _ in range(self.chance.randrange(4)):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        elif action == "lease":
            tasks.start_soon(self.lease)
        elif action == "recover":
            self.store.run_out()
        elif action == "cancelled drain":
            scope = anyio.CancelScope()
            tasks.start_soon(self._within, scope, self.drain, "all")
            for _ in range(self.chance.randrange(4)):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        elif action != "step":
            tasks.start_soon(self.drain, action)
        await anyio.lowlevel.checkpoint()
        assert self.buffer._account.ledger().balanced

    async def _within(self, scope: anyio.CancelScope, call: object, argument: object) -> None:
        assert callable(call)
        with scope:
            await call(argument)

    async def play(self, actions: list[str], trouble: float) -> None:
        self.store.choose = self.fault
        self.trouble = trouble
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for action in actions:
                    await self.act(action, tasks)
                self.trouble = 0.0
        self.store.recover()
        await self.settle()
        await self.judge()

    async def settle(self) -> None:
        account = self.buffer._account
        with anyio.fail_after(PATIENCE):
            while account.buffered + account.in_flight or (await self.buffer.stats()).shared is None:
                await anyio.sleep(0.002)
            self.store.run_out()
            while page := await self.buffer.drain():
                self.out += page

    async def judge(self) -> None:
        stats = await self.buffer.stats()
        assert stats.ledger.balanced
        assert stats.shared is not None
        assert stats.shared.balanced
        assert (stats.shared.buffered, stats.shared.in_flight) == (0, 0)
        out, told = Counter(numbers(self.out)), Counter(numbers(self.told))
        assert all(count == 1 for count in told.values()), "an event was told twice"
        doubled = sum(out.values()) - len(out)
        assert doubled <= stats.in_doubt, "an event came out twice"
        assert len(set(out) & set(told)) <= stats.in_doubt, "an event was dropped and came out"
        dropped = stats.ledger.dropped_total - stats.ledger.dropped.get(DropReason.DUPLICATE, 0)
        assert dropped == len(self.told)
        lost = self.returned - set(out) - set(told) - self.seen
        assert not lost, f"{lost} were added and are nowhere"
        await self.buffer.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=120, deadline=None)
@given(
    actions=st.lists(st.sampled_from(_ACTIONS), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    trouble=st.sampled_from([0.0, 0.1, 0.4]),
    shards=st.sampled_from([1, 2]),
    overflow=st.sampled_from(["drop_newest", "block"]),
)
def test_nothing_is_lost_nor_doubled(  # noqa: PLR0917 - hypothesis passes them by name
    backend: str, actions: list[str], seed: int, trouble: float, shards: int, overflow: DurableOverflow
) -> None:
    run = Run(random.Random(seed), shards, overflow)
    anyio.run(run.play, actions, trouble, backend=backend)
