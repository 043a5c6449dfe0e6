"""The reader of access logs: real lines in every shape, any bytes at all, files that are no log."""

from __future__ import annotations

import datetime
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.cli.access_log import MAX_LINE, AccessLog, BadLine, NotAnAccessLogError, Request, parse_line
from connector_sdk.errors import ConfigurationError

CHROME = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/32.0.1700.77"
GOOD = (
    f'83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a.png HTTP/1.1" 200 203023 "http://example.com/" "{CHROME}"'
)
NOON = 1_431_864_000.0  # 17 May 2015, 12:00 UTC


def read(line: str | bytes) -> Request:
    result = parse_line(line if isinstance(line, bytes) else line.encode())
    assert isinstance(result, Request), result
    return result


def refusal(line: str | bytes) -> str:
    result = parse_line(line if isinstance(line, bytes) else line.encode())
    assert isinstance(result, BadLine), result
    return result.reason


def test_a_plain_line_gives_every_field() -> None:
    assert read(GOOD + "\n") == Request(
        client="83.149.9.216",
        time=1_431_857_103.0,
        method="GET",
        path="/a.png",
        protocol="HTTP/1.1",
        status=200,
        size=203023,
        referrer="http://example.com/",
        user_agent=CHROME,
    )


def test_hyphens_are_none_and_a_user_is_a_user() -> None:
    request = read('::1 - ada [17/May/2015:12:00:00 +0000] "HEAD /x HTTP/2.0" 304 - "-" "-"\r\n')
    assert (request.client, request.user, request.size) == ("::1", "ada", None)
    assert (request.referrer, request.user_agent, request.protocol) == (None, None, "HTTP/2.0")


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("17/May/2015:12:00:00 +0000", NOON),
        ("17/May/2015:14:00:00 +0200", NOON),
        ("17/May/2015:06:30:00 -0530", NOON),
        ("17/May/2015:23:59:60 +0000", NOON + 12 * 3600),  # a leap second is the next minute's first
    ],
)
def test_times_are_unix_seconds_whatever_the_zone(stamp: str, seconds: float) -> None:
    assert read(f'h - - [{stamp}] "GET / HTTP/1.1" 200 1 "-" "-"').time == seconds


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("GET /", ("GET", "/", None)),
        ("GET /a b c HTTP/1.1", ("GET", "/a b c", "HTTP/1.1")),
        ("GET /a b", ("GET", "/a b", None)),
        ("PROPFIND /dav/ HTTP/1.1", ("PROPFIND", "/dav/", "HTTP/1.1")),
        ("M-SEARCH * HTTP/1.1", ("M-SEARCH", "*", "HTTP/1.1")),
        ("CONNECT mail.example.com:443 HTTP/1.1", ("CONNECT", "mail.example.com:443", "HTTP/1.1")),
        ("GET http://example.com/p?q=1 HTTP/1.0", ("GET", "http://example.com/p?q=1", "HTTP/1.0")),
        (r"GET /say/\"hi\"?x=\\ HTTP/1.1", ("GET", '/say/"hi"?x=\\', "HTTP/1.1")),
        (r"GET /caf\xc3\xa9\t\q HTTP/1.1", ("GET", "/café\t\\q", "HTTP/1.1")),
    ],
)
def test_request_lines_that_name_a_page(asked: str, expected: tuple[str, str, str | None]) -> None:
    request = read(f'1.2.3.4 - - [17/May/2015:12:00:00 +0000] "{asked}" 200 1 "-" "-"')
    assert (request.method, request.path, request.protocol) == expected


@pytest.mark.parametrize(
    "asked", ["-", "", r"\x16\x03\x01\x02", "GET", "GET HTTP/1.1", "hello world", "/ GET HTTP/1.1"]
)
def test_request_lines_that_name_none(asked: str) -> None:
    assert "METHOD path" in refusal(f'1.2.3.4 - - [17/May/2015:12:00:00 +0000] "{asked}" 400 0 "-" "-"')


def test_relatives_of_the_format_are_read_too() -> None:
    common = '1.2.3.4 - - [17/May/2015:12:00:00 +0000] "GET / HTTP/1.0" 200 5'
    assert read(common).user_agent is None
    assert read("shop.example.com:443 " + GOOD).client == "83.149.9.216"
    assert read(GOOD + ' "203.0.113.9" 0.004').user_agent == CHROME
    assert read(common + " 0.004").size == 5
    assert read(b"\xef\xbb\xbf" + GOOD.encode()).client == "83.149.9.216"


def test_quotes_and_odd_bytes_in_the_agent() -> None:
    raw = GOOD.replace(CHROME, r"Agent \"007\"").encode() + b""
    assert read(raw).user_agent == 'Agent "007"'
    assert read(GOOD.encode().replace(b"Mozilla", b"Moz\xff\xfeilla")).user_agent == CHROME.replace(
        "Mozilla", "Moz��illa"
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("complete nonsense", "does not begin"),
        ("", "does not begin"),
        (GOOD.replace("[17", "17"), "does not begin"),
        (GOOD.replace('"GET', "GET", 1), "no quoted request"),
        (GOOD.replace("200 203023", "OK"), "no status and size"),
        (GOOD[:-20], "cut off"),
        (GOOD.replace("17/May", "31/Feb"), "no such day"),
        (GOOD.replace("10:05:03", "25:05:03"), "no such time"),
        (GOOD.replace("May", "Mai"), "dd/Mon/yyyy"),
        (GOOD.replace("/a.png", "/" + "a" * MAX_LINE), "longer than"),
    ],
)
def test_what_does_not_parse_says_why(line: str, reason: str) -> None:
    assert reason in refusal(line)


