"""The histogram of the load, against sorted lists."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsock.bench._load import Histogram

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

SECONDS_OF_A_DAY = 86400

durations = st.lists(st.integers(0, 60 * 10**9), min_size=1, max_size=300)


def exact(values: list[int], part: float) -> int:
    rank = next(rank for rank in range(1, len(values) + 1) if rank >= part * len(values))
    return sorted(values)[rank - 1]


@given(values=durations, part=st.floats(0, 1))
def test_percentiles_are_within_one_percent(values: list[int], part: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    expected = exact(values, part)
    assert expected <= histogram.percentile(part) <= expected * 1.01
    assert histogram.percentile(1.0) == histogram.max() == max(values)
    assert histogram.count == len(values)


@given(values=durations, others=durations)
def test_merged_histograms(values: list[int], others: list[int]) -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for histogram, numbers in ((one, values), (other, others), (both, values + others)):
        for value in numbers:
            histogram.add(value)
    one.merge(other)
    for part in (0, 0.1, 0.5, 0.99, 1):
        assert one.percentile(part) == both.percentile(part)
    assert (one.count, one.max()) == (both.count, both.max())
    assert other.count == len(others)


@pytest.mark.parametrize("bits", range(3, 36))
def test_buckets_meet_at_powers_of_two(bits: int) -> None:
    for value in range(2**bits - 3, 2**bits + 3):
        histogram = Histogram()
        histogram.add(value)
        histogram.add(2**36 - 1)
        assert value <= histogram.percentile(0.5) <= value * 1.01


def test_an_empty_histogram() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.percentile(0.5), histogram.max()) == (0, 0.0, 0.0)
    histogram.add(7)
    histogram.clear()
    assert (histogram.count, histogram.percentile(0.5), histogram.max()) == (0, 0.0, 0.0)


def test_what_is_too_long_for_a_histogram_counts_as_the_longest() -> None:
    histogram = Histogram()
    day = SECONDS_OF_A_DAY * 10**9
    for value in (day, 2 * day, 10**30):
        histogram.add(value)
    assert 60e9 < histogram.percentile(0.1) <= 2.0**36
    assert histogram.max() == float(2**63 - 1)
    assert histogram.count == 3


@pytest.mark.parametrize("part", [-0.1, 1.1, math.nan])
def test_no_such_percentile(part: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Histogram().percentile(part)


def test_durations_are_not_negative() -> None:
    with pytest.raises(ValueError, match="not negative"):
        Histogram().add(-1)
