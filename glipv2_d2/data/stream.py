"""An endless, repeatable stream of training batches that can begin in its middle.

A *place* is a position in the endless order of a sampler.
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

from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# Of an input dict, on its way from a worker: what was drawn in its place and could not be used.
SKIPPED = "skipped"
# Draws at one place. More bad ones in a row are no bad records, but a lost disk.
MAX_DRAWS = 10
# So many skipped records are named one by one, then only every so manieth.
NUM_NAMED = 100


class TrainLoader:
    """Batches of mapped records, a pure function of seed and iteration.

    Detectron2's loaders begin anew when training resumes: the first images are seen again, and
    with other augmentations. Here the order continues at ``start_iteration``, and every image's
    random numbers follow from its place in the stream, so that a resumed run sees what the
    uninterrupted one would have, whatever the number of workers, also with
    ``aspect_ratio_grouping``: wide and high images are in different batches, as in Detectron2.

    A record that cannot be used (a broken image, one of another size than recorded) is replaced by
    another one, named in a warning and counted in ``num_skipped``.
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
        self.groups = np.array(
            [aspect_ratio_grouping and is_wide(record) for record in records], dtype=bool
        )
        self.dataset = DatasetFromList(records, copy=False)
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
            # The stream has its own groups, which it can find again in its middle.
            aspect_ratio_grouping=False,
            num_workers=self.num_workers,
            # Else making the iterator would draw from torch's state, which the model uses.
            seed=self.seed,
        )
        for batch in batches:
            for x in batch:
                self._tell(x.pop(SKIPPED, ()))
            yield batch

    def _tell(self, reasons: Sequence[str]) -> None:
        for reason in reasons:
            self.num_skipped += 1
            if self.num_skipped <= NUM_NAMED or self.num_skipped % NUM_NAMED == 0:
                logger.warning("skipped training record no. %d: %s", self.num_skipped, reason)


def is_wide(record: Record) -> bool:
    """Whether an image is wider than high; one of unknown size counts as high."""
    return record.get(fields.WIDTH, 0) > record.get(fields.HEIGHT, 0)


class SeededStream(IterableDataset):
    """Mapped records in a sampler's order, numpy seeded anew at each place of it.

    They come batch by batch, each of one group.
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
            groups: (records,) the group of each record.
            batch_size: of this process. A data loader's workers take turns by batches.
            start: batches to leave out.
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
                for place, index in batch:
                    yield self._map(place, index)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Places with the index of their record; a batch is ready when its group has enough."""
        waiting = defaultdict(list)
        for place, index in enumerate(self.sampler):
            group = self.groups[index].item()
            waiting[group].append((place, index))
            if len(waiting[group]) == self.batch_size:
                yield waiting.pop(group)

    def _map(self, place: int, index: int) -> Record:
        """The record, or where it cannot be used another one, drawn by the place."""
        skipped: list[str] = []
        seed = np.random.SeedSequence([*self.seed, place])
        while len(skipped) < MAX_DRAWS:
            # Detectron2's augmentations draw from the global state.
            np.random.seed(seed.generate_state(4))  # noqa: NPY002
            try:
                mapped = self.mapper(self.records[index])
            except (OSError, ValueError) as error:
                skipped.append(str(error))
                (draw,) = seed.spawn(1)
                index = int(np.random.default_rng(draw).integers(len(self.records)))
                continue
            return {**mapped, SKIPPED: skipped} if skipped else mapped
        raise ValueError(
            f"{MAX_DRAWS} training records, drawn one after the other, could not be used; the "
            f"first: {skipped[0]}; the last: {skipped[-1]}. Find all of them with "
            "python tools/check_dataset.py"
        )
