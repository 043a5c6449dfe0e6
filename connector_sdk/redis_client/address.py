"""Pure: what a Redis URL says."""

from __future__ import annotations

import difflib
import enum
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from connector_sdk.errors import ConfigurationError

__all__ = ["RedisAddress", "Server", "Topology"]

_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_OPTIONS = (
    "username", "password", "db", "client_name", "sentinel_username", "sentinel_password",
    "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname",
)  # fmt: skip
_TLS_OPTIONS = tuple(name for name in _OPTIONS if name.startswith("ssl_"))
_PORT = 6379
_SENTINEL_PORT = 26379


class Topology(enum.Enum):
    """How servers work together."""

    STANDALONE = "standalone"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


class Server(NamedTuple):
    """Where one server listens: a host (name, IPv4 or IPv6) and port, or the path of a Unix socket and port 0."""

    host: str
    port: int

    @property
    def is_unix(self) -> bool:
        """Whether `host` is the path of a Unix socket."""
        return self.port == 0

    def __str__(self) -> str:
        if self.is_unix:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, repr=False)
class RedisAddress:
    """
    Where the server or servers are, and how to log in. Neither `str()` nor `repr()` shows a secret.

    `servers` holds the server, the seeds of a cluster, or the sentinels; `service` is the name under which sentinels
    know the master, "" without sentinels.
    """

    topology: Topology
    servers: tuple[Server, ...]
    tls: bool = False
    username: str | None = None
    password: str | None = None
    db: int = 0
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    client_name: str | None = None
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_cert_reqs: str = "required"
    ssl_check_hostname: bool = True

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """
        Return what *url* says. Schemes and their form::

            redis://[user:password@]host[:6379][/db]           one server; rediss:// with TLS
            unix://[user:password@]/path/of/socket[?db=0]
            redis+cluster://[user:password@]host[:6379],...    any nodes of a cluster; rediss+cluster:// with TLS
            redis+sentinel://[user:password@]host[:26379],.../master[/db]   sentinels; rediss+sentinel:// with TLS

        IPv6 addresses stand in brackets; user and password are percent-decoded. Options after "?" have redis-py's
        names: username, password, db, client_name, sentinel_username, sentinel_password, and with TLS ssl_ca_certs,
        ssl_certfile, ssl_keyfile (files), ssl_cert_reqs ("required" or "none"), ssl_check_hostname ("true", "false").

        Raises ConfigurationError when *url* cannot be used; its message has no secret.
        """
        if not isinstance(url, str):
            raise _wrong("a text, a URL such as redis://localhost:6379/0")
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise _wrong("a URL that starts with " + ", ".join(f"{name}://" for name in _SCHEMES))
        rest, _, query = rest.partition("?")
        options = _options(query, tls=scheme.startswith("rediss"))
        login, _, place = rest.rpartition("@")
        username, password = _login(login, options)
        common = {
            "client_name": options.get("client_name"),
            "sentinel_username": options.get("sentinel_username"),
            "sentinel_password": options.get("sentinel_password"),
            "ssl_ca_certs": options.get("ssl_ca_certs"),
            "ssl_certfile": options.get("ssl_certfile"),
            "ssl_keyfile": options.get("ssl_keyfile"),
        }
        topology, servers, service, db = _place(scheme, place)
        return cls(
            topology,
            servers,
            tls=scheme.startswith("rediss"),
            username=username,
            password=password,
            db=_database(options.get("db", db)),
            service=service,
            ssl_cert_reqs=_choice(options, "ssl_cert_reqs", "required", ("required", "none")),
            ssl_check_hostname=_choice(options, "ssl_check_hostname", "true", ("true", "false")) == "true",
            **common,
        )

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings, made once from the files; None without TLS. Raises ConfigurationError when a file is bad."""
        if not self.tls:
            return None
        context = ssl.create_default_context()
        if self.ssl_cert_reqs == "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.check_hostname = context.check_hostname and self.ssl_check_hostname
        try:
            option, file = "ssl_ca_certs", self.ssl_ca_certs
            if self.ssl_ca_certs:
                context.load_verify_locations(self.ssl_ca_certs)
            option, file = "ssl_certfile", self.ssl_certfile
            if self.ssl_certfile:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(option, file, "a readable PEM file (and its key)") from error
        return context

    def __str__(self) -> str:
        """The URL without user, password and options."""
        if self.servers[0].is_unix:
            return f"unix://{self.servers[0].host}" + (f"?db={self.db}" if self.db else "")
        scheme = "rediss" if self.tls else "redis"
        scheme += "" if self.topology is Topology.STANDALONE else f"+{self.topology.value}"
        path = (f"/{self.service}" if self.service else "") + (f"/{self.db}" if self.db else "")
        return f"{scheme}://{','.join(map(str, self.servers))}{path}"

    def __repr__(self) -> str:
        return f"RedisAddress({str(self)!r})"


def _wrong(allowed: str) -> ConfigurationError:
    # Not even a part of the URL is repeated: what is mistyped may be the password.
    return ConfigurationError("redis_url", None, allowed, secret=True)


def _options(query: str, *, tls: bool) -> Mapping[str, str]:
    if "@" in query:
        raise _wrong("percent-encoded where a user, password or option has a ? or @ (%3F, %40)")
    if any(part and "=" not in part for part in query.split("&")):
        raise _wrong(
            "with options written as name=value after the ?, and percent-encoded where a password has a ? (%3F)"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(_OPTIONS)
            raise ConfigurationError("redis_url", None, f"without the unknown option {name!r}: {hint}", secret=True)
        if name in _TLS_OPTIONS and not tls:
            raise _wrong(f"a rediss:// URL when it has {name}: without TLS the option has no effect")
    return options


def _choice(options: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = options.get(name, default).lower()
    if value not in choices:
        raise ConfigurationError(name, value, " or ".join(choices))
    return value


def _login(login: str, options: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The user and password before the @ win over those in the options."""
    username, _, password = login.partition(":")
    return (
        unquote(username) or options.get("username") or None,
        unquote(password) or options.get("password") or None,
    )


