"""
Any web server's access log in combined format (Apache `combined`, nginx's default), read as a stream of requests.

A line is either a `Request` or a `BadLine` with the reason; nothing a line contains raises. Lines that go on after the
user agent (request times, forwarded addresses), that end before the referrer (the older *common* format) or begin with
`host:port` (`vhost_combined`) are read too.
"""

from __future__ import annotations

import calendar
import datetime
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import IO, Final

import msgspec

from connector_sdk.errors import ConfigurationError

__all__ = ["AccessLog", "BadLine", "NotAnAccessLogError", "Request", "parse_line"]

MAX_LINE: Final = 64 * 1024  # bytes; a longer line is no request that a server would have accepted
EXAMPLE_LENGTH: Final = 120
EXPECTED: Final = '203.0.113.7 - - [17/May/2015:10:05:03 +0000] "GET /shop HTTP/1.1" 200 5120 "-" "Mozilla/5.0"'
#: Lines that may fail before the first one parses; then the file is called no log.
PATIENCE: Final = 10_000

_QUOTED: Final = rb'"((?:[^"\\]++|\\.)*+)"'
#: The parts in the order of a line; each step names what is wrong when the line stops fitting there.
_HEAD: Final = re.compile(rb"(?:[\w.\-]+:\d{1,5} )?(\S+) \S+ (.+?) \[([^\]]{1,64})\] ", re.DOTALL)
_REQUEST: Final = re.compile(_QUOTED + rb" +", re.DOTALL)
_RESULT: Final = re.compile(rb"(\d{3}) (\d{1,18}|-)(?= |$)")
_VISITOR: Final = re.compile(rb" +" + _QUOTED + rb" +" + _QUOTED + rb"(?= |$)", re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_METHOD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_PROTOCOL: Final = re.compile(r"[Hh][Tt][Tt][Pp]S?/\d+(?:\.\d+)?")
_TIME: Final = re.compile(rb"(\d{2})/([A-Za-z]{3})/(\d{4}):(\d{2}):(\d{2}):(\d{2}) ([+-])(\d{2})(\d{2})")
_MONTHS: Final = {name.encode(): number for number, name in enumerate(calendar.month_abbr) if number}
_CONTROL: Final = {ord("n"): b"\n", ord("t"): b"\t", ord("r"): b"\r", ord("b"): b"\b", ord("v"): b"\v", ord("f"): b"\f"}


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request as the server logged it. What the log gives as "-" is None."""

    client: str  #: the address, IPv4 or IPv6, or a host name
    user: str | None = None  #: the name the user logged in with (HTTP authentication)
    time: float  #: Unix seconds; the zone of the line is taken into account
    method: str
    path: str  #: as it was requested, query included; an absolute URL from those who take us for a proxy
    protocol: str | None = None
    status: int
    size: int | None = None  #: bytes of the answer's body
    referrer: str | None = None
    user_agent: str | None = None
    line: int = 0  #: the line's number in its file, from 1


class BadLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line that is no request: its number from 1, the reason in words, the first 120 characters."""

    line: int
    reason: str
    start: str


class NotAnAccessLogError(ConfigurationError):
    """The file is no access log: none of its lines parses, it is empty, or it cannot be read to its end."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__("--from", str(path), "an access log in combined format")
        self.args = (f"{path} is no access log in combined format: {problem}; expected e.g.: {EXPECTED}",)


class AccessLog:
    """
    The requests of one log file, in the order of its lines. Plain or gzip, told apart by the first bytes.

    Iterate it as often as you like; each time the file is read anew with one line in memory and the counts start over.
    `lines = parsed + failed + blank` holds at any moment.

    Args:
        path: the file.
        examples: how many lines that do not parse are kept in `bad_lines`. Default 20.

    Iterating raises NotAnAccessLogError when the file is empty, when none of its first 10,000 lines (or of all, if
    fewer) parses, or when it is a damaged gzip file; OSError when it cannot be opened or read.
    """

    def __init__(self, path: Path | str, *, examples: int = 20) -> None:
        self.path = Path(path)
        self._examples = examples
        self._start_over()

    def __iter__(self) -> Iterator[Request]:
        self._start_over()
        with closing(_open_maybe_gzip(self.path)) as stream:
            try:
                for line in _bounded_lines(stream):
                    request = self._take(line)
                    if request is not None:
                        yield request
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise NotAnAccessLogError(self.path, f"the gzip data is damaged after line {self.lines}") from error
        self._refuse_if_no_log()

    def _start_over(self) -> None:
        #: Lines read.
        self.lines = 0
        #: Lines that are requests.
        self.parsed = 0
        #: Lines that are not.
        self.failed = 0
        #: Lines with nothing on them.
        self.blank = 0
        #: The first lines that did not parse.
        self.bad_lines: list[BadLine] = []

    def _take(self, line: bytes) -> Request | None:
        self.lines += 1
        if not line.strip():
            self.blank += 1
            return None
        result = parse_line(line, self.lines)
        if isinstance(result, Request):
            self.parsed += 1
            return result
        self.failed += 1
        if len(self.bad_lines) < max(1, self._examples):  # the error message needs one
            self.bad_lines.append(result)
        if not self.parsed and self.failed >= PATIENCE:
            self._refuse_if_no_log()
        return None

    def _refuse_if_no_log(self) -> None:
        if self.parsed:
            return
        if not self.bad_lines:
            raise NotAnAccessLogError(self.path, "it is empty")
        first = self.bad_lines[0]
        shown = f"first line: {first.start!r} ({first.reason})"
        if any("\0" in bad.start for bad in self.bad_lines):
            shown = f"it is a binary file that begins {first.start[:16]!r}"
        raise NotAnAccessLogError(self.path, f"0 of {self.failed} lines parse; {shown}")


def parse_line(line: bytes, number: int = 0) -> Request | BadLine:
    r"""
    Read one line of a log; whatever the bytes are, nothing raises.

    Quoted fields are unescaped (`\"`, `\\`, `\xhh`, as Apache and nginx write them) and read as UTF-8 with replacement.
    A request counts when it is `METHOD path [protocol]` and the path is one: it begins with "/", is "*", an absolute
    URL, or CONNECT's `host:port`. What a port scanner or a broken TLS handshake leaves ("-", `\x16\x03\x01`) is no
    request: it names nothing that could have been visited.
    """
    line = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    try:
        return _parse(line, number)
    except _Unreadable as problem:
        start = _shown(line)
        return BadLine(line=number, reason=str(problem), start=start)


class _Unreadable(Exception):  # noqa: N818 - a jump out of the parser, not an error for anybody
    """The line does not parse; the text says why."""


def _parse(line: bytes, number: int) -> Request:
    if len(line) > MAX_LINE:
        raise _Unreadable(f"longer than {MAX_LINE} bytes")
    head = _match(_HEAD, line, 0, 'does not begin with "address ident user [time]"')
    asked = _match(_REQUEST, line, head.end(), "has no quoted request after the time")
    result = _match(_RESULT, line, asked.end(), "has no status and size after the request")
    referrer = user_agent = None
    if line[result.end() :].lstrip(b" ").startswith(b'"'):
        visitor = _match(_VISITOR, line, result.end(), "is cut off: referrer or user agent has no closing quote")
        referrer, user_agent = _optional(visitor[1]), _optional(visitor[2])
    method, path, protocol = _split_request(_text(asked[1]))
    return Request(
        client=_text(head[1]),
        user=_optional(head[2]),
        time=_unix_time(head[3]),
        method=method,
        path=path,
        protocol=protocol,
        status=int(result[1]),
        size=None if result[2] == b"-" else int(result[2]),
        referrer=referrer,
        user_agent=user_agent,
        line=number,
    )


def _match(pattern: re.Pattern[bytes], line: bytes, position: int, problem: str) -> re.Match[bytes]:
    found = pattern.match(line, position)
    if found is None:
        raise _Unreadable(problem)
    return found


def _split_request(text: str) -> tuple[str, str, str | None]:
    method, _, rest = text.partition(" ")
    path, _, last = rest.rpartition(" ")
    protocol: str | None = last
    if not _PROTOCOL.fullmatch(last):  # HTTP/0.9, or a path with spaces that nobody encoded
        path, protocol = rest, None
    is_path = path.startswith("/") or path == "*" or "://" in path or (method.upper() == "CONNECT" and bool(path))
    if not is_path or not _METHOD.fullmatch(method):
        raise _Unreadable("the request is no METHOD path")
    return method, path, protocol


@lru_cache(maxsize=1024)  # neighbours share their second
def _unix_time(text: bytes) -> float:
    found = _TIME.fullmatch(text)
    month = _MONTHS.get(found[2].title()) if found else None
    if found is None or month is None:
        raise _Unreadable("the time is no dd/Mon/yyyy:hh:mm:ss +zzzz")
    day, year, hour, minute, second, zone_hours, zone_minutes = (int(found[n]) for n in (1, 3, 4, 5, 6, 8, 9))
    try:
        midnight = datetime.datetime(year, month, day, tzinfo=datetime.UTC)
    except ValueError:
        raise _Unreadable("there is no such day") from None
    if hour > 23 or minute > 59 or second > 60 or zone_hours > 14 or zone_minutes > 59:  # 60: a leap second
        raise _Unreadable("there is no such time of day")
    zone = (zone_hours * 60 + zone_minutes) * 60 * (-1 if found[7] == b"-" else 1)
    return midnight.timestamp() + hour * 3600 + minute * 60 + second - zone


def _text(raw: bytes) -> str:
    if b"\\" in raw:
        raw = _ESCAPE.sub(_unescape, raw)
    return raw.decode("utf-8", "replace")


def _unescape(escape: re.Match[bytes]) -> bytes:
    if escape[1] is not None:
        return bytes([int(escape[1], 16)])
    letter = escape[2]
    return _CONTROL.get(letter[0], letter if letter in b'"\\' else b"\\" + letter)


def _optional(raw: bytes) -> str | None:
    return None if raw == b"-" else _text(raw)


def _shown(line: bytes) -> str:
    return line[: 4 * EXAMPLE_LENGTH].decode("utf-8", "replace")[:EXAMPLE_LENGTH]


def _open_maybe_gzip(path: Path) -> io.BufferedIOBase:
    stream = path.open("rb")
    try:
        is_gzip = stream.peek(2).startswith(b"\x1f\x8b")  # a look ahead, not a seek: the file may be a pipe
    except BaseException:
        stream.close()
        raise
    return _OwningGzip(stream) if is_gzip else stream


class _OwningGzip(gzip.GzipFile):
    """GzipFile leaves a file object that it was given open; this one closes it."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._raw_stream = raw

    def close(self) -> None:
        super().close()
        self._raw_stream.close()


def _bounded_lines(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield lines; of one that is too long only the start (longer than MAX_LINE), whatever its length."""
    while line := stream.readline(MAX_LINE + 2):
        yield line
        while len(line) >= MAX_LINE + 2 and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE + 2)
