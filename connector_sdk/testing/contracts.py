"""
The promises of a protocol as a test suite: subclass it, give it your implementation, and pytest runs it.

::

    from connector_sdk.testing.contracts import BufferBackendContract


    class TestMyBackend(BufferBackendContract):
        def make_backend(self) -> MyBackend:
            return MyBackend("an empty place")

Each test runs on asyncio and on trio, through the pytest plugin of anyio. To run on one only, give your module a fixture
`anyio_backend` that returns its name. An ability (`Leasing`, `DeadLettering`, `Peeking`, `Typed`, `Paged`) is tested when
the backend has it and skipped with a reason when not; the fallbacks of `connector_sdk.buffers.protocol` are tested on
every backend.
"""

from __future__ import annotations

from connector_sdk.testing.backend_burying import BuryingContract
from connector_sdk.testing.backend_holding import HoldingContract
from connector_sdk.testing.backend_leasing import LendingContract

__all__ = ["BufferBackendContract"]


class BufferBackendContract(HoldingContract, LendingContract, BuryingContract):
    """
    What every `BufferBackend` must do. Subclass it under a name that pytest collects, and give `make_backend`.

    Payloads are added in the order of their `forwarded_at`, within one session, so that order of arrival and order of
    time agree; a test adds 500 at most, all within the last few years. Tests of leases take up to `patience` seconds.
    """
