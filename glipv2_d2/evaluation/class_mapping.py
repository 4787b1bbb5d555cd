"""Map predicted classes to the classes of the evaluated dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.messages import quote
from glipv2_d2.structures import fields
from glipv2_d2.text.names import normalized_name


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
        # Of names that are equal in the end, an exact one is preferred.
        self._class_of = {normalized_name(name): i for i, name in enumerate(self.class_names)} | {
            name: i for i, name in enumerate(self.class_names)
        }

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
        class_of = {name: self._class_index(name) for name in prompt}
        unknown = [name for name, index in class_of.items() if index is None]
        if unknown:
            raise ValueError(
                f"the classes {quote(unknown)} of image {x.get(fields.FILE_NAME)!r} are not among "
                "the class names of the evaluated dataset"
            )
        to_dataset = torch.tensor([class_of[name] for name in prompt])
        instances = output[fields.INSTANCES].to("cpu")
        mapped = type(instances)(instances.image_size, **instances.get_fields())
        mapped.pred_classes = to_dataset[instances.pred_classes]
        return {**output, fields.INSTANCES: mapped}

    def _class_index(self, name: str) -> int | None:
        return self._class_of.get(name, self._class_of.get(normalized_name(name)))

    def evaluate(self) -> Any:
        return self.evaluator.evaluate()
