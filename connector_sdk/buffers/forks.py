"""What becomes of buffers in the child of a fork."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import weakref
from typing import Protocol

__all__ = ["Forkable", "start_empty_after_fork", "wakeup_sockets"]


class Forkable(Protocol):
    """An object with a lock."""

    def after_fork_in_child(self) -> None:
        """Start anew: threads of the parent, which are not here, may have held the lock or been half-way through."""


_living: weakref.WeakSet[Forkable] = weakref.WeakSet()


def start_empty_after_fork(buffer: Forkable) -> None:
    """Call `after_fork_in_child` of *buffer* in every child of a fork, as long as the buffer lives."""
    _living.add(buffer)


async def wakeup_sockets() -> list[socket.socket]:
    """
    Return the sockets by which other threads wake the running event loop, as far as they can be found.

    The child of a fork has them, too, and should close them. Closing does not disturb the parent; closing the loop would,
    for both have one epoll object.
    """
    # A program that never imported trio does not run on it. The names are private in both: what is not there stays open.
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        context = getattr(sys.modules.get("trio._core._run"), "GLOBAL_RUN_CONTEXT", None)
        runner = getattr(context, "runner", None)
        pairs = [
            getattr(getattr(runner, "entry_queue", None), "wakeup", None),
            getattr(getattr(runner, "io_manager", None), "_force_wakeup", None),
        ]
        found = [getattr(pair, name, None) for pair in pairs for name in ("wakeup_sock", "write_sock")]
    else:
        loop = asyncio.get_running_loop()
        found = [getattr(loop, name, None) for name in ("_ssock", "_csock")]
    return [one for one in found if isinstance(one, socket.socket)]


def _after_fork_in_child() -> None:
    for buffer in list(_living):
        buffer.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
