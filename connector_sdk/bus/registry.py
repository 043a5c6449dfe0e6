"""
Typed events: classes under a name and a version, and how the payloads of older versions become those of today.

A registry knows *names* (the `type` of an event). An event of a registered name has an object of the registered class as its
payload; one of an older version is brought up to date first, by *upcasters* that each turn the plain dict of one version into
that of the next. `ActionsPayload` and `SummaryPayload` are known to every registry, as "actions" and "summary".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar, overload

import msgspec

from connector_sdk.bus.frozen import decode_plain, encode_value
from connector_sdk.bus.topics import TopicTemplate
from connector_sdk.errors import ConfigurationError, PayloadError, UnknownEventError
from connector_sdk.options import check_integer
from connector_sdk.payloads import ActionsPayload, SummaryPayload, decode_payload, encode_payload

if TYPE_CHECKING:
    from connector_sdk.bus.events import Event

__all__ = ["EventRegistry", "RegisteredEvent", "Upcaster"]

#: Turns the plain payload of one version into that of the next. It gets a dict of its own.
Upcaster: TypeAlias = Callable[[dict[str, object]], dict[str, object]]
ClassT = TypeVar("ClassT", bound=type)

_CLASS = "a dataclass, a msgspec Struct or a pydantic model"


class RegisteredEvent:
    """A class that is registered, and how its objects become JSON and come back. Made by `EventRegistry.register`."""

    def __init__(
        self, cls: type, name: str, version: int, template: TopicTemplate | None, upcasters: Mapping[int, Upcaster]
    ) -> None:
        self.cls = cls
        self.name = name
        self.version = version
        #: Where its events go when nobody says: None without such a topic.
        self.template = template
        self.upcasters = dict(upcasters)
        self._decode: Callable[[bytes], object] | None = _decoder_of(cls, eager=True)

    @property
    def oldest(self) -> int:
        """The oldest version that can be read."""
        return min(self.upcasters, default=self.version)

    def reads(self, version: int | None) -> bool:
        """Whether payloads of *version* can be read; None, when the event says nothing, is 1."""
        return self.oldest <= (1 if version is None else version) <= self.version

    def encode(self, value: object) -> bytes:
        """Return an object of the class as JSON. Raises ConfigurationError for what JSON cannot say."""
        if isinstance(value, ActionsPayload | SummaryPayload):
            try:
                return encode_payload(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise ConfigurationError("payload", type(value), f"something that JSON can say ({error})") from error
        return encode_value("payload", value)

    def build(self, raw: bytes, version: int | None, event_id: str | None) -> object:
        """
        Return the object for *raw*, the JSON of a payload of *version*, which `reads`.

        Raises PayloadError when it does not fit the class. What an upcaster raises passes through.
        """
        if self.cls is ActionsPayload or self.cls is SummaryPayload:
            return decode_payload(raw, event_id=event_id, event_name=self.name)
        current = 1 if version is None else version
        if current < self.version:
            raw = self._upcast(raw, current)
        decode = self._decode or _decoder_of(self.cls, eager=False)
        self._decode = decode
        assert decode is not None
        try:
            return decode(raw)
        except (ValueError, TypeError, RecursionError) as error:  # msgspec's and pydantic's errors are ValueErrors
            reason = f"the payload of {self.name} does not fit {self.cls.__qualname__}: {error}"
            raise PayloadError(reason, raw[:200].decode("utf-8", "replace")) from error

    def _upcast(self, raw: bytes, version: int) -> bytes:
        plain = decode_plain(raw)
        if not isinstance(plain, dict):
            raise PayloadError(
                f"the payload of {self.name} version {version} is no JSON object, so it cannot be upcast"
            )
        for step in range(version, self.version):
            plain = self.upcasters[step](plain)
        return encode_value("payload", plain)

    def same_as(self, other: RegisteredEvent) -> bool:
        """Whether both say the same, so that registering one again changes nothing."""
        topics = [one.template.template if one.template else None for one in (self, other)]
        return (
            self.cls is other.cls
            and (self.name, self.version, self.upcasters) == (other.name, other.version, other.upcasters)
            and topics[0] == topics[1]
        )

    def __repr__(self) -> str:
        return f"RegisteredEvent({self.name!r}, version {self.version}, {self.cls.__qualname__})"


class EventRegistry:
    """
    The event types that an application knows, each a class under a name and a version.

    With *strict* an event of a name that is not registered is an error too; without, its payload is frozen JSON. Register
    before the bus is used; reading is safe from any thread.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._names: dict[str, RegisteredEvent] = {}
        self._classes: dict[type, RegisteredEvent] = {}
        for cls in (ActionsPayload, SummaryPayload):
            self._add(RegisteredEvent(cls, cls.type, 1, None, {}))

    @overload
    def register(
        self,
        cls: ClassT,
        *,
        name: str | None = None,
        version: int = 1,
        topic: str | None = None,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> ClassT: ...

    @overload
    def register(
        self,
        cls: None = None,
        *,
        name: str | None = None,
        version: int = 1,
        topic: str | None = None,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> Callable[[ClassT], ClassT]: ...

    def register(
        self,
        cls: ClassT | None = None,
        *,
        name: str | None = None,
        version: int = 1,
        topic: str | None = None,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> ClassT | Callable[[ClassT], ClassT]:
        """
        Register a dataclass, a msgspec Struct or a pydantic model; also as a decorator, with or without arguments.

        Args:
            cls: the class; returned as it is.
            name: the event type, 1 to 255 characters; the class's name by default.
            version: of the class as it is now, 1 or more; raise it when old payloads no longer fit.
            topic: where its events are published unless told otherwise; may have places, ``orders:{country}``.
            upcasters: for each older version that is still read, what turns its payload into that of the next version. From the
                oldest to the one before *version* none may be missing.

        Raises:
            ConfigurationError: the class cannot be registered, an option cannot work, or the name or the class is
                registered already with something else. Registering the very same again does nothing.
        """

        def add(one: ClassT) -> ClassT:
            self._add(_registration(one, name, version, topic, upcasters or {}))
            return one

        return add if cls is None else add(cls)

    def __repr__(self) -> str:
        return f"<EventRegistry of {', '.join(self.known)}{', strict' if self.strict else ''}>"

    @property
    def known(self) -> tuple[str, ...]:
        """The names that are registered, sorted."""
        return tuple(sorted(self._names))

    def lookup(self, name: str) -> RegisteredEvent | None:
        """Return what is registered under *name*, None for nothing."""
        return self._names.get(name)

    def find(self, cls: type) -> RegisteredEvent | None:
        """Return what *cls* is registered as, None when it is not."""
        return self._classes.get(cls)

    def name_of(self, cls: type) -> str:
        """Return the name that *cls* is registered under. Raises ConfigurationError when it is not."""
        return self.entry_of(cls).name

    def entry_of(self, cls: type) -> RegisteredEvent:
        """Return what *cls* is registered as. Raises ConfigurationError when it is not."""
        found = self._classes.get(cls)
        if found is None:
            raise ConfigurationError(
                "event class", cls, f"registered (EventRegistry.register); registered are: {', '.join(self.known)}"
            )
        return found

    def check(self, event: Event) -> None:
        """
        Raise UnknownEventError when the payload of *event* cannot become an object: look before a handler is called.

        That is a version that is newer than the registered one, or older than its upcasters go; with *strict* also a name
        that is not registered. The payload is not decoded.
        """
        self.entry_for(event.type, event.version)

    def entry_for(self, name: str, version: int | None) -> RegisteredEvent | None:
        """Return what reads *version* of *name*; None: it is plain JSON. Raises UnknownEventError as `check` does."""
        entry = self._names.get(name)
        if entry is None:
            if self.strict:
                raise UnknownEventError(name, version, self.known)
            return None
        if not entry.reads(version):
            raise UnknownEventError(name, version, (f"{name} versions {entry.oldest} to {entry.version}",))
        return entry

    def _add(self, entry: RegisteredEvent) -> None:
        for existing in (self._names.get(entry.name), self._classes.get(entry.cls)):
            if existing is not None and not existing.same_as(entry):
                raise ConfigurationError(
                    "name" if existing.name == entry.name else "cls",
                    f"{entry!r}",
                    f"a name and a class that are registered once each; there is {existing!r} already",
                )
        if entry.name not in self._names:
            self._names[entry.name] = entry
            self._classes[entry.cls] = entry


def _registration(
    cls: object, name: str | None, version: int, topic: str | None, upcasters: Mapping[int, Upcaster]
) -> RegisteredEvent:
    if not isinstance(cls, type) or not _is_supported(cls):
        raise ConfigurationError("cls", cls, _CLASS)
    label = cls.__name__ if name is None else name
    if not isinstance(label, str) or not 1 <= len(label) <= 255:
        raise ConfigurationError("name", name, "text of 1 to 255 characters")
    check_integer("version", version, minimum=1)
    steps = sorted(upcasters)
    if steps and (steps != list(range(steps[0], version)) or steps[0] < 1):
        allowed = f"functions for versions in a row, the last of them {version - 1}, one before the version {version}"
        raise ConfigurationError("upcasters", steps, allowed)
    if not all(callable(step) for step in upcasters.values()):
        raise ConfigurationError("upcasters", steps, "functions that take a dict and return one")
    return RegisteredEvent(cls, label, version, TopicTemplate(topic) if topic is not None else None, upcasters)


def _is_supported(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or issubclass(cls, msgspec.Struct) or _is_model(cls)


def _is_model(cls: type) -> bool:
    # Looked at and not imported: pydantic is the application's, if it has any.
    return callable(getattr(cls, "model_validate", None)) and callable(getattr(cls, "model_dump", None))


def _decoder_of(cls: type, *, eager: bool) -> Callable[[bytes], object] | None:
    """What turns JSON into a *cls*; when *eager*, None if its annotations name what does not exist yet."""
    if _is_model(cls):
        validate_json: Callable[[bytes], object] | None = getattr(cls, "model_validate_json", None)
        if callable(validate_json):
            return validate_json
        validate: Callable[[object], object] = cls.model_validate  # type: ignore[attr-defined]  # _is_model has seen it
        return lambda raw: validate(decode_plain(raw))
    try:
        decode: Callable[[bytes], object] = msgspec.json.Decoder(cls).decode
    except NameError:
        if eager:
            return None
        raise
    except TypeError as error:
        raise ConfigurationError("cls", cls, f"{_CLASS} with fields that JSON can say ({error})") from error
    return decode
