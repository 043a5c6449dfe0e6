"""A clock for a file that processes of one machine share: it never jumps, and goes on after the machine was started anew."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["StoreClock", "boot_of_this_machine"]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_of_this_machine() -> str:
    """Return what names this run of the machine, "" when the system has no name for it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class StoreClock:
    """
    Seconds that grow alike in every process that has the file open.

    The monotonic clock is one for all processes of a machine, and nobody sets it. The file knows by how much the clock of
    the file is ahead of it in this run of the machine: so a wall clock that is set forward or back changes no age and no
    lease. Where runs of the machine have no name the wall clock is all there is.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boot: str | None = None,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead = 0.0
        self.boot = boot_of_this_machine() if boot is None else boot

    def tune(self, connection: sqlite3.Connection) -> None:
        """Read how far ahead the file is, or say so if this is its first use since the machine was started."""
        if not self.boot:
            return
        row = connection.execute("SELECT ahead FROM boots WHERE boot = ?", (self.boot,)).fetchone()
        if row is None:
            (latest,) = connection.execute("SELECT clock FROM account").fetchone()
            row = (max(self._wall(), latest) - self._monotonic(),)
            connection.execute("DELETE FROM boots")
            connection.execute("INSERT INTO boots VALUES (?, ?)", (self.boot, *row))
        self._ahead = row[0]

    def now(self) -> float:
        """Return the time of the file."""
        return self._monotonic() + self._ahead if self.boot else self._wall()

    def wall(self) -> float:
        """Return the time of the wall clock, in Unix seconds."""
        return self._wall()
