"""The options of a client: argument, then environment, then default; checked before any I/O."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from connector_sdk.client.checkpoint import CheckpointStore
from connector_sdk.errors import ConfigurationError
from connector_sdk.leadership import Leadership
from connector_sdk.observe import redact_url
from connector_sdk.options import check_choice, check_integer, check_seconds

__all__ = ["ENVIRONMENT", "ClientOptions", "Default", "DefaultInt", "OverflowPolicy", "Token", "resolve"]

OverflowPolicy: TypeAlias = Literal["drop_newest", "drop_oldest", "block"]
Token: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]

#: What the client may do with an event when its queue is full.
OVERFLOW_POLICIES: Final[tuple[OverflowPolicy, ...]] = ("drop_newest", "drop_oldest", "block")


class Default(float):
    """A default in a signature: a number that tells "not given" from the same number given."""


class DefaultInt(int):
    """A whole default, see Default."""


#: Each option that an environment variable can set.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "url": "CONNECTOR_URL",
    "token": "CONNECTOR_TOKEN",
    "max_queue_size": "CONNECTOR_MAX_QUEUE_SIZE",
    "overflow": "CONNECTOR_OVERFLOW",
    "session_concurrency": "CONNECTOR_SESSION_CONCURRENCY",
    "connect_timeout": "CONNECTOR_CONNECT_TIMEOUT",
    "read_timeout": "CONNECTOR_READ_TIMEOUT",
    "initial_backoff": "CONNECTOR_INITIAL_BACKOFF",
    "max_backoff": "CONNECTOR_MAX_BACKOFF",
    "max_retries": "CONNECTOR_MAX_RETRIES",
    "healthy_after": "CONNECTOR_HEALTHY_AFTER",
    "max_event_bytes": "CONNECTOR_MAX_EVENT_BYTES",
    "max_threads": "CONNECTOR_MAX_THREADS",
}


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Checked options. The repr shows no secret."""

    url: str
    token: Token
    max_queue_size: int
    overflow: OverflowPolicy
    session_concurrency: int
    connect_timeout: float
    read_timeout: float
    initial_backoff: float
    max_backoff: float
    max_retries: int | None
    healthy_after: float
    max_event_bytes: int
    max_threads: int
    checkpoint: CheckpointStore | None
    leader: Leadership | None
    http_client: httpx.AsyncClient | None

    @property
    def stream(self) -> str:
        """The URL as logs and checkpoints name it: without user, password, query and fragment."""
        return redact_url(self.url).rstrip("…").rstrip("?")

    def __repr__(self) -> str:
        return f"ClientOptions(url={redact_url(self.url)!r})"


def resolve(given: Mapping[str, object], environ: Mapping[str, str] | None = None) -> ClientOptions:
    """Complete *given* from the environment and check it; ConfigurationError names what is wrong, and where it came from."""
    return _Resolver(given, os.environ if environ is None else environ).options()


ValueT = TypeVar("ValueT")


