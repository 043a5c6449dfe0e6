"""
What goes wrong between us and a PostgreSQL: two errors, told apart by whether another attempt may do.

::

    ConnectorError
    ├── PostgresUnavailableError     no answer, or one that means "not now"; another attempt may do
    └── PostgresRefusedError         the server answered with an error; the same request gets it again

Messages name the server, and hold neither values of a statement nor a password.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connector_sdk.errors import ConnectorError

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresRefusedError", "PostgresUnavailableError", "failure_of"]

_LONGEST_MESSAGE: Final = 300
#: SQLSTATEs that mean "not now", and that nothing was done: read-only (a standby, or one that was a primary), too many
#: connections, "is starting up", cancelled, a lock that was not free in time, conflicts with others.
_NOT_NOW: Final = frozenset({"25006", "53300", "57P03", "57014", "55P03"})
_CONFLICTS: Final = frozenset({"40001", "40P01"})
#: Classes and SQLSTATEs of a connection that ends: whether the request was done before nobody can tell.
_ENDING: Final = ("08", "57P")
_FULL: Final = frozenset({"53100", "53200"})
#: A wrong user, password or right, or no such database.
_LOGIN: Final = ("28", "3D", "42501")


class PostgresUnavailableError(ConnectorError):
    """
    There was no usable answer: no connection, a lost one, no reply in time, or a server that cannot serve now.

    `in_doubt` is true when the request may have been carried out all the same. `conflict` is true when the server undid it
    because others were at the same rows: the same request may be sent again at once.
    """

    def __init__(self, message: str, *, in_doubt: bool = False, conflict: bool = False) -> None:
        self.in_doubt = in_doubt
        self.conflict = conflict
        super().__init__(message)


class PostgresRefusedError(ConnectorError):
    """
    The server answered with an error, and has undone the request.

    `code` is the SQLSTATE ("42501", "53100", ...); `full` says that the server has no disk or memory left, `is_login` that
    user, password, database or rights are not as they should be. `in_doubt` is true when an earlier attempt of the same
    call got no answer and may have been carried out.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.full = code in _FULL
        self.is_login = code.startswith(_LOGIN)
        self.in_doubt = False
        super().__init__(message)


def failure_of(error: psycopg.Error, place: object, *, sent: bool) -> PostgresUnavailableError | PostgresRefusedError:
    """
    Return what *error* of psycopg means, for the server called *place*; *sent*: part of a request may have gone out.

    An error that is neither the server's nor the connection's, but a mistake in the program, is raised.
    """
    code = error.sqlstate
    text = (error.diag.message_primary or "") if code else str(error)
    message = f"{place}: {' '.join((text or str(error)).split())[:_LONGEST_MESSAGE]}"
    if code is None:
        if type(error).__name__ not in {"OperationalError", "InterfaceError", "ConnectionTimeout", "DatabaseError"}:
            raise error
        return PostgresUnavailableError(message, in_doubt=sent)
    if code in _NOT_NOW or code in _CONFLICTS:
        return PostgresUnavailableError(message, conflict=code in _CONFLICTS)
    if code.startswith(_ENDING):
        return PostgresUnavailableError(message, in_doubt=sent)
    return PostgresRefusedError(code, message)
