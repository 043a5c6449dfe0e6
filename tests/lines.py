"""Reading the output of a process line by line, and then the rest."""

from __future__ import annotations

import os
import subprocess

__all__ = ["next_line"]


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that it prints, "" at the end. Unlike `readline` it leaves what follows to `communicate`."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
        line += byte
    return line.decode()
