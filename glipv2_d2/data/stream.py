"""An endless, repeatable stream of training batches that can begin in its middle."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data.build import build_batch_data_loader
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import IterableDataset, Sampler, get_worker_info

Record = dict[str, Any]


class TrainLoader:
    """Batches of mapped records, a pure function of seed and iteration.

    Detectron2's loaders begin anew when training resumes: the first images are seen again, and
    with other augmentations. Here the order continues at ``start_iteration``, and every image's
    random numbers follow from its place in the stream, so that a resumed run sees what the
    uninterrupted one would have, whatever the number of workers.

    With ``aspect_ratio_grouping`` Detectron2 holds images back until a group is full; a resumed run
    continues the order of the images but not those groups.
    """

    def __init__(
        self,
        records: list[Record],
        *,
        mapper: Callable[[Record], Record],
        make_sampler: Callable[[int], Sampler[int]],
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        aspect_ratio_grouping: bool = False,
    ) -> None:
        """
        Args:
            mapper: a record -> an input dict; draws from numpy's global random state.
            make_sampler: a seed -> one of Detectron2's endless training samplers.
            batch_size: images of one iteration, all processes together.
            seed: the same in all processes.
        """
        self.dataset = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.aspect_ratio_grouping = aspect_ratio_grouping
        self.start_iteration = 0

    def __iter__(self) -> Iterator[list[Record]]:
        batch_per_process = self.batch_size // comm.get_world_size()
        stream = SeededStream(
            self.dataset,
            self.mapper,
            self.make_sampler(self.seed),
            seed=(self.seed, comm.get_rank()),
            start=self.start_iteration * batch_per_process,
            # Workers take turns: by batches, or by images where those are grouped afterwards.
            turn=1 if self.aspect_ratio_grouping else batch_per_process,
        )
        return iter(
            build_batch_data_loader(
                stream,
                None,
                self.batch_size,
                aspect_ratio_grouping=self.aspect_ratio_grouping,
                num_workers=self.num_workers,
                # Else making the iterator would draw from torch's state, which the model uses.
                seed=self.seed,
            )
        )


class SeededStream(IterableDataset):
    """Mapped records in a sampler's order, numpy seeded anew at each place of it."""

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Callable[[Record], Record],
        sampler: Sampler[int],
        *,
        seed: tuple[int, ...],
        start: int,
        turn: int,
    ) -> None:
        """
        Args:
            start: places to leave out.
            turn: places that a data loader's worker fills before the next worker's turn.
        """
        self.records = records
        self.mapper = mapper
        self.sampler = sampler
        self.seed = seed
        self.start = start
        self.turn = turn

    def __iter__(self) -> Iterator[Record]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for place, index in itertools.islice(enumerate(self.sampler), self.start, None):
            if (place - self.start) // self.turn % num_workers == worker_id:
                state = np.random.SeedSequence([*self.seed, place]).generate_state(4)
                # Detectron2's augmentations draw from the global state.
                np.random.seed(state)  # noqa: NPY002
                yield self.mapper(self.records[index])
