"""What every `EventLog` must do for keys of work that is to be done once."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import time

import anyio
import pytest

from connector_sdk.bus.log import EventLog
from connector_sdk.testing.log_case import FOREVER, LogCase

__all__ = ["ReservingContract"]


class ReservingContract(LogCase):
    """One holder at a time, by the storage's clock; what is done stays done for its time."""

    @pytest.mark.anyio
    async def test_of_many_holders_one_gets_a_key_and_the_next_when_it_is_free(self) -> None:
        answers: dict[str, str] = {}

        async def reserve(log: EventLog, holder: str) -> None:
            answers[holder] = await log.reserve("key", holder, FOREVER)

        async with self.opened_twice() as logs:
            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(reserve, logs[number % 2], f"holder {number}")
            assert sorted(answers.values()) == ["taken"] * 9 + ["yours"]
            (winner,) = [holder for holder, answer in answers.items() if answer == "yours"]
            one, other = logs
            assert await other.reserve("another key", "somebody", FOREVER) == "yours"
            await other.free("key", "somebody")  # not its own: changes nothing
            assert await one.reserve("key", "somebody", FOREVER) == "taken"
            await one.free("key", winner)
            await one.free("key", winner)
            assert await other.reserve("key", "somebody", FOREVER) == "yours"

    @pytest.mark.anyio
    async def test_what_is_done_is_done_for_everyone_and_for_its_time(self) -> None:
        async with self.opened_twice() as (one, other):
            assert await one.reserve("key", "worker", FOREVER) == "yours"
            assert not await other.keep("key", "somebody", FOREVER)
            marked = time.monotonic()
            for _ in range(2):
                assert await one.keep("key", "worker", FOREVER)
            await one.free("key", "worker")  # it is too late for that
            assert not await other.keep("key", "somebody", 0.01)
            assert {await one.reserve("key", holder, FOREVER) for holder in ("worker", "somebody")} == {"done"}
            assert await one.keep("key", "worker", self.hold)
            await self._until_had(other, "key", "somebody")
            assert time.monotonic() - marked >= self.hold - 0.05

    @pytest.mark.anyio
    async def test_a_holder_that_lost_its_hold_may_neither_mark_nor_free(self) -> None:
        async with self.opened_twice() as (one, other):
            began = time.monotonic()
            assert await one.reserve("key", "late", self.hold) == "yours"
            await self._until_had(other, "key", "next")
            assert time.monotonic() - began >= self.hold - 0.05
            assert not await one.keep("key", "late", FOREVER)
            await one.free("key", "late")
            assert await one.reserve("key", "late", FOREVER) == "taken"
            assert await other.keep("key", "next", FOREVER)

    @pytest.mark.anyio
    async def test_a_late_holder_may_mark_what_nobody_took(self) -> None:
        """Its work is done, and to say so is better than to have it done again."""
        async with self.opened_twice() as (one, other):
            assert await one.reserve("key", "late", 0.01) == "yours"
            await anyio.sleep(0.1)
            assert await one.keep("key", "late", FOREVER)
            assert await other.reserve("key", "somebody", FOREVER) == "done"

    @pytest.mark.anyio
    async def test_who_renews_a_hold_has_it_for_longer(self) -> None:
        async with self.opened_twice() as (one, other):
            for hold in (self.hold, FOREVER):
                assert await one.reserve("key", "worker", hold) == "yours"
            await anyio.sleep(1.5 * self.hold)
            assert await other.reserve("key", "somebody", FOREVER) == "taken"

    @pytest.mark.anyio
    async def test_any_text_is_a_key(self) -> None:
        keys = [
            "a",
            "A",
            "a ",
            "a:b",
            "{a}",
            "a\0b",
            "\ud800",
            "%s",
            "'",
            "ü" * 512,
            "\U0001f600" * 512,
            "x" * 511,
            "x" * 512,
        ]
        async with self.opened() as log:
            for turn, key in enumerate(keys):
                assert await log.reserve(key, str(turn), FOREVER) == "yours", key
                assert await log.keep(key, str(turn), FOREVER)
            assert {await log.reserve(key, "somebody", FOREVER) for key in keys} == {"done"}

    async def _until_had(self, log: EventLog, key: str, holder: str) -> None:
        async def is_had() -> bool:
            return await log.reserve(key, holder, FOREVER) == "yours"

        await self.until(is_had)
