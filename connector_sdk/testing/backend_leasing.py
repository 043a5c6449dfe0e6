"""The contract of backends, second part: leases."""

# ruff: noqa: D102 - the name of a test says what must be true
# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers import protocol
from connector_sdk.buffers.protocol import BackendLease, BufferBackend, Leasing
from connector_sdk.errors import ConfigurationError, LeaseError, LeaseExpiredError
from connector_sdk.testing.backend_case import (
    BackendCase,
    Opened,
    actions,
    fill,
    lacks,
    numbers,
    summary,
    unknown,
)

__all__ = ["LendingContract"]


class LendingContract(BackendCase):
    """Leases, by the backend or by what `protocol.lease` does for it."""

    @pytest.mark.anyio
    async def test_leaving_a_lease_acknowledges_it(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 5)
            async with protocol.lease(backend, 3) as lease:
                assert numbers(lease.events) == numbers(lease) == [0, 1, 2]
                assert len(lease) == 3
                assert await backend.size() == 2
            assert numbers(await backend.drain()) == [3, 4]

    @pytest.mark.anyio
    async def test_an_error_gives_a_lease_back(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 3)
            with pytest.raises(ZeroDivisionError):
                async with protocol.lease(backend) as lease:
                    await lease.ack(lease.events[1:2])
                    raise ZeroDivisionError
            assert numbers(await backend.drain()) == [0, 2]

    @pytest.mark.anyio
    async def test_a_cancelled_lease_is_given_back(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 3)
            with anyio.CancelScope() as scope:
                async with protocol.lease(backend):
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
            assert numbers(await backend.drain()) == [0, 1, 2]

    @pytest.mark.anyio
    async def test_an_empty_backend_gives_an_empty_lease(self) -> None:
        async with Opened(self) as backend:
            async with protocol.lease(backend) as lease:
                assert list(lease.events) == []
            assert await backend.size() == 0

    @pytest.mark.anyio
    async def test_leases_are_exclusive(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await fill(backend, 4)
            async with backend.lease(2) as first, backend.lease(2) as second:
                assert (numbers(first), numbers(second)) == ([0, 1], [2, 3])
                assert await backend.drain() == []
            assert await backend.size() == 0

    @pytest.mark.anyio
    async def test_leases_given_back_in_any_order_restore_the_order(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await fill(backend, 6)
            async with backend.lease(2) as first, backend.lease(2) as second:
                await backend.add(summary(6))
                await second.ack(second.events[:1])
                await second.give_back()
                await first.give_back()
            assert numbers(await backend.drain()) == [0, 1, 3, 4, 5, 6]

    @pytest.mark.anyio
    async def test_an_ended_lease_cannot_be_used(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await fill(backend, 1)
            async with backend.lease() as lease:
                await lease.ack()
                for use in (lease.ack, lease.give_back, lambda: lease.extend(1.0)):
                    with pytest.raises(LeaseError):
                        await use()

    @pytest.mark.anyio
    async def test_only_events_of_the_lease_can_be_acknowledged(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await fill(backend, 2)
            with pytest.raises(LeaseError):
                async with backend.lease() as lease:
                    await lease.ack([lease.events[0], summary(1)])
            assert numbers(await backend.drain()) == [0, 1]

    @pytest.mark.anyio
    async def test_a_lease_that_runs_out_gives_its_events_back(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await fill(backend, 2)
            with pytest.raises(LeaseExpiredError):
                async with protocol.lease(backend, timeout=self.lease_timeout, renew=False) as lease:
                    await self.until_size(backend, 2)
                    await _refused(lease)
            assert numbers(await backend.drain()) == [0, 1]

    @pytest.mark.anyio
    async def test_an_extended_lease_does_not_run_out(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await fill(backend, 2)
            async with protocol.lease(backend, 1, timeout=self.lease_timeout, renew=False) as extended:
                await extended.extend(60.0)
                with pytest.raises(LeaseExpiredError):
                    async with protocol.lease(backend, 1, timeout=self.lease_timeout, renew=False):
                        await self.until_size(backend, 1)
            assert numbers(await backend.drain()) == [1]

    @pytest.mark.anyio
    async def test_a_lease_does_not_run_out_while_its_block_runs(self) -> None:
        timeout = self.lease_timeout * 8  # so that a busy machine gets to renew it in time
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await fill(backend, 3)
            async with protocol.lease(backend, 2, timeout) as kept:
                await kept.ack(kept.events[:1])
                with pytest.raises(LeaseExpiredError):
                    async with protocol.lease(backend, 1, timeout * 1.5, renew=False):
                        await self.until_size(backend, 1)
                assert await backend.size() == 1
                await kept.ack()
            assert numbers(await backend.drain()) == [2]

    # -- of some types

    @pytest.mark.anyio
    async def test_a_lease_of_types_leaves_the_others_in_order(self) -> None:
        async with Opened(self) as backend:
            await _fill_with_types(backend, 12)
            async with protocol.lease(backend, 3, types={"actions", "survey"}) as lease:
                assert numbers(lease) == [1, 2, 4]
            async with protocol.lease(backend, types=["actions"]) as lease:
                assert numbers(lease) == [7, 10]
            async with protocol.lease(backend, types={"nothing", "action"}) as lease:
                assert numbers(lease) == []
            assert numbers(await backend.drain()) == [0, 3, 5, 6, 8, 9, 11]

    @pytest.mark.anyio
    async def test_types_that_are_none_are_refused(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 1)
            wrong: list[Any] = ["summary", [], frozenset(), ["summary", 1], 5]
            for types in wrong:
                with pytest.raises(ConfigurationError, match="types"):
                    async with protocol.lease(backend, types=types):
                        pass
            assert await backend.size() == 1

    @pytest.mark.anyio
    async def test_leases_of_types_that_are_given_back_restore_the_order(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await _fill_with_types(backend, 12)
            async with (
                protocol.lease(backend, 3, types={"actions"}) as first,
                protocol.lease(backend, 2, types={"survey"}) as second,
                protocol.lease(backend, 1, types={"actions"}) as third,
            ):
                assert (numbers(first), numbers(second), numbers(third)) == ([1, 4, 7], [2, 5], [10])
                assert numbers(await protocol.drain_page(backend, 1)) == [0]
                await backend.add(actions(12))
                await second.ack(second.events[:1])
                await second.give_back()
                await first.ack(first.events[1:2])
                await first.give_back()
                async with protocol.lease(backend, 2, types={"actions", "survey"}) as again:
                    assert numbers(again) == [1, 5]
                    await again.give_back()
                await third.give_back()
            assert numbers(await backend.drain()) == [1, 3, 5, 6, 7, 8, 9, 10, 11, 12]

    @pytest.mark.anyio
    async def test_a_lease_of_types_that_runs_out_gives_its_events_back(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await _fill_with_types(backend, 6)
            with pytest.raises(LeaseExpiredError):
                async with protocol.lease(backend, timeout=self.lease_timeout, renew=False, types={"actions"}) as lease:
                    await self.until_size(backend, 6)
                    await _refused(lease)
            assert numbers(await backend.drain()) == [0, 1, 2, 3, 4, 5]

    @pytest.mark.anyio
    async def test_leases_of_types_at_once_give_each_event_once_and_in_order(self) -> None:
        taken: dict[str, list[int]] = {"actions": [], "survey": []}

        async def consume(kind: str) -> None:
            rounds = 0
            while len(taken[kind]) < 30:
                rounds += 1
                if rounds % 3:
                    async with protocol.lease(backend, 4, types={kind}) as lease:
                        taken[kind] += numbers(lease)
                else:
                    with pytest.raises(ZeroDivisionError):
                        async with protocol.lease(backend, 4, types={kind}):
                            raise ZeroDivisionError
                await anyio.lowlevel.checkpoint()

        async with Opened(self) as backend:
            if not isinstance(backend, Leasing):
                lacks(backend, "Leasing")
            await _fill_with_types(backend, 90)
            with anyio.fail_after(3 * self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(consume, "actions")
                    tasks.start_soon(consume, "survey")
            assert taken == {"actions": list(range(1, 90, 3)), "survey": list(range(2, 90, 3))}
            assert numbers(await backend.drain()) == list(range(0, 90, 3))


async def _fill_with_types(backend: BufferBackend, count: int) -> None:
    """Add summaries, actions and payloads of an unknown type in turn; skip the test if leases know no types."""
    if isinstance(backend, Leasing):
        try:
            protocol.check_types_of_lease(backend, {"actions"})
        except ConfigurationError:
            lacks(backend, "Leasing with types")
    for number in range(count):
        await backend.add((summary, actions, unknown)[number % 3](number))


async def _refused(lease: BackendLease) -> None:
    with pytest.raises(LeaseExpiredError):
        await lease.ack()
    with pytest.raises(LeaseExpiredError):
        await lease.extend(60.0)
    await lease.give_back()
