"""Ray's actors without Ray: one process that takes the last item first."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glipv2_d2.engine.ray_actors import RayActors


@dataclass(frozen=True)
class BackwardActors(RayActors):
    """The actor dies with the items whose index is in ``lost``."""

    num_actors: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    lost: frozenset[int] = frozenset()

    def map(
        self, build: Callable[[], Callable[[Any], Any]], items: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        process = build()
        for index in reversed(range(len(items))):
            result = None if index in self.lost else process(items[index])
            yield index, pickle.loads(pickle.dumps(result))
