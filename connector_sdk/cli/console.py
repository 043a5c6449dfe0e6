"""What every command says and how it ends: one line to stderr, text that cannot harm a terminal, signals, broken pipes."""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console
from rich.text import Text

__all__ = [
    "BadInputError",
    "FailedError",
    "OutputConsole",
    "Terminated",
    "command_name",
    "on_signal",
    "prepare_environment",
    "prepare_output",
    "printable",
    "quiet_pipe",
    "say",
    "signals",
    "styled",
    "tint",
]

_TINTS: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green",
                 "bright_yellow", "bright_blue", "bright_red", "red")  # fmt: skip


_AGAIN: Final = 0.01  # seconds
_INTERRUPTED: Final = 130
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class BadInputError(Exception):
    """What the command was given cannot work: one line on stderr, exit code 2."""


class FailedError(Exception):
    """The work failed: one line on stderr, exit code 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; ends a command the way Ctrl-C does."""


class OutputConsole(Console):
    """A rich console that leaves a broken pipe to us; rich itself would end the process with code 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Let the command end quietly."""
        raise BrokenPipeError


def command_name() -> str:
    """What to type for this command: its name, or a path where the shell would not find the name."""
    if shutil.which("connector-sdk") is not None:
        return "connector-sdk"
    # `make demo` runs it out of a virtual environment that is not active.
    return sys.argv[0] if Path(sys.argv[0]).name == "connector-sdk" else f"{sys.executable} -m connector_sdk.cli"


def say(message: str) -> None:
    """Write one line to stderr; what reads it may be gone already."""
    with suppress(OSError):
        print(" ".join(printable(message).split()), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Replace what is no printable character: a path in a log may hold escape sequences for the terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{MIDDLE DOT}" for character in text
    )


def tint(name: str | None) -> str:
    """The colour of a session: always the same for the same id."""
    return _TINTS[zlib.crc32((name or "").encode("utf-8", "replace")) % len(_TINTS)]


def styled(*parts: tuple[str, str]) -> Text:
    """One line of (text, style) pairs; nothing in the text is markup."""
    return Text.assemble(*((printable(text), style) for text, style in parts), no_wrap=True, overflow="ellipsis")


def _is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def signals() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, by raising Terminated (a KeyboardInterrupt) in it."""

    def end(number: int, frame: FrameType | None) -> None:
        if _is_in_finalizer(frame):
            # Python would print what is raised in a finalizer, and go on: the signal comes again a moment later.
            again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    # A shell that starts us in the background (`cmd &`) has SIGINT ignored; whoever sends it to us means it.
    before = signal.signal(signal.SIGTERM, end)
    interrupt = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def on_signal(end: Callable[[int], object]) -> Iterator[None]:
    """
    Let Ctrl-C and SIGTERM call *end* with their number in the block, which is to end it soon; a second one ends the process
    at once.

    For work that no exception should tear apart at any place, as `signals` does.
    """
    has_come = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            os._exit(_INTERRUPTED)
        has_come = True
        end(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_pipe() -> None:
    """After a BrokenPipeError: let Python's own flush at exit go nowhere, so that it has nothing to complain of."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def prepare_environment(*, is_demo: bool) -> None:
    """
    Let nothing in the user's environment come between our own client and server.

    A proxy is never asked for what is on this machine; and the demo's client has the options of the demo, not those that
    `CONNECTOR_...` variables name for the user's own connector.
    """
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name, ""), *_LOOPBACK)))
    if is_demo:
        for name in [name for name in os.environ if name.startswith("CONNECTOR_")]:
            del os.environ[name]


def prepare_output() -> None:
    """
    Make output safe: a character that the terminal's encoding lacks becomes "?", and the library's log stays silent.

    Without any handler, Python would print the library's warnings to stderr, where the commands say it better.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.getLogger("connector_sdk").addHandler(logging.NullHandler())
