"""
What goes wrong between us and a Redis server: two errors, told apart by whether the server answered.

::

    ConnectorError
    ├── RedisUnavailableError     no answer, or one that means "not now"; another attempt may do
    └── RedisRefusedError         the server answered with an error; the same request gets it again

Messages name the server, and hold neither arguments of a command nor a password.
"""

from __future__ import annotations

import re

from connector_sdk.errors import ConnectorError

__all__ = ["RedisRefusedError", "RedisUnavailableError", "refusal"]

_LONGEST_MESSAGE = 300
#: An error that a script met, as servers before Redis 7 report it: wrapped in an ERR, the code behind a dash.
_INSIDE_A_SCRIPT = re.compile(r"^ERR Error running script .*?-([A-Z]+) ")
#: A script met a key of a slot that is moving to another node: the word for that where a command meets one is TRYAGAIN.
#: It did nothing before: our scripts begin with looking whether that is so.
_ELSEWHERE = "attempted to access a non local key"
_CODE = re.compile(r"^[A-Z][A-Z0-9_]*$")


class RedisUnavailableError(ConnectorError):
    """
    There was no usable answer: no connection, a lost one, no reply in time, or a server that cannot serve now.

    `in_doubt` is true when the request may have been carried out all the same: its bytes were handed to the operating
    system and no reply came.
    """

    def __init__(self, message: str, *, in_doubt: bool = False) -> None:
        self.in_doubt = in_doubt
        super().__init__(message)


class RedisRefusedError(ConnectorError):
    """
    The server answered with an error.

    `code` is its first word ("OOM", "NOPERM", "WRONGTYPE", "ERR", ...), `message` the whole text without arguments.
    `in_doubt` is true when an earlier attempt of the same call got no answer and may have been carried out.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        self.in_doubt = False
        super().__init__(message)


def refusal(text: str) -> RedisRefusedError:
    """Return the error for the error reply *text* (without the leading dash)."""
    inside = _INSIDE_A_SCRIPT.match(text)
    code = inside[1] if inside else text.partition(" ")[0]
    if _ELSEWHERE in text.lower():
        code = "TRYAGAIN"
    # "unknown command ..., with args beginning with: ..." repeats what we sent, and that may be a payload.
    message = text.partition(", with args beginning with")[0].replace("\r", " ").replace("\n", " ")
    return RedisRefusedError(code if _CODE.match(code) else "ERR", message[:_LONGEST_MESSAGE])
