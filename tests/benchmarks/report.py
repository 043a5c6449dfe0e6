"""What every benchmark of ours speaks: rows, a plain table of them, and candidates that take turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Row", "interleaved", "render"]


@dataclass(frozen=True)
class Row:
    """One figure of ours beside its floor, the least that any implementation needs."""

    work: str  #: what was done
    ours: float  #: NaN when it was not measured
    floor: float  #: NaN when there is none
    unit: str
    ratio: float  #: as `reach` means it; NaN without a floor
    reach: str  #: what was set out to be reached, "" when nothing was
    met: bool
    lost: int  #: events lost while measuring
    note: str = ""


def interleaved(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """
    Let the candidates take turns, *rounds* times, and return the median of what each gave.

    Turns, for whatever else the machine does then hits all alike; each round starts with another candidate.
    """
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            figures[name].append(candidates[name]())
    return {name: statistics.median(values) for name, values in figures.items()}


def render(rows: Sequence[Row]) -> str:
    """Return the rows as a table of plain text."""
    heads = ("work", "ours", "floor", "unit", "ratio", "reach", "met", "lost", "note")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    figures = {"ours", "floor", "ratio", "lost"}
    text = [
        "  ".join(
            cell.rjust(width) if head in figures else cell.ljust(width)
            for head, cell, width in zip(heads, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    met = ("yes" if row.met else "NO") if row.reach else ""
    return (
        row.work,
        _figure(row.ours),
        _figure(row.floor),
        row.unit,
        "" if math.isnan(row.ratio) else f"{row.ratio:.2f}",
        row.reach,
        met,
        str(row.lost),
        row.note,
    )


def _figure(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
