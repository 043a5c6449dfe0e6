"""The contract of backends, second part: leases."""

# ruff: noqa: D102 - the name of a test says what must be true
# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers import protocol
from connector_sdk.buffers.protocol import BackendLease, Leasing
from connector_sdk.errors import LeaseError, LeaseExpiredError
from connector_sdk.testing.backend_case import (
    BackendCase,
    Opened,
    fill,
    lacks,
    numbers,
    summary,
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


async def _refused(lease: BackendLease) -> None:
    with pytest.raises(LeaseExpiredError):
        await lease.ack()
    with pytest.raises(LeaseExpiredError):
        await lease.extend(60.0)
    await lease.give_back()
