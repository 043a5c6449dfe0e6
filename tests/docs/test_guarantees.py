"""Each cell of "What can be lost, and when" names a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import DOCS, ROOT, tables

PAGE = DOCS / "guarantees.md"
LABEL = re.compile(r"\[([A-Z]+\d+)\]")
HEAD = ["failure", "where", "lost", "duplicated", "delayed", "bounded by"]
#: The cells that promise something; what bounds it is proved with them.
PROMISES = ("lost", "duplicated", "delayed")


@cache
def named_tests() -> dict[str, list[str]]:
    """The list at the end of the page: label -> names of tests."""
    found: dict[str, list[str]] = {}
    for label, rest in re.findall(r"^- \*\*([A-Z]+\d+)\*\* (.+(?:\n  .+)*)$", PAGE.read_text(), re.MULTILINE):
        assert label not in found, f"{label} is there twice"
        found[label] = re.findall(r"`([^`]+)`", rest)
    return found


def rows() -> list[dict[str, str]]:
    found = []
    for head, *body in tables(PAGE):
        assert head == HEAD
        found += [dict(zip(head, row, strict=True)) for row in body]
    return found


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the tests in a module, read without importing it: `test_x`, `TestClass::test_x`, `SomeContract::test_x`."""
    file = ROOT / path
    assert file.is_file(), f"there is no {path}"
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if _is_test(node):
            names.add(getattr(node, "name", ""))
        elif isinstance(node, ast.ClassDef) and (node.name.startswith("Test") or node.name.endswith("Contract")):
            names |= {f"{node.name}::{getattr(inner, 'name', '')}" for inner in node.body if _is_test(inner)}
    return frozenset(names)


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['failure']} - {row['where']}")
def test_each_promise_names_a_test(row: dict[str, str]) -> None:
    proved = [name for name in PROMISES if LABEL.search(row[name])]
    for name in PROMISES:
        if name not in proved:
            assert row[name] == "–", f"the cell {name!r} says {row[name]!r} and names no test"
    assert "lost" in proved, "what is lost must be said, and proved"
    for label in LABEL.findall(" ".join(row.values())):
        assert label in named_tests(), f"{label} is not in the list of tests"


def test_each_named_test_exists() -> None:
    assert named_tests()
    for label, names in named_tests().items():
        assert names, f"{label} names nothing"
        for name in names:
            path, _, test = name.partition("::")
            assert test in names_in(path), f"{label}: there is no {name}"


def test_each_label_is_used() -> None:
    used = {label for row in rows() for cell in row.values() for label in LABEL.findall(cell)}
    assert set(named_tests()) == used


def test_the_reader_of_tests_finds_what_is_there_and_nothing_else() -> None:
    here = names_in("tests/docs/test_guarantees.py")
    assert "test_each_named_test_exists" in here
    assert "rows" not in here
    assert "TestStopping::test_what_is_queued_is_finished" in names_in("tests/client/test_dispatch.py")
