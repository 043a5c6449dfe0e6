"""What becomes in the child of a fork of what belongs to its parent."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

__all__ = ["Forkable", "in_loop_of_own", "start_empty_after_fork", "wakeup_sockets"]


class Forkable(Protocol):
    """An object with a lock."""

    def after_fork_in_child(self) -> None:
        """Start anew: threads of the parent, which are not here, may have held the lock or been half-way through."""


ResultT = TypeVar("ResultT")

_living: weakref.WeakSet[Forkable] = weakref.WeakSet()
_loops: dict[asyncio.AbstractEventLoop, None] = {}
#: Loops of a parent process, which must not be collected: they would close what is not theirs any more.
_left_behind: list[asyncio.AbstractEventLoop] = []


def start_empty_after_fork(one: Forkable) -> None:
    """Call `after_fork_in_child` of *one* in every child of a fork, as long as it lives."""
    _living.add(one)


async def in_loop_of_own(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """
    Do *work* in an event loop of asyncio that was made for it.

    A fork meanwhile leaves the child without the sockets of the loop: the connections stay the parent's alone.
    """
    loop = asyncio.get_running_loop()
    _loops[loop] = None
    try:
        return await work()
    finally:
        _loops.pop(loop, None)


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


def _close_sockets_of(loop: asyncio.AbstractEventLoop) -> None:
    """Close what the parent goes on with: the descriptors only, without a word to anybody, and not the selector."""
    # Private names again: what is not there stays open.
    for transport in list(getattr(loop, "_transports", {}).values()):
        connection = getattr(transport, "_sock", None)
        if isinstance(connection, socket.socket):
            connection.close()
            transport._sock = None  # it would complain when it is collected
    selector = getattr(loop, "_selector", None)
    for key in list((selector.get_map() or {}).values()) if selector is not None else ():
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()
        for handle in key.data if isinstance(key.data, tuple) else ():
            for argument in getattr(handle, "_args", None) or ():  # of a connection that is being opened
                if isinstance(argument, socket.socket):
                    argument.close()
    for name in ("_ssock", "_csock"):
        wakeup = getattr(loop, name, None)
        if isinstance(wakeup, socket.socket):
            wakeup.close()


def _after_fork_in_child() -> None:
    for loop in list(_loops):
        _close_sockets_of(loop)
    _left_behind.extend(_loops)
    _loops.clear()
    for one in list(_living):
        one.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
