"""Predictions in the classes of the data set that they are evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.structures import fields


class NamedClassesEvaluator(DatasetEvaluator):
    """Gives an evaluator predictions in the data set's classes.

    A prediction's class indexes the list that its image was asked; where that is the image's own
    (``classes``), it is found by name in the data set's.
    """

    def __init__(self, evaluator: DatasetEvaluator, class_names: Sequence[str]) -> None:
        """
        Args:
            evaluator: gets the renamed predictions.
            class_names: of the data set.
        """
        self.evaluator = evaluator
        self.class_names = list(class_names)

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        renamed = [self._rename(x, output) for x, output in zip(inputs, outputs, strict=True)]
        self.evaluator.process(inputs, renamed)

    def _rename(self, x: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        if fields.PHRASES in output:
            raise ValueError(
                f"the image {x.get(fields.FILE_NAME)!r} was asked a caption, whose phrases are not "
                "the classes that its data set is evaluated on: ask 'classes', or nothing"
            )
        asked = x.get(fields.CLASSES)
        if asked is None or list(asked) == self.class_names:
            return output
        unknown = [name for name in asked if name not in self.class_names]
        if unknown:
            raise ValueError(
                f"the image {x.get(fields.FILE_NAME)!r} was asked {unknown}, which are not among "
                "the names that its data set is evaluated on"
            )
        to_dataset = torch.tensor([self.class_names.index(name) for name in asked])
        instances = output[fields.INSTANCES].to("cpu")
        renamed = type(instances)(instances.image_size, **instances.get_fields())
        renamed.pred_classes = to_dataset[instances.pred_classes]
        return {**output, fields.INSTANCES: renamed}

    def evaluate(self) -> Any:
        return self.evaluator.evaluate()
