"""Events of 2 kB that differ as real ones do, the same ones in every process. Only the standard library is needed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Final

__all__ = ["EVENT_BYTES", "event_texts"]

EVENT_BYTES: Final = 2000
_ACTIONS: Final = 5
_WORDS: Final = [
    "account", "add", "all", "and", "basket", "billing", "button", "cancel", "change", "checkout", "click", "close", "confirm",
    "country", "customer", "dashboard", "date", "delete", "details", "discount", "download", "edit", "email", "export", "field",
    "filter", "form", "invoice", "item", "language", "link", "list", "menu", "month", "new", "next", "of", "open", "option",
    "order", "page", "password", "payment", "price", "product", "profile", "project", "quantity", "report", "save", "search",
    "select", "send", "settings", "share", "show", "sign", "size", "sort", "status", "step", "subscription", "tab", "table",
    "team", "the", "to", "total", "upload", "user", "value", "view", "with", "year",
]  # fmt: skip


def event_texts(events: int, sessions: int, *, first_time: float) -> Iterator[str]:
    """The JSON of *events* events, of *sessions* sessions in turn, 10 us apart beginning at *first_time* (Unix seconds)."""
    chance = random.Random(events)
    for number in range(events):
        session = f"s{number % sessions:011d}"
        actions = [_action(chance, session, index, first_time) for index in range(_ACTIONS)]
        payload = {
            "type": "actions",
            "product_id": "bench",
            "session_id": session,
            "user_id": None,
            "email": None,
            "conversation_id": None,
            "actions": actions,
            "count": _ACTIONS,
            "forwarded_at": round(first_time + number * 1e-5, 6),
        }
        missing = EVENT_BYTES - len(json.dumps(payload, separators=(",", ":")))
        assert missing >= 0
        words = " ".join(chance.choices(_WORDS, k=missing // 3 + 1))
        actions[0]["description"] = f"{actions[0]['description']}{words[:missing]}"
        yield json.dumps(payload, separators=(",", ":"))


def _action(chance: random.Random, session: str, index: int, time: float) -> dict[str, object]:
    first, second, third, fourth = chance.choices(_WORDS, k=4)
    kind = chance.choice(("click", "pageview", "input", "submit"))
    place = chance.randrange(1000, 9999)
    return {
        "title": f"{first} {second}",
        "description": f"{kind} of {first} {second} ",
        "canonical_url": f"https://a.example.com/{third}/:id/{fourth}",
        "index": index,
        "type": kind,
        "timestamp_start": round(time + index * 1.25, 3),
        "timestamp_end": round(time + index * 1.25 + chance.random(), 3),
        "raw_url": f"https://a.example.com/{third}/{place}/{fourth}",
        "session_id": session,
        "user_id": None,
        "email": None,
        "conversation_id": None,
    }
