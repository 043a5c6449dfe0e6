"""Topics and patterns: the one language, which names are allowed, who gets what, and topics made from payloads."""

from __future__ import annotations

import fnmatch
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.bus.topics import (
    LONGEST,
    Pattern,
    TopicMatcher,
    TopicTemplate,
    check_pattern,
    check_topic,
    is_pattern,
)
from connector_sdk.errors import ConfigurationError
from connector_sdk.payloads import ActionsPayload, UnknownPayload
from connector_sdk.testing.topic_cases import TOPIC_CASES


def test_two_hundred_topics_and_patterns_match_as_they_were_written_down() -> None:
    assert len(TOPIC_CASES) == 200
    assert len({(topic, pattern) for topic, pattern, _ in TOPIC_CASES}) == 200
    wrong = [
        (topic, pattern)
        for topic, pattern, expected in TOPIC_CASES
        if Pattern(pattern).matches(check_topic(topic)) is not expected
    ]
    assert wrong == []


def test_the_written_answers_are_those_of_fnmatchcase() -> None:
    wrong = [case for case in TOPIC_CASES if fnmatch.fnmatchcase(case[0], case[1]) is not case[2]]
    assert wrong == []


def test_a_matcher_gives_the_written_answers_for_all_at_once() -> None:
    matcher: TopicMatcher[str] = TopicMatcher()
    for _, pattern, _ in TOPIC_CASES:
        matcher.add(pattern, pattern)
    for topic, pattern, expected in TOPIC_CASES:
        assert (pattern in matcher.match(topic)) is expected, (topic, pattern)


TOPICS = st.text(st.sampled_from("ab:.-]!^Ä"), min_size=1, max_size=8)
PATTERNS = st.text(st.sampled_from("ab:.-]!^Ä*?[&~|\\#"), min_size=1, max_size=12)


