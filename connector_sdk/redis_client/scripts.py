"""Lua scripts, known to a server by their SHA-1."""

from __future__ import annotations

import hashlib
from importlib import resources

__all__ = ["Script", "load_script"]


class Script:
    """One Lua script. `name` is for messages, `source` its text, `sha1` what EVALSHA wants."""

    __slots__ = ("name", "sha1", "source")

    def __init__(self, name: str, source: bytes | str) -> None:
        self.name = name
        self.source = source.encode() if isinstance(source, str) else source
        # Redis names scripts by SHA-1; nothing secret hangs on it.
        self.sha1 = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def __repr__(self) -> str:
        return f"Script({self.name!r}, {len(self.source)} bytes)"


def load_script(package: str, name: str) -> Script:
    """Return the script in the file *name* of *package*, for example `("connector_sdk.buffers.lua", "append.lua")`."""
    return Script(name, resources.files(package).joinpath(name).read_bytes())
