"""
The one language of topics and patterns, pure: the same names match on every log and every platform.

A *topic* is a name of 1 to 255 printable characters without white space and without any of ``* ? [ { }``. By convention it
has segments with ":" between them (``orders:eu:created``); empty segments are names like any other. A *pattern* is written
like a file name's, as `fnmatch.fnmatchcase` reads it: ``*`` is anything (":" too, and nothing), ``?`` one character,
``[abc]``, ``[a-z]`` and ``[!abc]`` one character of a set. Case matters, everywhere. What has no ``*``, ``?`` or ``[`` is a
topic and matches itself alone. Characters are compared as they are: nothing is normalised.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import string
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Generic, TypeVar
from urllib.parse import quote

from connector_sdk.errors import ConfigurationError

__all__ = ["LONGEST", "Pattern", "TopicMatcher", "TopicTemplate", "check_pattern", "check_topic", "is_pattern"]

#: Characters of the longest topic or pattern.
LONGEST = 255
_WILD = frozenset("*?[")
_TOPIC = (
    f"1 to {LONGEST} printable characters without white space and without any of * ? [ {{ }}, like 'orders:eu:created'"
)
_PATTERN = f"a topic or a pattern: 1 to {LONGEST} printable characters without white space, '{{' and '}}'"

KeyT = TypeVar("KeyT", bound=Hashable)


def is_pattern(text: str) -> bool:
    """Whether *text* has a wildcard: ``*``, ``?`` or ``[``."""
    return not _WILD.isdisjoint(text)


@lru_cache(maxsize=4096)
def _is_name(text: str) -> bool:
    return 1 <= len(text) <= LONGEST and text.isprintable() and not any(mark in text for mark in " {}")


@lru_cache(maxsize=4096)
def _is_topic(text: str) -> bool:
    return _is_name(text) and not is_pattern(text)


def check_topic(topic: object, option: str = "topic") -> str:
    """Return *topic* if it is the name of a topic, else raise ConfigurationError; one with wildcards is none."""
    if isinstance(topic, str) and _is_topic(topic):
        return topic if topic.__class__ is str else str.__str__(topic)
    raise ConfigurationError(option, topic, _TOPIC)


def check_pattern(pattern: object, option: str = "pattern") -> str:
    """Return *pattern* if it is a topic or a pattern, else raise ConfigurationError."""
    if isinstance(pattern, str) and _is_name(pattern):
        return str.__str__(pattern)
    raise ConfigurationError(option, pattern, _PATTERN)


class Pattern:
    """
    A topic or a pattern, ready to be asked. Raises ConfigurationError for what is neither.

    `matches(topic)` says whether it is meant. Equal to patterns of the same text.
    """

    __slots__ = ("_match", "is_wild", "text")

    def __init__(self, text: str) -> None:
        #: What it was made of.
        self.text = check_pattern(text)
        #: Whether it has wildcards; without any it is one topic.
        self.is_wild = is_pattern(self.text)
        self._match: Callable[[str], object] = (
            re.compile(fnmatch.translate(self.text)).match if self.is_wild else self.text.__eq__
        )

    def matches(self, topic: str) -> bool:
        """Whether *topic* is meant."""
        return bool(self._match(topic))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class TopicMatcher(Generic[KeyT]):
    """
    Which of many subscriptions a topic is for. Answers are remembered, for up to *remembered* topics.

    Belongs to one thread or event loop.
    """

    def __init__(self, remembered: int = 4096) -> None:
        self._remembered = remembered
        self._patterns: dict[KeyT, tuple[Pattern, ...]] = {}
        self._answers: dict[str, tuple[KeyT, ...]] = {}

    def add(self, key: KeyT, *patterns: str) -> None:
        """Let *key* be an answer for topics that one of *patterns* matches, instead of what it had before."""
        compiled = tuple(Pattern(pattern) for pattern in patterns)
        self._patterns[key] = compiled
        self._answers.clear()

    def discard(self, key: KeyT) -> None:
        """Let *key* be no answer any more, if it was one."""
        if self._patterns.pop(key, None) is not None:
            self._answers.clear()

    def match(self, topic: str) -> tuple[KeyT, ...]:
        """Return the keys that *topic* is for, each once however many of its patterns match, in the order they were added."""
        found = self._answers.get(topic)
        if found is None:
            found = tuple(
                key for key, patterns in self._patterns.items() if any(pattern.matches(topic) for pattern in patterns)
            )
            while len(self._answers) >= self._remembered:
                del self._answers[next(iter(self._answers))]
            self._answers[topic] = found
        return found

    def __len__(self) -> int:
        return len(self._patterns)

    def __contains__(self, key: object) -> bool:
        return key in self._patterns


class TopicTemplate:
    """
    A topic with places to fill in from a payload, ``connector:{product_id}``. Raises ConfigurationError for a wrong one.

    A value comes from the payload's attribute (or key) of that name; None is the empty string. What could change the
    topic's shape (":", wildcards, braces, white space, "%", what is not printable) is written as %XX like in a URL, so
    different values give different topics and none reaches another's; a value that is too long ends in a digest of it.
    A template has literal text besides its places, and room for 32 characters in each of them.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parts = list(string.Formatter().parse(template))
        except (TypeError, ValueError) as error:
            raise ConfigurationError("topic", template, f"{_TOPIC}, with places like '{{product_id}}'") from error
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        #: The names of the places, in order.
        self.names = tuple(name for _, name in self._parts if name is not None)
        literal = "".join(text for text, _ in self._parts)
        plain = all(not spec and not conversion for _, _, spec, conversion in parts)
        check_topic(literal)
        room = (LONGEST - len(literal)) // max(1, len(self.names))
        if not plain or not all(name.isidentifier() for name in self.names) or (self.names and room < _LEAST_ROOM):
            raise ConfigurationError("topic", template, f"{_TOPIC}, with places like '{{product_id}}'")
        self._room = min(room, 100)

    def fill(self, payload: object) -> str:
        """Return the topic for *payload*; ConfigurationError when it has no such value, or one that is no text or number."""
        if not self.names:
            return self.template
        return "".join(
            literal if name is None else literal + self._clean(name, payload) for literal, name in self._parts
        )

    def _clean(self, name: str, payload: object) -> str:
        missing = object()
        value = payload.get(name, missing) if isinstance(payload, Mapping) else getattr(payload, name, missing)
        if value is missing or not isinstance(value, str | int | float | None):
            allowed = f"a template whose places {type(payload).__name__} has as text or numbers; {name!r} is none"
            raise ConfigurationError("topic", self.template, allowed)
        text = "" if value is None else str(value)
        return _escape(text, self._room)

    def __repr__(self) -> str:
        return f"TopicTemplate({self.template!r})"


_LEAST_ROOM = 32
_SHAPING = frozenset("*?[]{}%: ")


@lru_cache(maxsize=4096)
def _escape(text: str, room: int) -> str:
    if text.isprintable() and _SHAPING.isdisjoint(text):
        clean = text
    else:
        clean = "".join(
            quote(char, safe="", errors="surrogatepass") if char in _SHAPING or not char.isprintable() else char
            for char in text
        )
    if len(clean) <= room:
        return clean
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{clean[: room - 18]}%~{digest}"
