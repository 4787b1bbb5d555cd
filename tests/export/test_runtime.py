"""The functions of the runtime are those of the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glipv2_d2.data.resize import ResizeShortestEdge, TruncatedResizeShortestEdge
from glipv2_d2.export import runtime
from glipv2_d2.modeling.postprocess import nms_inclusive
from glipv2_d2.text import names
from glipv2_d2.text.token_maps import label_scores

NAMES = [
    "bat_(animal)",
    "(animal)",
    "a   b__c",
    "cafe\u0301",
    "\ufeffcat\u200b",
    "Ma\xdfe",
    "x\n y",
]


@pytest.mark.parametrize("function", ["normalize_unicode", "clean_name", "normalized_name"])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_cleaned_alike(function: str, name: str) -> None:
    assert getattr(runtime, function)(name) == getattr(names, function)(name)


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
def test_scores_of_labels_are_equal(aggregation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(5, 6, generator=generator)
    positive_map = torch.rand(4, 6, generator=generator) > 0.5
    positive_map[2] = False
    np.testing.assert_allclose(
        runtime._label_scores(probs.numpy(), positive_map.numpy(), aggregation),
        label_scores(probs, positive_map, aggregation).numpy(),
        rtol=1e-5,
    )


def test_suppression_is_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + torch.rand(200, 2, generator=generator) * 30], dim=1)
    scores, labels = torch.rand(200, generator=generator), torch.arange(200) % 3
    expected = nms_inclusive(boxes, scores, labels, 0.5)
    found = runtime._nms(boxes.numpy(), scores.numpy(), labels.numpy(), 0.5)
    assert 10 < len(found) < 190 and found.tolist() == expected.tolist()


@pytest.mark.parametrize("resize", [ResizeShortestEdge, TruncatedResizeShortestEdge])
@pytest.mark.parametrize(
    "shape", [(480, 640), (641, 479), (427, 640), (100, 1000), (1, 3000), (800, 800), (800, 1300)]
)
def test_photos_get_the_size_of_tests(resize: type, shape: tuple[int, int]) -> None:
    settings = {"resize": resize.__name__, "min_size": 800, "max_size": 1333}
    settings |= {"height": 1400, "width": 1400}
    # A blank array without memory.
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (*shape, 3))
    transform = resize(800, 1333).get_transform(image)
    expected = (getattr(transform, "new_h", shape[0]), getattr(transform, "new_w", shape[1]))
    assert runtime._resized(*shape, settings) == expected


def test_a_photo_that_does_not_fit_is_shrunk_with_its_shape() -> None:
    settings = {"resize": "ResizeShortestEdge", "min_size": 800, "max_size": 1333}
    settings |= {"height": 400, "width": 600}
    assert runtime._resized(640, 480, settings) == (400, 300)
    assert runtime._resized(10, 3000, settings) == (2, 600)
