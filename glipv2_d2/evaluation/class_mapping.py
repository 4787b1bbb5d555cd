"""Map predicted classes to the classes of the evaluated dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.structures import fields


class ClassMappingEvaluator(DatasetEvaluator):
    """Maps predicted classes to the dataset's classes for a wrapped evaluator.

    A predicted class is an index into the class names of the prompt. If an input dict has its own
    ``classes``, they are mapped to those of the dataset by name.
    """

    def __init__(self, evaluator: DatasetEvaluator, class_names: Sequence[str]) -> None:
        """
        Args:
            evaluator: receives the mapped predictions.
            class_names: class names of the dataset.
        """
        self.evaluator = evaluator
        self.class_names = list(class_names)

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        mapped = [self._map_classes(x, output) for x, output in zip(inputs, outputs, strict=True)]
        self.evaluator.process(inputs, mapped)

    def _map_classes(self, x: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        if fields.PHRASES in output:
            raise ValueError(
                f"the prompt of image {x.get(fields.FILE_NAME)!r} is a caption, whose phrases are "
                "not classes of the evaluated dataset: set 'classes', or no prompt"
            )
        prompt = x.get(fields.CLASSES)
        if prompt is None or list(prompt) == self.class_names:
            return output
        unknown = [name for name in prompt if name not in self.class_names]
        if unknown:
            raise ValueError(
                f"the classes {unknown} of image {x.get(fields.FILE_NAME)!r} are not among the "
                "class names of the evaluated dataset"
            )
        to_dataset = torch.tensor([self.class_names.index(name) for name in prompt])
        instances = output[fields.INSTANCES].to("cpu")
        mapped = type(instances)(instances.image_size, **instances.get_fields())
        mapped.pred_classes = to_dataset[instances.pred_classes]
        return {**output, fields.INSTANCES: mapped}

    def evaluate(self) -> Any:
        return self.evaluator.evaluate()
