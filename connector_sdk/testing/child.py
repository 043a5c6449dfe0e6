"""A program run as a child process that ends when this process does, however this process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["Child"]

#: Its input ends when the process that started it is gone, killed or not: then it kills the child and tidies up. It is not
#: done with prctl(PR_SET_PDEATHSIG), which fires at the end of the *thread* that started the child (and only on Linux).
_GUARD: Final = 'read -r nothing; kill -9 "$1"; [ -z "$2" ] || rm -rf -- "$2"'


class Child:
    """
    Starts *command* in *directory*; what it prints is added to the file *log*.

    It inherits no open file or socket of ours, and is in a session of its own, so that a Ctrl-C at the terminal is for us
    to handle. When this process is killed the child is killed too, and the folder *leavings* is removed, if one is named.
    Not for use from several threads at once.
    """

    def __init__(
        self, command: Sequence[str | Path], *, directory: Path, log: Path, leavings: Path | None = None
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - a program that the caller names
                [str(word) for word in command],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._guard = subprocess.Popen(  # noqa: S603 - our own line, for the shell
                ["/bin/sh", "-c", _GUARD, "guard", str(self.pid), "" if leavings is None else str(leavings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs (or is paused); then its exit status, negative for the signal that ended it."""
        code = self._process.poll()
        if code is not None:
            self._dismiss_guard()
        return code

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone; nothing happens when it is."""
        if self.exit_code is None:
            self._dismiss_guard()  # before the process id is free for another
            self._process.kill()
            self._process.wait()

    def terminate(self, timeout: float) -> None:
        """Ask it to end with SIGTERM; after *timeout* seconds, kill it."""
        if self.exit_code is None:
            self._process.terminate()
            self.resume()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            self.kill()

    def pause(self) -> None:
        """Stop it with SIGSTOP, and wait until it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let it go on after `pause()`."""
        self._process.send_signal(signal.SIGCONT)

    def _dismiss_guard(self) -> None:
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
