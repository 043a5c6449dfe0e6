"""What becomes of buffers in the child of a fork."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Forkable", "start_empty_after_fork"]


class Forkable(Protocol):
    """An object with a lock."""

    def after_fork_in_child(self) -> None:
        """Start anew: threads of the parent, which are not here, may have held the lock or been half-way through."""


_living: weakref.WeakSet[Forkable] = weakref.WeakSet()


def start_empty_after_fork(buffer: Forkable) -> None:
    """Call `after_fork_in_child` of *buffer* in every child of a fork, as long as the buffer lives."""
    _living.add(buffer)


def _after_fork_in_child() -> None:
    for buffer in list(_living):
        buffer.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
