"""
A small searchable index of what a connector sent: SQLite with FTS5, in a file or in memory.

Keyed by event id, so an event that comes twice (at least once, as every buffer delivers) is found and counted, never
doubled. It is what the demo fills; a program of yours would put its own search engine or vector store here.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from connector_sdk.errors import ConfigurationError
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["Added", "Hit", "IndexCounts", "PageCount", "SearchIndex"]

_APPLICATION_ID: Final = 0x434E4358  # "CNCX": tells our file from another program's
_WORDS: Final = re.compile(r"\w+")
_MAX_WORDS: Final = 32
_CACHE: Final = 32 * 1024 * 1024  # bytes of the file in memory, at most
_LOG: Final = 32 * 1024 * 1024  # bytes that are written ahead before they are put in their places
_PAGE: Final = 4096
_SCHEMA: Final = """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        event_id TEXT UNIQUE  -- the SSE id; NULL without one, and NULLs are all different
    );
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY,
        event INTEGER NOT NULL REFERENCES events (id),
        position INTEGER NOT NULL,  -- of the action within its event
        kind TEXT NOT NULL,  -- 'action', 'summary' or 'other'
        session_id TEXT,
        at REAL NOT NULL,  -- Unix seconds
        page TEXT NOT NULL,  -- canonical URL, '' without one
        title TEXT NOT NULL,
        body TEXT NOT NULL,
        UNIQUE (event, position)
    );
    CREATE INDEX documents_page ON documents (page) WHERE kind = 'action';
    CREATE TABLE tally (repeated INTEGER NOT NULL);
    INSERT INTO tally VALUES (0);
    CREATE VIRTUAL TABLE words USING fts5 (title, body, content='documents', content_rowid='id');
"""


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What one `add` did: events new to the index, and events that it had already."""

    events: int
    repeated: int


class IndexCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the index. `repeated` events came again and were not stored a second time."""

    events: int
    actions: int
    summaries: int
    others: int
    repeated: int


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One document found. `rank` is FTS5's bm25: the lower, the better."""

    kind: str
    session_id: str | None
    title: str
    page: str
    at: float
    snippet: str
    rank: float


class PageCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many actions happened on a page."""

    page: str
    actions: int


class SearchIndex:
    """
    Documents made from payloads, found by their words. Thread-safe; one process at a time.

    Args:
        path: the file; None is an index in memory. A file that exists must be empty or an index of ours.

    Raises ConfigurationError when the file is something else or cannot be opened.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            # Transactions are begun by hand: sqlite3's own are not around SELECT, and differ between versions.
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        except sqlite3.Error as error:
            raise _unusable(path, str(error)) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, str(error)) from error
        except ConfigurationError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # With what is SQLite's own (2 MB, 4 MB) a large index would be read and copied again for each batch that comes.
        self._db.execute(f"PRAGMA cache_size = -{_CACHE // 1024}")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {_LOG // _PAGE}")
        mark = self._db.execute("PRAGMA application_id").fetchone()[0]
        if mark == _APPLICATION_ID:
            return
        if mark or self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise _unusable(self.path, "it is the database of another program")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID}; COMMIT;")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            self._db.close()

    def add(self, payloads: Iterable[Payload]) -> Added:
        """
        Store every payload in one transaction: after an error none of them is in.

        An action is a document of its own, found by its title and its `to_text()`; so is a summary. A payload whose
        `event_id` is in the index already is counted as repeated and changes nothing. One without an id cannot be
        recognised, and is stored each time.
        """
        stored = repeated = 0
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for payload in payloads:
                    if self._add_one(payload):
                        stored += 1
                    else:
                        repeated += 1
                self._db.execute("UPDATE tally SET repeated = repeated + ?", (repeated,))
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        return Added(events=stored, repeated=repeated)

    def _add_one(self, payload: Payload) -> bool:
        entry = self._db.execute("INSERT INTO events (event_id) VALUES (?) ON CONFLICT DO NOTHING", (payload.event_id,))
        if not entry.rowcount:
            return False
        for position, (kind, at, page, title, body) in enumerate(_documents(payload)):
            row = self._db.execute(
                "INSERT INTO documents (event, position, kind, session_id, at, page, title, body) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                # SQLite stores NaN as NULL; a clock gone mad must not cost the event
                (entry.lastrowid, position, kind, payload.session_id, 0.0 if math.isnan(at) else at, page, title, body),
            )
            self._db.execute("INSERT INTO words (rowid, title, body) VALUES (?, ?, ?)", (row.lastrowid, title, body))
        return True

    def search(self, query: str, limit: int = 10) -> list[Hit]:
        """
        Find documents by their words, the best first; what counts as a word is FTS5's `unicode61`.

        Documents with all the words come first; when there are none, those with any. A query without a word finds
        nothing; no query is a syntax error.
        """
        words = [f'"{word}"' for word in _WORDS.findall(query)[:_MAX_WORDS]]
        if not words:
            return []
        return self._match(" AND ".join(words), limit) or self._match(" OR ".join(words), limit)

    def _match(self, expression: str, limit: int) -> list[Hit]:
        with self._lock:
            rows = self._db.execute(
                "SELECT kind, session_id, d.title, page, at, snippet(words, 1, '[', ']', '…', 16), bm25(words, 2.0, 1.0) "
                "FROM words JOIN documents AS d ON d.id = words.rowid "
                "WHERE words MATCH ? ORDER BY 7, d.id LIMIT ?",
                (expression, limit),
            ).fetchall()
        names = ("kind", "session_id", "title", "page", "at", "snippet", "rank")
        return [Hit(**dict(zip(names, row, strict=True))) for row in rows]

    def busiest_pages(self, limit: int = 10) -> list[PageCount]:
        """The pages with the most actions, ties by name."""
        with self._lock:
            rows = self._db.execute(
                "SELECT page, count(*) FROM documents WHERE kind = 'action' GROUP BY page ORDER BY 2 DESC, 1 LIMIT ?",
                (limit,),
            ).fetchall()
        return [PageCount(page=page, actions=actions) for page, actions in rows]

    def known(self, event_ids: Iterable[str]) -> set[str]:
        """Those of *event_ids* that are in the index."""
        with self._lock:
            known = {row[0] for row in self._db.execute("SELECT event_id FROM events")}
        return known.intersection(event_ids)

    def counts(self) -> IndexCounts:
        """Count what is in the index, by reading it: nothing here is remembered from `add`, except `repeated`."""
        with self._lock:
            kinds = dict(self._db.execute("SELECT kind, count(*) FROM documents GROUP BY kind").fetchall())
            events, repeated = self._db.execute("SELECT (SELECT count(*) FROM events), repeated FROM tally").fetchone()
        return IndexCounts(
            events=events,
            actions=kinds.get("action", 0),
            summaries=kinds.get("summary", 0),
            others=kinds.get("other", 0),
            repeated=repeated,
        )


def _documents(payload: Payload) -> Iterator[tuple[str, float, str, str, str]]:
    """Kind, time, page, title and body of each document that *payload* makes."""
    if isinstance(payload, ActionsPayload):
        for action in payload.actions:
            yield "action", action.timestamp_start, action.canonical_url, action.title, action.to_text()
    elif isinstance(payload, SummaryPayload):
        yield "summary", payload.forwarded_at, "", "Summary", payload.to_text()
    else:
        yield "other", payload.forwarded_at, "", payload.type, payload.to_text()


def _unusable(path: Path | str | None, problem: str) -> ConfigurationError:
    return ConfigurationError("index", str(path), f"a new file, an empty one or an earlier index ({problem})")
