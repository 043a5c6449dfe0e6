"""Arguments that every face of a buffer checks alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from msgspec import UNSET

from connector_sdk.buffers.dead_letters import Evidence
from connector_sdk.buffers.store import SessionFilter
from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import ActionsPayload, SummaryPayload

__all__ = [
    "LARGEST_REQUEST",
    "check_evidence",
    "check_flag",
    "check_holder",
    "check_limit",
    "check_names",
    "check_session",
    "check_span",
    "check_types",
    "check_wanted_types",
    "names_of",
]

#: Events that a store is asked for in one step, at most.
LARGEST_REQUEST: Final = 1_000_000
_TEN_YEARS: Final = 10 * 366 * 86_400.0
_LONGEST_HOLDER: Final = 200


def names_of(*, actions: bool, summaries: bool) -> frozenset[str]:
    """Return the type names that the flags of `drain_by_type` mean."""
    return frozenset(kind.type for kind, wanted in ((ActionsPayload, actions), (SummaryPayload, summaries)) if wanted)


def check_limit(option: str, limit: int | None) -> int | None:
    """Return *limit* if it is None or a whole number of 0 or more, else raise ConfigurationError."""
    return None if limit is None else check_integer(option, limit, minimum=0)


def check_flag(option: str, value: object) -> bool:
    """Return *value* if it is True or False, else raise ConfigurationError."""
    if isinstance(value, bool):
        return value
    raise ConfigurationError(option, value, "True or False")


def check_names(option: str, names: Iterable[str]) -> frozenset[str]:
    """Return *names* if they are several strings (one string is not), else raise ConfigurationError."""
    found = () if isinstance(names, str) else tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in found):
        raise ConfigurationError(option, names, "a collection of strings")
    return frozenset(found)


def check_types(types: Collection[str]) -> frozenset[str]:
    """Return *types* if it is a collection of names (one string is not), else raise ConfigurationError."""
    if isinstance(types, str) or not isinstance(types, Collection) or not all(isinstance(name, str) for name in types):
        raise ConfigurationError("types", types, "a collection of type names such as {'actions'}")
    return frozenset(types)


def check_wanted_types(types: Collection[str] | None) -> frozenset[str] | None:
    """Return *types* if it is None, for every type, or a collection of one name or more, else raise ConfigurationError."""
    if types is None:
        return None
    names = check_types(types)
    if not names:
        raise ConfigurationError("types", types, "one type name or more, such as {'actions'}, or None for every type")
    return names


def check_session(session_id: SessionFilter) -> SessionFilter:
    """Return *session_id* if it is a text, None or UNSET, else raise ConfigurationError."""
    if session_id is not UNSET and session_id is not None and not isinstance(session_id, str):
        raise ConfigurationError("session_id", session_id, "a session's id, or None for events without one")
    return session_id


def check_span(option: str, value: object, *, above: float | None = None) -> float:
    """Return *value* if it is a number of seconds (0 or more, or above *above*) up to ten years, else ConfigurationError."""
    seconds = check_seconds(option, value, above=above)
    if seconds > _TEN_YEARS:  # a store adds it to its clock, in whole milliseconds
        raise ConfigurationError(option, value, f"at most {_TEN_YEARS:.0f} seconds, ten years")
    return seconds


def check_evidence(error: BaseException | Evidence) -> BaseException | Evidence:
    """Return *error* if it says why an event is given up: an exception, or evidence of 1 attempt or more."""
    if isinstance(error, BaseException) or (isinstance(error, Evidence) and error.attempts):
        return error
    raise ConfigurationError("error", error, "an exception, or Evidence with at least one attempt")


def check_holder(holder: object) -> str:
    """Return what the names of the leases of *holder* begin with, "" for None."""
    if holder is None:
        return ""
    if not isinstance(holder, str) or not 0 < len(holder) <= _LONGEST_HOLDER or not holder.isprintable():
        raise ConfigurationError("holder", holder, f"None or a printable text of 1 to {_LONGEST_HOLDER} characters")
    return f"{len(holder)}:{holder}:"
