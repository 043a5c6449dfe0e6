"""Requests and replies as the wire has them (RESP2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import hiredis

from connector_sdk.redis_client.errors import RedisRefusedError

__all__ = ["Argument", "Reply", "pack"]

#: What a command can be made of; strings are sent as UTF-8, floats with all their digits.
Argument: TypeAlias = bytes | str | int | float
#: What comes back. Status replies are bytes. An error within a list stays there as a value.
Reply: TypeAlias = "bytes | int | list[Reply] | RedisRefusedError | None"

#: hiredis grows its buffer argument by argument: 200 kB in 100 arguments take it 340 us, and the join below 20 us. With
#: few arguments it is the other way round: 22 of them with one of 2 kB take 2.2 us against 7.9 us.
_FEW = 40


def pack(arguments: Sequence[Argument]) -> bytes:
    """Return the bytes of one request. Raises TypeError for an argument of another type (None and bool too)."""
    if len(arguments) <= _FEW:
        packed: bytes = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]  # their stub means tuple[..., ...]
        return packed
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        raw = argument if argument.__class__ is bytes else _raw(argument)
        parts += (b"$%d\r\n" % len(raw), raw, b"\r\n")
    return b"".join(parts)


def _raw(argument: Argument) -> bytes:
    if isinstance(argument, str):
        return argument.encode()
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        raise TypeError(f"an argument of a command is bytes, str, int or float, not {type(argument).__name__}")
    return repr(argument).encode()
