"""An endless, reproducible stream of training batches that resumes at any iteration.

A *position* is an index into the endless sequence of a sampler.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data.build import build_batch_data_loader
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import IterableDataset, Sampler, get_worker_info

from glipv2_d2.data.record_store import StoredRecords, are_wide
from glipv2_d2.data.text_tasks import describe_record
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# Key of an input dict between worker and loader: errors of the records that it replaces.
SKIPPED = "skipped"
# Records tried at one position. More errors in a row indicate an unavailable disk.
MAX_DRAWS = 10
# The first skipped records are all logged, later ones at this interval.
LOG_INTERVAL = 100


class TrainLoader:
    """Batches of mapped records, a pure function of seed and iteration.

    Detectron2's loaders restart their order when training resumes. This one continues at
    ``start_iteration``, and seeds the augmentations of every image by its position. A resumed run
    thus gets the batches of an uninterrupted one, with any number of workers.
    ``aspect_ratio_grouping`` puts wide and tall images into different batches, as in Detectron2.

    An unusable record (a broken image, or one of another size than recorded) is replaced by
    another one, whatever error it raises, logged in a warning and counted in ``num_skipped``.
    """

    def __init__(
        self,
        records: Sequence[Record],
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
            records: those of all datasets. Other than :class:`StoredRecords` are serialized.
            mapper: record -> input dict; uses numpy's global random state.
            make_sampler: seed -> one of Detectron2's endless training samplers.
            batch_size: images per iteration, over all processes.
            seed: must be equal in all processes.
        """
        self.groups = are_wide(records) if aspect_ratio_grouping else np.zeros(len(records), bool)
        self.dataset = (
            records
            if isinstance(records, StoredRecords)
            else DatasetFromList(list(records), copy=False)
        )
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.start_iteration = 0
        self.num_skipped = 0

    def __iter__(self) -> Iterator[list[Record]]:
        stream = SeededStream(
            self.dataset,
            self.mapper,
            self.make_sampler(self.seed),
            groups=self.groups,
            batch_size=self.batch_size // comm.get_world_size(),
            seed=(self.seed, comm.get_rank()),
            start=self.start_iteration,
        )
        batches = build_batch_data_loader(
            stream,
            None,
            self.batch_size,
            # SeededStream groups the records itself, so that it can resume.
            aspect_ratio_grouping=False,
            num_workers=self.num_workers,
            # Without a seed, the iterator would advance torch's global random state.
            seed=self.seed,
        )
        for batch in batches:
            for x in batch:
                self._log_skipped(x.pop(SKIPPED, ()))
            yield batch

    def _log_skipped(self, errors: Sequence[str]) -> None:
        for error in errors:
            self.num_skipped += 1
            if self.num_skipped <= LOG_INTERVAL or self.num_skipped % LOG_INTERVAL == 0:
                logger.warning("skipped training record no. %d: %s", self.num_skipped, error)


class SeededStream(IterableDataset):
    """Mapped records in a sampler's order, with numpy reseeded at each position.

    Consecutive records form batches, each from one group.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Callable[[Record], Record],
        sampler: Sampler[int],
        *,
        groups: np.ndarray,
        batch_size: int,
        seed: tuple[int, ...],
        start: int,
    ) -> None:
        """
        Args:
            groups: (num_records,) group of each record.
            batch_size: images per batch of this process. Workers take turns by batches.
            start: number of batches to skip.
        """
        self.records = records
        self.mapper = mapper
        self.sampler = sampler
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[Record]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, batch in enumerate(self._batches()):
            if number >= self.start and (number - self.start) % num_workers == worker_id:
                for position, index in batch:
                    yield self._map(position, index)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (position, record index), each as soon as its group is large enough."""
        pending = defaultdict(list)
        for position, index in enumerate(self.sampler):
            group = self.groups[index].item()
            pending[group].append((position, index))
            if len(pending[group]) == self.batch_size:
                yield pending.pop(group)

    def _map(self, position: int, index: int) -> Record:
        """The mapped record, or if it is unusable another one, drawn with the position's seed."""
        skipped: list[str] = []
        seed = np.random.SeedSequence([*self.seed, position])
        while len(skipped) < MAX_DRAWS:
            # Detectron2's augmentations draw from the global state.
            np.random.seed(seed.generate_state(4))  # noqa: NPY002
            try:
                mapped = self.mapper(self.records[index])
            # An image may raise any error, also of PIL, OpenCV or an augmentation. If they are all
            # alike, the error is the mapper's, and is raised below.
            except Exception as error:
                skipped.append(_reason(self.records[index], error))
                last = error
                (draw,) = seed.spawn(1)
                index = int(np.random.default_rng(draw).integers(len(self.records)))
                continue
            return {**mapped, SKIPPED: skipped} if skipped else mapped
        raise ValueError(
            f"{MAX_DRAWS} training records in a row are unusable; the first: {skipped[0]}; the "
            f"last: {skipped[-1]}. Find all of them with glipv2 check-data"
        ) from last


def _reason(record: Record, error: Exception) -> str:
    """Why a record is skipped, with its image if the error does not name it."""
    if isinstance(error, OSError | ValueError) and str(record.get(fields.FILE_NAME)) in str(error):
        return str(error)
    return f"{describe_record(record)} cannot be mapped ({type(error).__name__}: {error})"