def _place(scheme: str, place: str) -> tuple[Topology, tuple[Server, ...], str, str]:
    """Return the topology, the servers, the service, and the database as the path has it."""
    if scheme == "unix":
        if not place.startswith("/"):
            raise _wrong("unix:// followed by the absolute path of a socket")
        return Topology.STANDALONE, (Server(unquote(place), 0),), "", "0"
    hosts, _, path = place.partition("/")
    if scheme.endswith("+sentinel"):
        service, _, db = path.partition("/")
        if not service:
            raise _wrong("redis+sentinel://host:26379,.../name-of-the-master[/db]: the name is missing")
        return Topology.SENTINEL, _servers(hosts, _SENTINEL_PORT), unquote(service), db or "0"
    if scheme.endswith("+cluster"):
        return Topology.CLUSTER, _servers(hosts, _PORT), "", path or "0"
    servers = _servers(hosts, _PORT)
    if len(servers) > 1:
        raise _wrong(f"one host; several are for {scheme}+cluster:// and {scheme}+sentinel://")
    return Topology.STANDALONE, servers, "", path or "0"


def _servers(hosts: str, default_port: int) -> tuple[Server, ...]:
    return tuple(dict.fromkeys(_server(host, default_port) for host in hosts.split(",")))


def _server(text: str, default_port: int) -> Server:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _wrong("a URL with IPv6 addresses written as [::1]:6379")
        port = port[1:]
    else:
        host, _, port = text.partition(":")
        if ":" in port:
            raise _wrong("a URL with IPv6 addresses written as [::1]:6379")
    if not port:
        return Server(unquote(host) or "localhost", default_port)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise _wrong("a URL with ports from 1 to 65535")
    return Server(unquote(host) or "localhost", int(port))


def _database(text: str) -> int:
    text = text.strip("/")
    if not text:
        return 0
    if not text.isdecimal():
        raise _wrong("a URL with a database number, 0 or more, in its path")
    return int(text)
