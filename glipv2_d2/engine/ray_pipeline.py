"""Ray Data's pipeline of batches through actors, and what runs in the actors.

Ray Data starts an actor that died again and repeats its unfinished blocks without limit. A batch
that ends its actor every time, such as an image that takes all memory, would be repeated for ever:
the actors count the attempts of a batch, and give it up after :data:`MAX_ATTEMPTS`.
"""

from __future__ import annotations

import logging
import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_ATTEMPTS = 3
"""Attempts for a batch whose actor dies."""

# A block is what an actor receives and, if it dies, what is repeated: one batch, or several if
# there are more batches than Ray Data should have blocks.
_MAX_BLOCKS = 10_000
_MAX_START_DEATHS = 2

logger = logging.getLogger(__name__)


class Pipeline:
    """The results of Ray Data, a block at a time."""

    def __init__(
        self,
        build: Callable[[], Callable[[Any], Any]],
        rows: Sequence[bytes],
        num_actors: int,
        num_cpus: float,
        num_gpus: float,
    ) -> None:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        # It prints the progress and the tracebacks of errors, which are raised as well.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.max_consecutive_actor_init_deaths = _MAX_START_DEATHS
        # A batch may wait for a busy cluster as long as it must.
        context.execution_no_progress_timeout_s = -1
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
        items = ray.data.from_items(
            [{"item": row} for row in rows], override_num_blocks=min(len(rows), _MAX_BLOCKS)
        )
        results = items.map_batches(
            Actor,
            fn_constructor_args=(build, attempts),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, initial_size=num_actors, max_size=num_actors),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        self._blocks = iter(results.iter_batches(batch_size=None, prefetch_batches=0))

    def take(self) -> list[bytes] | None:
        """The results of the next block; None at the end."""
        block = next(self._blocks, None)
        return None if block is None else list(block["result"])


# In other processes of the cluster


class Attempts:
    """Counts how often a batch was begun, in an actor that outlives those with models."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, index: int) -> int:
        self._counts[index] += 1
        return self._counts[index]


class Lost:
    """The result of an item whose actor died every time."""


@dataclass(frozen=True)
class Failure:
    """An error of the model or the prompt, which ends the run."""

    message: str
    traceback: str

    @staticmethod
    def of(error: Exception) -> Failure:
        is_plain = isinstance(error, OSError | ValueError)
        message = str(error) if is_plain else f"{type(error).__name__}: {error}"
        return Failure(message, traceback.format_exc())

    def to_error(self) -> ValueError:
        logger.info("in an actor: %s", self.traceback)
        return ValueError(self.message)


class Actor:
    """Holds the model. Its errors are results: those that Ray raises are of Ray."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]], attempts: Any) -> None:
        self._attempts = attempts
        self._process: Callable[[Any], Any] | Failure
        try:
            self._process = build()
        except Exception as error:
            self._process = Failure.of(error)

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self._result(*pickle.loads(row))) for row in rows["item"]]}

    def _result(self, index: int, item: Any) -> tuple[int, Any]:
        import ray

        if isinstance(self._process, Failure):
            return index, self._process
        if ray.get(self._attempts.begin.remote(index)) > MAX_ATTEMPTS:
            return index, Lost()
        try:
            return index, self._process(item)
        except Exception as error:
            return index, Failure.of(error)
