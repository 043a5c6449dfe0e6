"""The members of the groups in a demo of the bus: processes that can be killed, or guests of this one where that must do."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
import msgspec

from connector_sdk.bus.bus import EventBus
from connector_sdk.cli.bus_worker import Task, take_part
from connector_sdk.cli.console import FailedError

__all__ = ["GuestMember", "Member", "ProcessMember", "read_notes"]

_PATIENCE: Final = 30.0  # seconds for a process to begin or to end


class Member(Protocol):
    """One member of a group."""

    name: str
    task: Task
    was_killed: bool

    async def start(self) -> None:
        """Begin; returns when it takes part."""

    async def kill(self) -> None:
        """End it in the middle of its work."""

    async def stop(self) -> None:
        """Let it finish what it has begun, and end it."""


class ProcessMember:
    """A process of its own; `kill` is SIGKILL."""

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self.task = task
        self.was_killed = False
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        """Start the process and wait until it takes part."""
        command = [sys.executable, "-m", "connector_sdk.cli.bus_worker", msgspec.json.encode(self.task).decode()]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220, S603 - it takes a moment; our own program
        assert self._process.stdout is not None
        with anyio.move_on_after(_PATIENCE):
            line = await anyio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
            if line == "ready\n":
                return
        raise FailedError(f"the member {self.name} did not begin")

    async def kill(self) -> None:
        """SIGKILL."""
        self.was_killed = True
        await self._end(is_kill=True)

    async def stop(self) -> None:
        """SIGTERM."""
        await self._end(is_kill=False)

    async def _end(self, *, is_kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if is_kill:
            process.kill()
        else:
            process.terminate()

        def reap() -> None:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(reap)


class GuestMember:
    """A bus of its own on a log in this process; `kill` ends its handlers where they are."""

    def __init__(self, name: str, task: Task, bus: EventBus) -> None:
        self.name = name
        self.task = task
        self.was_killed = False
        self._bus = bus
        self._has_ended = False

    async def start(self) -> None:
        """Connect and take part."""
        await self._bus.connect()
        await take_part(self._bus, self.task)

    async def kill(self) -> None:
        """Give it no time to finish."""
        self.was_killed = True
        await self._close(0.0)

    async def stop(self) -> None:
        """Let it finish."""
        await self._close(_PATIENCE)

    async def _close(self, timeout: float) -> None:
        if not self._has_ended:
            self._has_ended = True
            await self._bus.close(timeout=timeout)


def read_notes(member: Member) -> Counter[str]:
    """Return what a member has written down: how often it handled each event."""
    path = Path(member.task.notes)
    return Counter(path.read_text().split()) if path.exists() else Counter()
