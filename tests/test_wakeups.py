"""Finding the event loop of a task."""

from __future__ import annotations

import sys
from types import ModuleType

import anyio
import pytest

from connector_sdk.background import current_event_loop
from connector_sdk.wakeups import current_waker


def test_a_trio_that_another_thread_is_importing_is_not_the_loop_of_this_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        event = anyio.Event()
        current_waker()(event.set)
        await event.wait()
        assert current_event_loop().is_current()

    half = ModuleType("trio")
    monkeypatch.setitem(sys.modules, "trio", half)
    anyio.run(main)
    half.lowlevel = ModuleType("trio.lowlevel")  # type: ignore[attr-defined]  # so far has the import come
    anyio.run(main)
