"""Runs the command as a real process; every wait is bounded."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

PATIENCE = 60.0  # seconds; far more than anything here takes
COMMAND = (sys.executable, "-m", "connector_sdk.cli")


class Process:
    """A running command whose output can be waited for. A context manager: what still runs at the end is killed."""

    def __init__(
        self, *arguments: str, command: Sequence[str] = COMMAND, cwd: Path | None = None, **environment: str
    ) -> None:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("CONNECTOR_")}
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**ours, "PYTHONWARNINGS": "error", "COLUMNS": "100", **environment},
        )
        self._closing = threading.Event()
        self._grew = threading.Condition()
        self._text = {"out": "", "err": ""}
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=("out", self.process.stdout), daemon=True),
            threading.Thread(target=self._read, args=("err", self.process.stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[bytes]) -> None:
        # A blocked read would hold the pipe open, so close_output() needs a look now and then.
        while not (name == "out" and self._closing.is_set()):
            if not select.select([stream], [], [], 0.02)[0]:
                continue
            data = os.read(stream.fileno(), 65536)
            if not data:
                break
            with self._grew:
                self._text[name] += data.decode("utf-8", "replace")
                self._grew.notify_all()
        stream.close()

    @property
    def out(self) -> str:
        """What came on stdout so far."""
        return self._text["out"]

    @property
    def err(self) -> str:
        """What came on stderr so far."""
        return self._text["err"]

    def wait_for(self, pattern: str, stream: str = "out") -> re.Match[str]:
        """Wait until *pattern* is in the output."""
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = re.search(pattern, self._text[stream])
            return found is not None

        with self._grew:
            self._grew.wait_for(look, PATIENCE)
        assert found is not None, f"no {pattern!r} in {self._text}"
        return found

    def close_output(self) -> None:
        """Close our end of stdout, as `| head` does when it has seen enough."""
        self._closing.set()
        self._readers[0].join(PATIENCE)

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> Self:
        """Send a signal."""
        self.process.send_signal(number)
        return self

    def end(self) -> int:
        """Wait for the end; return the exit code. No command ever shows a traceback."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        assert "Traceback" not in self.out + self.err
        assert "Exception ignored" not in self.err
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)


def run(*arguments: str, cwd: Path | None = None, command: Sequence[str] = COMMAND, **environment: str) -> Process:
    """Run a command to its end, with *environment* added to ours."""
    with Process(*arguments, cwd=cwd, command=command, **environment) as process:
        process.end()
    return process


def assert_bad_input(process: Process, *says: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that says what is wrong."""
    assert process.process.returncode == 2, (process.out, process.err)
    assert process.out == ""
    assert process.err.count("\n") == 1, process.err
    assert process.err.startswith("connector-sdk: ")
    for text in says:
        assert text in process.err