@given(st.binary(max_size=400))
def test_no_bytes_raise(line: bytes) -> None:
    result = parse_line(line, 3)
    assert result.line == 3
    assert isinstance(result, Request) or len(result.start) <= 120


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.booleans())
def test_no_damage_to_a_good_line_raises(where: int, byte: int, insert: bool) -> None:
    raw = GOOD.encode()
    parse_line(raw[:where] + bytes([byte]) + raw[where if insert else where + 1 :])


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def escaped(text: str | None) -> str:
    """As Apache writes a field: quotes and backslashes escaped, control characters and bytes beyond ASCII in hex."""
    if text is None:
        return "-"
    written = (
        "\\" + chr(byte) if byte in b'"\\' else chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
        for byte in text.encode()
    )
    return "".join(written)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    optional = st.none() | TEXT.filter(lambda text: text != "-")
    return Request(
        client=draw(st.ip_addresses().map(str)),
        user=draw(st.none() | st.from_regex(r"[a-z]{2,9}", fullmatch=True)),
        time=float(draw(st.integers(0, 4_000_000_000))),
        method=draw(st.sampled_from(["GET", "POST", "HEAD", "DELETE", "OPTIONS"])),
        path="/" + draw(TEXT),
        protocol=draw(st.sampled_from(["HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3"])),
        status=draw(st.integers(100, 599)),
        size=draw(st.none() | st.integers(0, 10**12)),
        referrer=draw(optional),
        user_agent=draw(optional),
    )


@given(requests(), st.integers(-14 * 60, 14 * 60))
def test_a_request_written_as_a_line_is_read_back(request: Request, zone: int) -> None:
    timezone = datetime.timezone(datetime.timedelta(minutes=zone))
    local = datetime.datetime.fromtimestamp(request.time, timezone)
    line = (
        f"{request.client} - {request.user or '-'} [{local:%d/%b/%Y:%H:%M:%S %z}] "
        f'"{request.method} {escaped(request.path)} {request.protocol}" {request.status} '
        f'{"-" if request.size is None else request.size} "{escaped(request.referrer)}" "{escaped(request.user_agent)}"\n'
    )
    assert read(line) == request


def write(tmp_path: Path, data: bytes, name: str = "access.log") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_a_file_is_counted_to_the_last_line(tmp_path: Path) -> None:
    data = b"\n".join([GOOD.encode(), b"", b"bad one", GOOD.encode(), b"  ", b"bad two \xff" + b"x" * 300])
    log = AccessLog(write(tmp_path, data), examples=1)
    for _ in range(2):  # each pass counts anew
        assert [request.line for request in log] == [1, 4]
        assert (log.lines, log.parsed, log.failed, log.blank) == (6, 2, 2, 2)
        assert log.bad_lines == [
            BadLine(line=3, reason='does not begin with "address ident user [time]"', start="bad one")
        ]


@pytest.mark.parametrize("name", ["access.log.gz", "no-extension"])
def test_gzip_is_known_by_its_bytes(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, gzip.compress(f"{GOOD}\n".encode() * 3), name)
    assert len(list(AccessLog(path))) == 3


def test_a_line_without_end_is_one_bad_line(tmp_path: Path) -> None:
    data = GOOD.encode() + b"\n" + b"x" * (3 * MAX_LINE + 7) + b"\n" + GOOD.encode()
    log = AccessLog(write(tmp_path, data))
    assert [request.line for request in log] == [1, 3]
    assert (log.lines, log.failed) == (3, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (b'{"not": "a log"}\nat all\n', '0 of 2 lines parse; first line: \'{"not": "a log"}\''),
        (b"\x7fELF\x00\x01" * 500, "it is a binary file that begins"),
        (gzip.compress(GOOD.encode() * 100, mtime=0)[:40], "the gzip data is damaged"),
        (gzip.compress(b"nothing\n", mtime=0), "0 of 1 lines parse"),
    ],
)
def test_a_file_that_is_no_log_is_refused_clearly(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(NotAnAccessLogError, match="no access log in combined format") as caught:
        list(AccessLog(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)


def test_a_large_file_that_is_no_log_is_refused_before_its_end(tmp_path: Path) -> None:
    log = AccessLog(write(tmp_path, b"words\n" * 200_000))
    with pytest.raises(NotAnAccessLogError):
        list(log)
    assert log.lines == 10_000


@pytest.mark.parametrize("spoil", [lambda path: path / "missing", lambda path: path])
def test_a_file_that_cannot_be_opened_is_an_os_error(tmp_path: Path, spoil: Callable[[Path], Path]) -> None:
    with pytest.raises(OSError, match=r"No such file|directory"):
        list(AccessLog(spoil(tmp_path)))
