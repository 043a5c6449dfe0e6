"""Reading the Markdown pages: blocks of code, tables, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NO_RUN = "<!-- no-run -->"


def pages() -> list[Path]:
    """Every page that people write; the reference is generated."""
    written = [path for path in DOCS.rglob("*.md") if "reference" not in path.relative_to(DOCS).parts]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(written)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Block(msgspec.Struct, frozen=True):
    """A fenced block: its language, its text, the line its text begins at, and whether it may run."""

    language: str
    text: str
    line: int
    runs: bool


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        opening = re.fullmatch(r"```(\w*)", lines[at])
        if opening is None:
            at += 1
            continue
        end = lines.index("```", at + 1)
        before = next((line for line in reversed(lines[:at]) if line.strip()), "")
        yield Block(opening[1], "\n".join(lines[at + 1 : end]) + "\n", at + 2, before.strip() != NO_RUN)
        at = end + 1


def tables(page: Path) -> Iterator[list[list[str]]]:
    """Each table as rows of cells, the head first, the ruling left out."""
    rows: list[list[str]] = []
    for line in [*page.read_text().splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            yield [row for row in rows if not all(set(cell) <= set("-:") for cell in row)]
            rows = []


def links(page: Path) -> Iterator[str]:
    """The targets of links outside of code."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", prose)
