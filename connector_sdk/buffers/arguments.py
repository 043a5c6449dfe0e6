"""Arguments that every face of a buffer checks alike."""

from __future__ import annotations

from collections.abc import Collection

from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_integer
from connector_sdk.payloads import ActionsPayload, SummaryPayload

__all__ = ["check_limit", "check_types", "names_of"]


def names_of(*, actions: bool, summaries: bool) -> frozenset[str]:
    """Return the type names that the flags of `drain_by_type` mean."""
    return frozenset(kind.type for kind, wanted in ((ActionsPayload, actions), (SummaryPayload, summaries)) if wanted)


def check_limit(option: str, limit: int | None) -> int | None:
    """Return *limit* if it is None or a whole number of 0 or more, else raise ConfigurationError."""
    return None if limit is None else check_integer(option, limit, minimum=0)


def check_types(types: Collection[str]) -> frozenset[str]:
    """Return *types* if it is a collection of names (one string is not), else raise ConfigurationError."""
    if isinstance(types, str) or not all(isinstance(name, str) for name in types):
        raise ConfigurationError("types", types, "a collection of type names such as {'actions'}")
    return frozenset(types)
