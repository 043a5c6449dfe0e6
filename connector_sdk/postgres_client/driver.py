"""The driver, psycopg 3: imported when it is needed, and named when it is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connector_sdk.errors import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["load_psycopg"]


def load_psycopg(option: str = "dsn") -> ModuleType:
    """Return the module psycopg; raises ConfigurationError for *option* when it is not installed, or cannot work."""
    try:
        import psycopg  # noqa: PLC0415 - only who uses PostgreSQL needs it
    except ImportError as error:
        raise ConfigurationError(
            option,
            None,
            f"given where psycopg 3 is installed (pip install 'connector_sdk[postgres]'; {str(error).splitlines()[0]})",
            secret=True,
        ) from error
    return psycopg
