"""What becomes of buffers in the child of a fork: see `connector_sdk.forks`."""

from __future__ import annotations

from connector_sdk.forks import Forkable, start_empty_after_fork, wakeup_sockets

__all__ = ["Forkable", "start_empty_after_fork", "wakeup_sockets"]
