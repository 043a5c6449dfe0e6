"""When runs are due: no drift, jitter within its bounds, missed runs merged. Pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.jobs.schedule import Schedule


def test_the_first_run_is_due_at_once_and_the_others_on_the_grid() -> None:
    schedule = Schedule(interval=10.0, jitter=0.0, start=100.0)
    seen = []
    for late in (0.0, 0.3, 9.9, 0.0):
        seen.append(schedule.due)
        schedule.begin(schedule.due + late)
    assert seen == [100.0, 110.0, 120.0, 130.0]
    assert schedule.missed == 0


def test_times_that_pass_during_a_run_are_merged_into_one_and_counted() -> None:
    schedule = Schedule(interval=10.0, jitter=0.0, start=0.0)
    schedule.begin(0.0)
    # This run takes 35 s: those of 10, 20 and 30 become one.
    schedule.begin(35.0)
    assert schedule.missed == 2
    assert schedule.due == 40.0


def test_a_run_late_by_less_than_an_interval_misses_none() -> None:
    schedule = Schedule(interval=10.0, jitter=0.0, start=0.0)
    schedule.begin(0.0)
    schedule.begin(19.9)
    assert (schedule.missed, schedule.due) == (0, 20.0)


@given(
    interval=st.floats(0.01, 1e5),
    jitter=st.floats(0.0, 0.99),
    start=st.floats(-1e6, 1e6),
    takes=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=50),
)
def test_whatever_runs_take_there_is_one_time_for_each_interval(
    interval: float, jitter: float, start: float, takes: list[float]
) -> None:
    schedule = Schedule(interval=interval, jitter=jitter, start=start)
    now = start
    tolerance = 1e-6 * max(1.0, abs(start))
    for runs, intervals in enumerate(takes, 1):
        now = max(now, schedule.due)
        schedule.begin(now)
        grid = (schedule.due - start) / interval
        # Each interval that has begun had its run, or is counted as missed: the next one is numbered accordingly.
        number = runs + schedule.missed
        assert number - 1e-3 <= grid <= number + jitter + 1e-3
        assert schedule.due >= now - jitter * interval - tolerance or schedule.due > now - interval
        now += intervals * interval
    assert schedule.missed >= 0
