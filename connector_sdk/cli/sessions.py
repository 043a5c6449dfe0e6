"""
From requests to what a connector sends: sessions, batches of page views that interleave, a summary at each end.

Pure: time is the log's. Nothing is held but the sessions that are open and the requests of the last minute.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote

from connector_sdk.cli.access_log import Request
from connector_sdk.cli.outbox import Outbox, Visit
from connector_sdk.payloads import ActionsPayload, SlimAction, SummaryPayload

__all__ = ["canonical_path", "page_title", "sessionise"]

SESSION_GAP: Final = 30 * 60.0  # seconds without a request that end a session
REORDER_WINDOW: Final = 60.0  # seconds that a line may be late; servers log at the end of a request
MAX_HELD: Final = 100_000  # requests held for reordering, whatever the window
MAX_PAGES: Final = 1_000  # distinct pages that are counted for one summary: a crawler must not grow without bound
MAX_SHOWN: Final = 300  # characters of a path in prose

_IDS: Final = re.compile(
    r"\d+"
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|[0-9a-fA-F]{12,}"
)
_EXTENSION: Final = re.compile(r"(.*?)(\.[A-Za-z][A-Za-z0-9]{0,7})?", re.DOTALL)


def sessionise(
    requests: Iterable[Request],
    *,
    product_id: str = "web",
    gap: float = SESSION_GAP,
    reorder_window: float = REORDER_WINDOW,
    batch_size: int = 5,
    max_wait: float = 10.0,
) -> Iterator[ActionsPayload | SummaryPayload]:
    """
    Turn requests into payloads, in order of time, each request into exactly one action.

    Client address and user agent make a visitor; a visitor's requests with no more than *gap* between them are a
    session. A session's actions leave when *batch_size* of them wait or the oldest has waited *max_wait*, so that
    sessions interleave as on a live connector, and a summary closes each session when *gap* has passed (or the log
    ends). Times are seconds of the log; `forwarded_at` never goes back while the log's clock does not.

    Lines may be late by *reorder_window* and are put in order. One that is later still is taken as it comes; one that
    is later than *gap* means that the clock was set back (or logs were joined in the wrong order): all sessions close,
    and it starts over.
    """
    visitors = _Visitors(product_id, gap, Outbox(batch_size=batch_size, max_wait=max_wait))
    held: list[tuple[float, int, Request]] = []
    newest = float("-inf")
    for number, request in enumerate(requests):
        if request.time < newest - max(gap, reorder_window):
            yield from visitors.take_all(held)
            yield from visitors.close_all()
            newest = request.time
        newest = max(newest, request.time)
        heapq.heappush(held, (request.time, number, request))
        while held and (held[0][0] < newest - reorder_window or len(held) > MAX_HELD):
            yield from visitors.take(heapq.heappop(held)[2])
    yield from visitors.take_all(held)
    yield from visitors.close_all()


class _Visitor:
    """An open session and what its summary will need."""

    __slots__ = ("client", "entry", "errors", "exit", "key", "last", "pages", "requests", "start", "visit")

    def __init__(self, key: tuple[str, str], request: Request, product_id: str) -> None:
        self.key = key
        self.client = request.client
        self.start = self.last = request.time
        self.entry = self.exit = ""
        self.pages: Counter[str] = Counter()
        self.errors: Counter[int] = Counter()
        self.requests = 0
        identity = "\0".join((*key, repr(request.time)))
        session_id = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.visit = Visit(product_id=product_id, session_id=session_id, user_id=request.user)

    def action(self, request: Request) -> SlimAction:
        """The page view of *request*; takes note of it."""
        page = canonical_path(request.path)
        self.last = max(self.last, request.time)
        self.requests += 1
        self.entry = self.entry or page
        self.exit = page
        if page in self.pages or len(self.pages) < MAX_PAGES:
            self.pages[page] += 1
        if request.status >= 400:
            self.errors[request.status] += 1
        return SlimAction(
            title=page_title(request.path),
            description=f"{request.method} {_shortened(_without_query(request.path))} -> {request.status}",
            canonical_url=page,
            type="pageview",
            timestamp_start=request.time,
            timestamp_end=request.time,
            raw_url=request.path,
            session_id=self.visit.session_id,
            user_id=request.user,
        )

    def prose(self) -> str:
        """The summary: how long, how many pages, entry, exit, busiest, errors."""
        who = f"A visit from {self.client}"
        if self.requests == 1:
            failed = "".join(f" It failed with status {status}." for status in self.errors)
            return f"{who}: one request, for {_shortened(self.entry)}.{failed}"
        distinct = f"{MAX_PAGES} or more" if len(self.pages) >= MAX_PAGES else str(len(self.pages))
        pages = "one page" if distinct == "1" else f"{distinct} different pages"
        parts = [
            f"{who}: {self.requests} requests for {pages} in {_duration(self.last - self.start)}.",
            f"It entered at {_shortened(self.entry)} and left at {_shortened(self.exit)}.",
        ]
        busiest, times = self.pages.most_common(1)[0]
        if 1 < times < self.requests:
            parts.append(f"Busiest was {_shortened(busiest)} ({times} times).")
        if self.errors:
            listed = ", ".join(f"{status} ({count})" for status, count in sorted(self.errors.items()))
            number = self.errors.total()
            parts.append(f"{number} {'request' if number == 1 else 'requests'} failed, by status: {listed}.")
        else:
            parts.append("No request failed.")
        return " ".join(parts)


class _Visitors:
    """The sessions that are open, by visitor, the one longest silent first."""

    def __init__(self, product_id: str, gap: float, outbox: Outbox) -> None:
        self._product_id = product_id
        self._gap = gap
        self._outbox = outbox
        self._open: OrderedDict[tuple[str, str], _Visitor] = OrderedDict()

    def take(self, request: Request) -> Iterator[ActionsPayload | SummaryPayload]:
        """Let the time of *request* come, then enter it."""
        yield from self._advance(request.time)
        key = (request.client, request.user_agent or "")
        visitor = self._open.get(key)
        if visitor is not None and request.time - visitor.last > self._gap:
            yield from self._close(
                visitor
            )  # _advance left it open: it stands behind a session that a late line reopened
            visitor = None
        if visitor is None:
            visitor = self._open[key] = _Visitor(key, request, self._product_id)
        self._open.move_to_end(key)
        yield from self._outbox.put(visitor.visit, visitor.action(request), request.time)

    def take_all(self, held: list[tuple[float, int, Request]]) -> Iterator[ActionsPayload | SummaryPayload]:
        """Enter everything that waits to be put in order."""
        while held:
            yield from self.take(heapq.heappop(held)[2])

    def close_all(self) -> Iterator[ActionsPayload | SummaryPayload]:
        """The log (or its clock) ends: close every session, each at the time it would have closed."""
        yield from self._advance(float("inf"))

    def _advance(self, now: float) -> Iterator[ActionsPayload | SummaryPayload]:
        while self._open:
            visitor = next(iter(self._open.values()))
            if visitor.last + self._gap >= now:
                break
            yield from self._close(visitor)
        yield from self._outbox.due(now)

    def _close(self, visitor: _Visitor) -> Iterator[ActionsPayload | SummaryPayload]:
        ends = visitor.last + self._gap
        yield from self._outbox.due(ends)
        del self._open[visitor.key]
        yield from self._outbox.close(visitor.visit, visitor.prose(), ends)


def canonical_path(path: str) -> str:
    """
    The page that a requested path stands for: without query and fragment, `:id` where an id is.

    An id is a segment (or what is before its extension) of digits, a UUID, or 12 and more hexadecimal digits. Doubled
    slashes and one at the end do not make another page: `/shop/order/1842/?tab=2` is `/shop/order/:id`.
    """
    plain = _without_query(path)
    scheme, separator, rest = plain.partition("://")
    if not separator or "/" in scheme:
        scheme, separator, rest = "", "", plain
    rooted = rest.startswith("/")
    named = "/".join(_named(segment) for segment in rest.split("/") if segment)
    return f"{scheme}{separator}{'/' if rooted else ''}{named}" or "/"


def page_title(path: str) -> str:
    """A title made from the path's last segment: `/blog/two-ways?p=1` is "Two ways", `/orders/1842` "Orders 1842"."""
    segments = [segment for segment in _without_query(path).split("/") if segment]
    if not segments:
        return "Home"
    words = segments[-1]
    if _named(words).startswith(":id") and len(segments) > 1:
        words = f"{segments[-2]} {words}"
    text = re.sub(r"[\s_+-]+", " ", unquote(words, errors="replace")).strip()
    return _shortened(text[:1].upper() + text[1:]) or "Home"


def _named(segment: str) -> str:
    found = _EXTENSION.fullmatch(segment)
    stem, extension = (found[1], found[2] or "") if found else (segment, "")
    return f":id{extension}" if _IDS.fullmatch(stem) else segment


def _without_query(path: str) -> str:
    return re.split(r"[?#]", path, maxsplit=1)[0]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds_left} s"
