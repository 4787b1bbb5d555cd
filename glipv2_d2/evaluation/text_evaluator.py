"""Base class of evaluators of generated text: one string per record."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from glipv2_d2.evaluation.records import records_by_id
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

PERCENT = 100.0


class TextEvaluator(DatasetEvaluator):
    """Gathers one predicted string per record, writes the result file and computes metrics.

    Results cover the processed records; a warning is logged if these are not all records of the
    dataset. ``result_keys`` in the dataset's metadata sets the keys of id and text in the result
    file for the evaluation server; default: ``id_key`` and ``text_key``.
    """

    id_key: ClassVar[str]
    """Field of the id in records and input dicts."""
    text_key: ClassVar[str]
    """Field of the predicted string in the model's output."""
    results_file: ClassVar[str]
    """Name of the result file in the format of the evaluation server."""

    def __init__(self, dataset_name: str, output_folder: str) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            output_folder: the main process writes its files here.

        Raises:
            ValueError: ids are missing or not unique.
        """
        self.dataset_name = dataset_name
        self.output_folder = Path(output_folder)
        self._records = records_by_id(dataset_name, self.id_key)
        self._texts: dict[Any, str] = {}

    @abstractmethod
    def measure(
        self, records: Sequence[dict[str, Any]], texts: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """Task -> metrics, from the strings of all processes; empty without references."""

    def reset(self) -> None:
        self._texts = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            key, file_name = x.get(self.id_key), x.get(fields.FILE_NAME)
            if key not in self._records:
                raise ValueError(
                    f"dataset {self.dataset_name!r} has no {self.id_key} {key!r} (image "
                    f"{file_name!r}): evaluate the outputs on the dataset that they were made for"
                )
            if self.text_key not in output:
                raise ValueError(
                    f"the output has no {self.text_key!r} for {self.id_key} {key!r} of image "
                    f"{file_name!r}: the model has no head for this task, or its input did not "
                    "request it"
                )
            self._texts[key] = output[self.text_key]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Task -> metrics in the main process, an empty dict in the others."""
        comm.synchronize()
        gathered = comm.gather(self._texts, dst=0)
        if not comm.is_main_process():
            return {}
        merged = {key: text for part in gathered for key, text in part.items()}
        # In the order of the dataset, for any number of processes.
        texts = {key: merged[key] for key in self._records if key in merged}
        if len(texts) != len(self._records):
            logger.warning(
                "dataset %r: only %d of %d records were evaluated",
                self.dataset_name,
                len(texts),
                len(self._records),
            )
        self._write_results(texts)
        return self.measure([self._records[key] for key in texts], list(texts.values()))

    def _write_results(self, texts: dict[Any, str]) -> None:
        default = (self.id_key, self.text_key)
        id_key, text_key = MetadataCatalog.get(self.dataset_name).get("result_keys", default)
        results = [{id_key: key, text_key: text} for key, text in texts.items()]
        path = self.output_folder / self.results_file
        atomic_write(path, dump_json(results))
