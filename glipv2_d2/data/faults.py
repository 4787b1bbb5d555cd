"""Faults of a dataset, counted by kind, with examples of each kind."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field

MAX_EXAMPLES = 5


@dataclass
class Faults:
    """Counts of faults, with the first locations of each kind.

    Attributes:
        counts: number of faults of each kind.
        examples: the first locations (files, images, class names) of each kind.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, where: object, count: int = 1) -> None:
        """Count ``count`` faults of one kind at one location."""
        if count == 0:
            return
        self.counts[kind] += count
        if len(self.examples[kind]) < MAX_EXAMPLES:
            self.examples[kind].append(str(where))

    def __len__(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {kind} (first: {', '.join(self.examples[kind])})"
            for kind, count in sorted(self.counts.items())
        )

    def warn(self, logger: logging.Logger, dataset_name: str) -> None:
        """Log one warning with all faults; nothing if there are none.

        The log record carries the counts as ``faults``, for tools that collect them.
        """
        if self:
            logger.warning("dataset %r: %s", dataset_name, self, extra={"faults": self})
