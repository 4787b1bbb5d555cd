"""What the evaluators of texts share: one text per record, gathered, written for the server."""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from glipv2_d2.evaluation.records import records_by_id
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

PERCENT = 100.0


class TextEvaluator(DatasetEvaluator):
    """Compares a model's text for each record with those of people.

    What is measured are the records that were processed; a warning tells when these are not all.
    ``result_keys`` in the data set's metadata name the two keys of the server's file, the id and
    the text; by default they are ``id_key`` and ``text_key``.
    """

    id_key: ClassVar[str]
    """Of records and inputs, by which texts are known."""
    text_key: ClassVar[str]
    """Of the model's output."""
    results_file: ClassVar[str]
    """The texts in the form of the evaluation server."""

    def __init__(self, dataset_name: str, output_folder: str) -> None:
        """
        Args:
            dataset_name: registered.
            output_folder: where the main process writes.

        Raises:
            ValueError: records cannot be told apart.
        """
        self.dataset_name = dataset_name
        self.output_folder = Path(output_folder)
        self._records = records_by_id(dataset_name, self.id_key)
        self._texts: dict[Any, str] = {}

    @abstractmethod
    def measure(
        self, records: Sequence[dict[str, Any]], texts: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """Per task its metrics, of the texts of all processes; nothing where there is no truth."""

    def reset(self) -> None:
        self._texts = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            key, file_name = x.get(self.id_key), x.get(fields.FILE_NAME)
            if key not in self._records:
                raise ValueError(
                    f"data set {self.dataset_name!r} has no {self.id_key} {key!r} (of image "
                    f"{file_name!r}): evaluate the outputs with the data set that they are of"
                )
            if self.text_key not in output:
                raise ValueError(
                    f"the model gave no {self.text_key!r} for {self.id_key} {key!r} of image "
                    f"{file_name!r}: it has no head for this task, or was not asked"
                )
            self._texts[key] = output[self.text_key]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Per task its metrics in the main process, nothing in the others."""
        comm.synchronize()
        gathered = comm.gather(self._texts, dst=0)
        if not comm.is_main_process():
            return {}
        found = {key: text for part in gathered for key, text in part.items()}
        # The order of the data set, whatever the number of processes.
        texts = {key: found[key] for key in self._records if key in found}
        if len(texts) != len(self._records):
            logger.warning(
                "data set %r: %d of %d texts were asked for; the results are of those",
                self.dataset_name,
                len(texts),
                len(self._records),
            )
        self._write_for_server(texts)
        return self.measure([self._records[key] for key in texts], list(texts.values()))

    def _write_for_server(self, texts: dict[Any, str]) -> None:
        default = (self.id_key, self.text_key)
        id_key, text_key = MetadataCatalog.get(self.dataset_name).get("result_keys", default)
        results = [{id_key: key, text_key: text} for key, text in texts.items()]
        path = self.output_folder / self.results_file
        path.write_text(json.dumps(results), encoding="utf-8")