@given(TOPICS, PATTERNS)
def test_any_pattern_is_read_as_fnmatchcase_reads_it(topic: str, pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Pattern(pattern).matches(topic) is fnmatch.fnmatchcase(topic, pattern)


def test_a_pattern_of_many_stars_is_not_slow() -> None:
    # Naive backtracking needs longer than the universe has.
    assert not Pattern("*a" * 120 + "b").matches("a" * 250)


@pytest.mark.parametrize(
    "topic",
    ["a", "a:b:c", "::", "a.b-c_d/e", "日本", "a]b", "x" * LONGEST, "a'b\"c", "a\\b"],
)
def test_a_topic_is_any_printable_name(topic: str) -> None:
    assert check_topic(topic) == topic
    assert check_pattern(topic) == topic
    assert not is_pattern(topic)


@pytest.mark.parametrize(
    "topic",
    ["", "a b", "a\n", "a\tb", "a\x00", "a\u00a0b", "a\u200bb", "\ud800", "x" * (LONGEST + 1), "a{b", "a}b", 7, None, b"a"],
)  # fmt: skip
def test_what_is_no_name_is_refused(topic: object) -> None:
    with pytest.raises(ConfigurationError, match="topic="):
        check_topic(topic)
    with pytest.raises(ConfigurationError, match="pattern="):
        check_pattern(topic)


@pytest.mark.parametrize("pattern", ["*", "a:?", "a:[bc]", "a[", "a:*:c"])
def test_nobody_publishes_to_a_pattern(pattern: str) -> None:
    assert is_pattern(pattern)
    assert check_pattern(pattern) == pattern
    with pytest.raises(ConfigurationError) as caught:
        check_topic(pattern, "where")
    assert caught.value.option == "where"


def test_an_enum_member_becomes_plain_text() -> None:
    import enum

    class Topics(enum.StrEnum):
        ORDERS = "orders"

    assert type(check_topic(Topics.ORDERS)) is str
    assert Pattern(Topics.ORDERS).matches("orders")


def test_patterns_are_values() -> None:
    assert Pattern("a*") == Pattern("a*") != Pattern("a")
    assert hash(Pattern("a*")) == hash(Pattern("a*"))
    assert Pattern("a*").is_wild
    assert not Pattern("a").is_wild
    assert repr(Pattern("a*")) == "Pattern('a*')"


def test_each_subscription_is_an_answer_once_in_the_order_they_came() -> None:
    matcher: TopicMatcher[int] = TopicMatcher()
    matcher.add(3, "orders:created", "orders:*", "*")
    matcher.add(1, "orders:*")
    matcher.add(2, "invoices")
    assert matcher.match("orders:created") == (3, 1)
    assert matcher.match("invoices") == (3, 2)
    assert len(matcher) == 3
    assert 1 in matcher


def test_answers_follow_those_who_come_and_go() -> None:
    matcher: TopicMatcher[int] = TopicMatcher()
    matcher.add(1, "a*")
    assert matcher.match("ab") == (1,)
    matcher.add(2, "ab")
    assert matcher.match("ab") == (1, 2)
    matcher.discard(1)
    matcher.discard(99)
    assert matcher.match("ab") == (2,)
    matcher.add(2, "c")
    assert matcher.match("ab") == ()
    with pytest.raises(ConfigurationError):
        matcher.add(2, "c", "no name")
    assert matcher.match("c") == (2,), "a refused change must change nothing"


def test_it_remembers_no_more_than_it_may() -> None:
    matcher: TopicMatcher[int] = TopicMatcher(remembered=10)
    matcher.add(1, "t*")
    for number in range(100):
        assert matcher.match(f"t{number}") == (1,)
    assert len(matcher._answers) == 10
    assert matcher.match("t0") == (1,)


def test_a_template_is_filled_from_attributes_or_keys() -> None:
    template = TopicTemplate("connector:{product_id}:{kind}")
    assert template.names == ("product_id", "kind")
    assert template.fill({"product_id": "shop", "kind": 7}) == "connector:shop:7"
    assert TopicTemplate("connector:{product_id}").fill(ActionsPayload(product_id="Läden")) == "connector:Läden"
    assert TopicTemplate("connector:{product_id}").fill(UnknownPayload(type="x", raw=b"{}")) == "connector:"
    assert TopicTemplate("session:{session_id}").fill(ActionsPayload()) == "session:"
    assert TopicTemplate("plain").fill(object()) == "plain"


@pytest.mark.parametrize(
    ("value", "topic"),
    [
        ("a:b", "p:a%3Ab"),
        ("a*", "p:a%2A"),
        ("[x]?", "p:%5Bx%5D%3F"),
        ("100%", "p:100%25"),
        ("{evil}", "p:%7Bevil%7D"),
        ("two words\n", "p:two%20words%0A"),
        ("\u200b", "p:%E2%80%8B"),
        ("\ud800", "p:%ED%A0%80"),
        (1.5, "p:1.5"),
    ],
)
def test_a_value_cannot_reach_into_the_topic(value: object, topic: str) -> None:
    assert TopicTemplate("p:{product_id}").fill({"product_id": value}) == topic


@given(st.text(max_size=300), st.text(max_size=300))
def test_different_values_give_different_topics_that_can_be_published_to(one: str, other: str) -> None:
    template = TopicTemplate("connector:{product_id}")
    first, second = template.fill({"product_id": one}), template.fill({"product_id": other})
    assert check_topic(first)
    assert first.count(":") == 1
    assert (first == second) is (one == other)


def test_values_that_are_too_long_are_told_apart_by_a_digest() -> None:
    template = TopicTemplate("a:{one}:{two}")
    filled = [template.fill({"one": "x" * 5000 + end, "two": "y" * 500}) for end in "ab"]
    assert filled[0] != filled[1]
    assert all(len(topic) <= LONGEST for topic in filled)


@pytest.mark.parametrize(
    "template",
    ["{product_id}", "a:{}", "a:{0}", "a:{x.y}", "a:{x[0]}", "a:{x!r}", "a:{x:>5}", "a:{x", "a:x}", "a:{{x}}", "a b:{x}",
     "a*:{x}", "a:" + "{x}" * 8, "a" * 240 + "{x}", "", 7],
)  # fmt: skip
def test_a_template_that_cannot_work_is_refused_at_once(template: str) -> None:
    with pytest.raises(ConfigurationError):
        TopicTemplate(template)


@pytest.mark.parametrize("payload", [object(), {}, {"product_id": ["x"]}, {"product_id": {"a": 1}}])
def test_a_payload_without_such_a_value_is_refused(payload: object) -> None:
    with pytest.raises(ConfigurationError, match="product_id"):
        TopicTemplate("p:{product_id}").fill(payload)
