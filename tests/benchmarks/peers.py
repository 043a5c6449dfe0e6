"""
The environment of the peers: `.venv-bench`, made from `peers.txt` when it is first needed, apart from the library's own.

The index is whichever pip is set up to use. Without one the benchmarks run without the peers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["PEERS", "PeersNotAvailableError", "peers_python"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_PINS: Final = Path(__file__).with_name("peers.txt")
_HOME: Final = _ROOT / ".venv-bench"
_STAMP: Final = _HOME / ".ready"

#: What is compared with, as pinned.
PEERS: Final = tuple(
    line.strip() for line in _PINS.read_text().splitlines() if line.strip() and not line.startswith("#")
)


class PeersNotAvailableError(Exception):
    """The environment could not be made; the message says why in one line."""


def peers_python() -> Path:
    """
    Return the Python of the peers' environment, made now if it is missing or its pins have changed.

    Raises:
        PeersNotAvailableError: there is no package index to reach, or it lacks a peer.
    """
    python = _HOME / "bin" / "python"
    wanted = f"{sys.version}\n{_PINS.read_text()}"
    if python.exists() and _STAMP.exists() and _STAMP.read_text() == wanted:
        return python
    _call(sys.executable, "-m", "venv", "--clear", str(_HOME))
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _call(*pip, "--retries", "1", "--timeout", "15", "-r", str(_PINS))
    _STAMP.write_text(wanted)
    return python


def _call(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeersNotAvailableError(f"{Path(command[0]).name}: {type(error).__name__}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise PeersNotAvailableError(lines[-1].strip()[:120] if lines else f"exit code {done.returncode}")