class _Resolver:
    def __init__(self, given: Mapping[str, object], environ: Mapping[str, str]) -> None:
        self._given = given
        self._environ = environ

    def options(self) -> ClientOptions:
        initial_backoff = self._seconds("initial_backoff", above=0.0)
        max_backoff = self._seconds("max_backoff", above=0.0)
        if max_backoff < initial_backoff:
            raise ConfigurationError("max_backoff", max_backoff, f"{initial_backoff:g} (initial_backoff) or more")
        checkpoint = self._given["checkpoint"]
        if checkpoint is not None and not isinstance(checkpoint, CheckpointStore):
            raise ConfigurationError(
                "checkpoint", checkpoint, "a CheckpointStore such as FileCheckpoint(path), or None"
            )
        return ClientOptions(
            url=self._url(),
            token=self._token(),
            max_queue_size=self._integer("max_queue_size", minimum=1),
            overflow=self._overflow(checkpoint),
            session_concurrency=self._integer("session_concurrency", minimum=1),
            connect_timeout=self._seconds("connect_timeout", above=0.0),
            read_timeout=self._seconds("read_timeout", above=0.0),
            initial_backoff=initial_backoff,
            max_backoff=max_backoff,
            max_retries=self._max_retries(),
            healthy_after=self._seconds("healthy_after"),
            max_event_bytes=self._integer("max_event_bytes", minimum=1024),
            max_threads=self._integer("max_threads", minimum=1),
            checkpoint=checkpoint,
            leader=self._leader(),
            http_client=self._http_client(),
        )

    def _value(self, option: str) -> tuple[str, object, bool]:
        """The name to blame, the value, and whether it is text from the environment."""
        given = self._given[option]
        unset = given is None or given == "" or isinstance(given, Default | DefaultInt)
        variable = ENVIRONMENT.get(option)
        if unset and variable and self._environ.get(variable):
            return variable, self._environ[variable], True
        return option, given, False

    def _integer(self, option: str, *, minimum: int) -> int:
        name, value, is_text = self._value(option)
        if is_text:
            try:
                value = int(str(value))
            except ValueError:
                raise ConfigurationError(name, value, f"a whole number, {minimum} or more") from None
        return check_integer(name, value, minimum=minimum)

    def _seconds(self, option: str, *, above: float | None = None) -> float:
        name, value, is_text = self._value(option)
        if is_text:
            try:
                value = float(str(value))
            except ValueError:
                raise ConfigurationError(name, value, "a number of seconds") from None
        return check_seconds(name, value, above=above)

    def _max_retries(self) -> int | None:
        return None if self._value("max_retries")[1] is None else self._integer("max_retries", minimum=0)

    def _overflow(self, checkpoint: object) -> OverflowPolicy:
        name, value, _ = self._value("overflow")
        if value is None:
            return "block" if checkpoint is not None else "drop_newest"
        chosen = check_choice(name, value, OVERFLOW_POLICIES)
        return next(policy for policy in OVERFLOW_POLICIES if policy == chosen)

    def _url(self) -> str:
        name, value, _ = self._value("url")
        allowed = (
            "the http or https address of the stream, for example https://connector.example/stream/my-product "
            f"(or set {ENVIRONMENT['url']})"
        )
        if not isinstance(value, str) or not value:
            raise ConfigurationError(name, value, allowed)
        try:
            parts = urlsplit(value)
            httpx.URL(value).host  # noqa: B018 - a host that is no IDNA name shows only when it is asked for
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except (ValueError, httpx.InvalidURL):
            usable = False
        if not usable:
            raise ConfigurationError(name, _safe(value), allowed)
        return value

    def _token(self) -> Token:
        name, value, _ = self._value("token")
        if callable(value):
            return value
        return check_token(name, value)

    def _leader(self) -> Leadership | None:
        leader = self._given["leader"]
        if leader is None or isinstance(leader, Leadership):
            return leader
        raise ConfigurationError("leader", leader, "a Leadership such as Leader(redis_url, name), or None")

    def _http_client(self) -> httpx.AsyncClient | None:
        client = self._given["http_client"]
        if client is None or isinstance(client, httpx.AsyncClient):
            return client
        raise ConfigurationError("http_client", client, "an httpx.AsyncClient (both clients run on it), or None")


def check_token(name: str, value: object) -> str:
    """Return *value* if it can stand in a header; the error never shows it."""
    if isinstance(value, str) and all(" " <= character <= "~" for character in value) and value == value.strip():
        return value
    raise ConfigurationError(
        name,
        value,
        "a string of printable ASCII without blanks around it, or a function that returns one (asked at each connect)",
        secret=True,
    )


def _safe(url: str) -> str:
    try:
        shown = redact_url(url)
    except ValueError:
        return "<hidden>"
    return "<hidden>" if "@" in shown else shown
