"""
The promises of `connector_sdk.buffers.store.EventStore` as a test suite: subclass it, give it your store, and pytest runs it.

::

    from connector_sdk.testing import EventStoreContract


    class TestMyStore(EventStoreContract):
        def make_store(self) -> MyStore:
            self.folder = tempfile.mkdtemp()
            return MyStore(self.folder)

        def another_process(self, store: EventStore) -> MyStore:
            return MyStore(self.folder)

Each test runs on asyncio and on trio, through the pytest plugin of anyio. To run on one only, give your module a fixture
`anyio_backend` that returns its name. A store that passes makes a `DurableBuffer` that passes `BufferBackendContract`.
"""

from __future__ import annotations

from connector_sdk.testing.store_adding import AddingContract
from connector_sdk.testing.store_burying import BuryingContract
from connector_sdk.testing.store_leasing import LeasingContract
from connector_sdk.testing.store_looking import LookingContract
from connector_sdk.testing.store_taking import TakingContract

__all__ = ["EventStoreContract"]


class EventStoreContract(AddingContract, TakingContract, LeasingContract, BuryingContract, LookingContract):
    """
    What every `EventStore` must do. Subclass it under a name that pytest collects, and give `make_store`.

    Give `another_process`, too, if several store objects can share a place: some promises can only be tested with two; and
    `make_bounded_store`, if the number of dead letters has a bound that you can set.
    The number of shards is yours: most tests use one of them. After each test the account of every shard must balance.
    Events of one session lie within two minutes, all before now; where extreme times are tested each event has a session
    of its own, so a window does no harm. Tests of leases take up to `patience` seconds.
    """
