"""An error of a model names the images of its batch."""

from __future__ import annotations

from typing import Any

import pytest

from glipv2_d2.engine.test_time_augmentation import GLIPv2WithTTA
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.input_checks import MAX_NAMED_IMAGES, names_images
from glipv2_d2.modeling.open_vocabulary_retinanet import OpenVocabularyRetinaNet
from glipv2_d2.modeling.two_stage import OpenVocabularyRCNN


class Failing:
    @names_images
    def forward(self, batched_inputs: list[dict[str, Any]]) -> None:
        raise RuntimeError("out of memory")


def notes_of(inputs: list[Any]) -> list[str]:
    with pytest.raises(RuntimeError, match="^out of memory") as caught:
        Failing().forward(inputs)
    return getattr(caught.value, "__notes__", [])


def test_each_image_of_the_batch_is_named_once() -> None:
    inputs = [{"file_name": name} for name in ("a.jpg", "b.jpg", "b.jpg")]
    assert notes_of(inputs) == ["images of the batch: 'a.jpg', 'b.jpg'"]


def test_a_large_batch_is_named_by_its_first_images() -> None:
    [note] = notes_of([{"file_name": f"{i}.jpg"} for i in range(MAX_NAMED_IMAGES + 3)])
    assert note.endswith(f"'{MAX_NAMED_IMAGES - 1}.jpg' and 3 more")


@pytest.mark.parametrize("inputs", [[], [{}], [None]])
def test_inputs_without_a_file_are_not_named(inputs: list[Any]) -> None:
    assert notes_of(inputs) == []


@pytest.mark.parametrize(
    "model", [GLIPv2, OpenVocabularyRCNN, OpenVocabularyRetinaNet, GLIPv2WithTTA]
)
def test_every_model_names_its_images(model: Any) -> None:
    with pytest.raises(Exception, match=".") as caught:
        model.forward(None, [{"file_name": "a.jpg"}])
    assert caught.value.__notes__ == ["images of the batch: 'a.jpg'"]
