"""What is kept of an error as evidence: its type, its text, and where it was raised, each bounded."""

from __future__ import annotations

import hashlib
import traceback

__all__ = ["describe_error", "message_of", "traceback_digest_of", "type_name_of"]


def type_name_of(error: BaseException) -> str:
    """Return the qualified name of the exception's class; builtins without their module."""
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def message_of(error: BaseException, longest: int) -> str:
    """Return the text of *error*, cut at *longest* characters; never raises."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an error that cannot even be told must not hide that there was one
        text = f"(its text could not be made: {type(broken).__name__})"
    return text if len(text) <= longest else text[: longest - 1] + "…"


def traceback_digest_of(error: BaseException) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of the frames: equal for equal places, "" without a traceback."""
    frames = [
        (frame.f_code.co_filename, frame.f_code.co_name, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return hashlib.sha256(repr(frames).encode(errors="backslashreplace")).hexdigest()[:12] if frames else ""


def describe_error(error: BaseException, longest: int) -> tuple[str, str, str]:
    """Return the type, the message of up to *longest* characters and the digest of the traceback."""
    return type_name_of(error), message_of(error, longest), traceback_digest_of(error)
