class Histogram:
    """Durations in nanoseconds, in buckets that are less than 1 % wide, up to 2**36 ns (68.7 s).

    Longer ones count as that long; only ``max()`` knows better. It takes 30 KB, always.
    """

    @property
    def count(self) -> int:
        """How many durations there are."""

    def add(self, nanoseconds: int) -> None:
        """Count one duration. Raises ValueError if it is negative."""

    def percentile(self, part: float) -> float:
        """The nanoseconds that ``part`` (0 to 1) of all are not above; 0.0 if there are none.

        The upper end of the bucket, so at most 1 % above the exact one, and never above the
        largest. Raises ValueError for another ``part``.
        """

    def max(self) -> float:
        """The longest, in nanoseconds, exactly; 0.0 if there are none."""

    def merge(self, other: Histogram) -> None:
        """Count all that ``other`` has, too."""

    def clear(self) -> None:
        """Forget all."""
