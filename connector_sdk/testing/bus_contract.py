"""
The promises of `connector_sdk.bus.bus.EventBus` over a log as a test suite: subclass it, give it your log, and pytest runs it.

::

    from connector_sdk.testing import EventBusContract


    class TestBusOnMyLog(EventBusContract):
        async def make_log(self, **options: Unpack[LogOptions]) -> MyLog:
            return MyLog("the place of this test", **options)

Each test runs on asyncio and on trio, through the pytest plugin of anyio. To run on one only, give your class a fixture
`anyio_backend` that returns its name. Let the log pass `EventLogContract` first: that finds faults where they are.
"""

from __future__ import annotations

from connector_sdk.testing.bus_delivering import DeliveringContract
from connector_sdk.testing.bus_failing import FailingContract
from connector_sdk.testing.bus_grouping import GroupingContract
from connector_sdk.testing.bus_looking import LookingContract
from connector_sdk.testing.bus_once import OnceContract
from connector_sdk.testing.bus_replaying import ReplayingContract

__all__ = ["EventBusContract"]


class EventBusContract(
    DeliveringContract, ReplayingContract, GroupingContract, FailingContract, OnceContract, LookingContract
):
    """What every `EventBus` must do, whatever log is under it. Subclass it under a name that pytest collects."""
