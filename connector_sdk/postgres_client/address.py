"""Where a PostgreSQL is, and how to log in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from connector_sdk.errors import ConfigurationError
from connector_sdk.postgres_client.driver import load_psycopg

__all__ = ["PostgresAddress"]

_ALLOWED = (
    "an address such as postgresql://user:password@localhost:5432/database, or words such as host=localhost dbname=shop"
)

#: So that a connection of which the network has lost all memory is found out in a minute and a half, and not in two hours.
_KEEPALIVES: Final = {"keepalives_idle": "60", "keepalives_interval": "10", "keepalives_count": "3"}


@dataclass(frozen=True, repr=False)
class PostgresAddress:
    """A checked address. Neither `str()` nor `repr()` shows a secret, nor the user; `dsn` does."""

    dsn: str
    label: str  #: host, port and database

    @classmethod
    def parse(cls, dsn: str, *, option: str = "dsn") -> PostgresAddress:
        """
        Return what *dsn* says: a URL (`postgresql://`, `postgres://`) or words of libpq (`host=... dbname=...`).

        All that libpq knows may be in it: several hosts, TLS files, `target_session_attrs` (with several hosts "read-write"
        unless it says otherwise). What it leaves out comes from the environment (PGHOST, PGPASSWORD, ...) and from
        `~/.pgpass`, as ever.

        Raises ConfigurationError when it cannot be used, or psycopg is not installed; its message has no secret.
        """
        if not isinstance(dsn, str) or not dsn.strip() or "\0" in dsn:
            raise ConfigurationError(option, None, _ALLOWED, secret=True)
        psycopg = load_psycopg(option)
        try:
            words: dict[str, str] = psycopg.conninfo.conninfo_to_dict(dsn)
            if "," in str(words.get("host", "")):
                words.setdefault("target_session_attrs", "read-write")
            for name, value in _KEEPALIVES.items():
                words.setdefault(name, value)
            made = psycopg.conninfo.make_conninfo(**words)
            _check(words)
        except (psycopg.Error, ValueError):
            # What libpq has to say repeats parts of the text, and those may be a password.
            raise ConfigurationError(option, None, _ALLOWED, secret=True) from None
        return cls(made, _label(words))

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<PostgresAddress {self.label}>"


def _check(words: Mapping[str, str]) -> None:
    """Refuse what libpq would only refuse when it connects, and a host that is a part of a password with an "@"."""
    ports = str(words.get("port") or "").split(",")
    hosts = str(words.get("host") or "").split(",")
    if any(port and not 0 < int(port) < 65536 for port in ports) or any("@" in host[1:] for host in hosts):
        raise ValueError


def _label(words: Mapping[str, str]) -> str:
    def of(name: str, variable: str, default: str) -> str:
        return str(words.get(name) or os.environ.get(variable) or default)

    hosts = of("host" if words.get("host") else "hostaddr", "PGHOST", "localhost").split(",")
    ports = [port or "5432" for port in of("port", "PGPORT", "5432").split(",")]
    pairs = zip(hosts, ports if len(ports) == len(hosts) else ports[:1] * len(hosts), strict=True)
    servers = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in pairs)
    return f"postgresql://{servers}/{of('dbname', 'PGDATABASE', '')}"
