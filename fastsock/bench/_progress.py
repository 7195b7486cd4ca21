"""How far a run is, while it goes on."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from fastsock.bench._report import has_rich

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress:
    """How far a run is: a bar on a terminal, if rich is installed; else a line per scenario.

    ``begin()`` once, then ``step()`` before and ``done()`` after every measurement.
    """

    def __init__(self, stream: TextIO | None = None, *, rich: bool | None = None) -> None:
        """``stream``: standard error if None. ``rich``: as for :func:`render`."""
        self._stream = sys.stderr if stream is None else stream
        wanted = self._stream.isatty() if rich is None else rich
        self._rich = wanted and has_rich()
        self._bar: RichProgress | None = None
        self._said = ""
        self._total = self._count = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, total: int) -> None:
        """So many measurements are to come."""
        self._total, self._count = total, 0
        if not self._rich:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(file=self._stream),
            transient=True,
        )
        self._bar.add_task("", total=total)
        self._bar.start()

    def step(self, description: str, detail: str = "") -> None:
        """A measurement begins. ``description``: the scenario; ``detail``: of this measurement.

        Without a bar, the detail is not shown, and a description that stays the same shown once.
        """
        if self._bar is not None:
            shown = f"{description}: {detail}" if detail else description
            self._bar.update(self._bar.task_ids[0], description=shown)
        elif description != self._said:
            self._said = description
            self._stream.write(f"[{self._count + 1}/{self._total}] {description}\n")
            self._stream.flush()

    def done(self) -> None:
        """It has ended, or was passed over."""
        self._count += 1
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])
