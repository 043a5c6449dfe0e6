"""
The promises of `connector_sdk.bus.log.EventLog` as a test suite: subclass it, give it your log, and pytest runs it.

::

    from connector_sdk.testing import EventLogContract, LogOptions


    class TestMyLog(EventLogContract):
        @pytest.fixture(autouse=True)
        def _place(self, tmp_path: Path) -> None:
            self.path = tmp_path / "log"

        async def make_log(self, **options: Unpack[LogOptions]) -> MyLog:
            return MyLog(self.path, **options)

Each test runs on asyncio and on trio, through the pytest plugin of anyio. To run on one only, give your module a fixture
`anyio_backend` that returns its name. A log that passes makes an `EventBus` that works.
"""

from __future__ import annotations

from connector_sdk.testing.log_appending import AppendingContract
from connector_sdk.testing.log_groups import GroupsContract
from connector_sdk.testing.log_letters import LettersContract
from connector_sdk.testing.log_looking import LookingContract
from connector_sdk.testing.log_members import MembersContract
from connector_sdk.testing.log_reading import ReadingContract
from connector_sdk.testing.log_reserving import ReservingContract
from connector_sdk.testing.log_retention import RetentionContract

__all__ = ["EventLogContract"]


class EventLogContract(
    AppendingContract,
    ReadingContract,
    RetentionContract,
    GroupsContract,
    MembersContract,
    LettersContract,
    ReservingContract,
    LookingContract,
):
    """
    What every `EventLog` must do. Subclass it under a name that pytest collects, and give `make_log`.

    pytest makes an object for each test: each must have a storage of its own. Give `make_aging_log`, too, if your log can be
    made to keep events for a second; and `body`, `number` and `big_body`, if its bodies are objects. `hold` says how long
    members live that are to die (longer for a slow storage), `wakes_up` whether waiting is more than looking now and then.
    """
