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
_GUARD: Final = (
    'read -r nothing; children=$(cat "/proc/$1/task/$1/children" 2>/dev/null); kill -9 "$1" $children; '
    'eval "$3"; [ -z "$2" ] || rm -rf -- "$2"'
)


class Child:
    """
    Starts *command* in *directory*; what it prints is added to the file *log*.

    It inherits no open file or socket of ours, and is in a session of its own, so that a Ctrl-C at the terminal is for us
    to handle. When this process is killed the child is killed too, and the folder *leavings* is removed, if one is named,
    after *farewell*, a line for the shell in which $2 is that folder. On Linux the processes that it has started itself are
    killed, paused and resumed with it. It runs as the *user* of that number, if one is given, for which we must be root. Not
    for use from several threads at once.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        directory: Path,
        log: Path,
        leavings: Path | None = None,
        farewell: str = "",
        user: int | None = None,
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - a program that the caller names
                [str(word) for word in command],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        try:
            self._guard = subprocess.Popen(  # noqa: S603 - our own line, for the shell
                ["/bin/sh", "-c", _GUARD, "guard", str(self.pid), "" if leavings is None else str(leavings), farewell],
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
            self._process.send_signal(signal.SIGSTOP)  # it starts no more
            children = self._children()
            self._process.kill()
            _signal_all(children, signal.SIGKILL)
            self._process.wait()

    def terminate(self, timeout: float, how: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end with the signal *how*; after *timeout* seconds, kill it."""
        if self.exit_code is None:
            self._process.send_signal(how)
            self.resume()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            self.kill()

    def pause(self) -> None:
        """Stop it with SIGSTOP, and wait until it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)
        _signal_all(self._children(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause()`."""
        _signal_all(self._children(), signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)

    def _children(self) -> list[int]:
        """The processes that it has started; [] where the system does not tell."""
        try:
            return [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def _dismiss_guard(self) -> None:
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()


def _signal_all(processes: list[int], what: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, what)
