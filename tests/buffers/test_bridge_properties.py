"""Whatever happens to the two sides of an OutageBridge, and in whatever order: each event arrives once, and in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_sdk.buffers.bridge import OutageBridge
from connector_sdk.buffers.bridge_stats import BridgeState
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.payloads import SummaryPayload
from tests.buffers.memory_store import Fault, MemoryStore, full, refused, unanswered
from tests.buffers.samples import PATIENCE

FAULTS: dict[str, Callable[[], Fault]] = {
    "refused": refused,
    "full": full,
    "lost": lambda: unanswered(applied=False),
    "in doubt": lambda: unanswered(applied=True),
}
SESSIONS = 3

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6)),
        st.tuples(st.just("remote"), st.sampled_from([*FAULTS, "back"])),
        st.tuples(st.just("remote once"), st.sampled_from([*FAULTS])),
        st.tuples(st.just("local once"), st.sampled_from([*FAULTS])),
        st.tuples(st.just("acknowledge once"), st.sampled_from(["lost", "in doubt"])),
        st.tuples(st.just("wait"), st.integers(0, 3)),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("die"), st.none()),
    ),
    max_size=25,
)


class Run:
    """Processes that follow each other, each with a bridge over the same two storages."""

    def __init__(self) -> None:
        self.far = MemoryStore(2)
        self.near = MemoryStore()
        self.added = [0] * SESSIONS
        self.expected: list[str] = []
        self.open()

    def open(self) -> None:
        far, near = self.far.another_process(), self.near.another_process()
        far.choose = lambda operation, shard: self.far.choose(operation, shard)
        near.choose = lambda operation, shard: self.near.choose(operation, shard)
        self.bridge = OutageBridge(DurableBuffer(far), DurableBuffer(near), overflow="block")

    async def add(self, count: int) -> None:
        """Each session adds one event after the other; the sessions do it at the same time."""

        async def produce(session: int) -> None:
            for _ in range(count):
                event_id = f"{session} {self.added[session]}"
                self.added[session] += 1
                await self.bridge.add(SummaryPayload("shop", f"session-{session}", "", 0, 0.0, event_id))
                self.expected.append(event_id)

        async with anyio.create_task_group() as tasks:
            for session in range(SESSIONS):
                tasks.start_soon(produce, session)

    async def step(self, what: str, how: object) -> None:
        if what == "add":
            assert isinstance(how, int)
            await self.add(how)
        elif what == "remote":
            self.far.recover()
            if how != "back":
                self.far.break_down(FAULTS[str(how)], "append", "census")
        elif what == "remote once":
            self.far.break_next(FAULTS[str(how)](), "append")
        elif what == "local once":
            # The local side, too, may fail for once; the bridge tries again, for it blocks.
            self.near.break_next(FAULTS[str(how)](), "append")
        elif what == "acknowledge once":
            self.near.break_next(FAULTS[str(how)](), "acknowledge")
        elif what == "wait":
            assert isinstance(how, int)
            await anyio.sleep(how * 0.03)
        elif what == "restart":
            await self.bridge.aclose()
            self.open()
        else:
            await self.die()
            self.open()

    async def die(self) -> None:
        """End as a killed process does: nothing is given back, nothing is sent."""
        choose = self.near.choose, self.far.choose
        self.near.break_down(lambda: Fault(refused().error, applied=False))
        self.far.break_down(lambda: Fault(refused().error, applied=False))
        with anyio.CancelScope() as scope:
            scope.cancel()
            with contextlib.suppress(Exception):
                await self.bridge.aclose(0.0)
        self.near.run_out()
        self.near.choose, self.far.choose = choose

    async def end(self) -> None:
        self.far.recover()
        self.near.recover()
        with anyio.fail_after(PATIENCE):
            while self.bridge.state is not BridgeState.REMOTE:
                await self.bridge.size()  # whatever is asked first starts it
                self.near.run_out()
                await anyio.sleep(0.01)
        stats = await self.bridge.stats()
        await self.bridge.aclose()
        assert stats.ledger.balanced
        assert stats.local_size == stats.ledger.buffered == 0
        assert stats.ledger.in_flight == 0
        kept = [
            kept.event
            for shard in self.far.shard_list
            for kept in sorted(shard.waiting, key=lambda kept: kept.event.arrival)
        ]
        found = [event.event_id or "" for event in kept]
        assert sorted(found) == sorted(self.expected)
        for session in range(SESSIONS):
            ours = [int(event_id.split()[1]) for event_id in found if event_id.startswith(f"{session} ")]
            assert ours == sorted(ours)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(plan=steps)
@settings(max_examples=25, deadline=None)
def test_each_event_arrives_once_and_in_order(backend: str, plan: list[tuple[str, object]]) -> None:
    async def main() -> None:
        run = Run()
        with anyio.fail_after(PATIENCE):
            for what, how in plan:
                await run.step(what, how)
        await run.end()

    anyio.run(main, backend=backend)
