"""The progress bar of every subcommand."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class ProgressBar:
    """A bar on stderr with the part of tqdm's interface that the library uses."""

    def __init__(
        self,
        iterable: Iterable[Any] = (),
        *,
        desc: str = "",
        total: int | None = None,
        initial: int = 0,
        unit: str = "",
        console: Console | None = None,
    ) -> None:
        """
        Args:
            total: number of items; default: the length of ``iterable``, if it has one.
            initial: number of the items that are done.
            unit: what an item is, the description if there is none.
            console: default: stderr.
        """
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        self.iterable = iterable
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        console = console or Console(file=sys.stderr)
        # What libraries print meanwhile may go to a log file.
        self._progress = Progress(*columns, console=console, redirect_stdout=False)
        self._task = self._progress.add_task(
            desc or (f"{unit}s" if unit else "progress"), total=total, completed=initial
        )

    def update(self, count: int = 1) -> None:
        self._progress.update(self._task, advance=count)

    def describe(self, text: str, total: int | None = None) -> None:
        """Set the description, and the number of items if it has become known."""
        self._progress.update(self._task, description=text, total=total)

    def move_to(self, completed: int) -> None:
        self._progress.update(self._task, completed=completed)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __len__(self) -> int:
        assert isinstance(self.iterable, Sized), "a stream has no length"
        return len(self.iterable)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()
