"""The detections of several prompts become one result of an image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.modeling.postprocess import DetectionsPerImage
from glipv2_d2.modeling.results import Found, image_results, still_wanted
from glipv2_d2.structures import Prompt

SIZE = (40, 60)


def found(scores: list[float], class_: int) -> Found:
    """Boxes of the only label of a prompt."""
    boxes = torch.tensor([[1.0, 2, 10, 12]]).repeat(len(scores), 1)
    labels = torch.zeros(len(scores), dtype=torch.int64)
    prompt = Prompt("thing", (((0, 5),),), (class_,))
    return DetectionsPerImage(boxes, torch.tensor(scores), labels, labels), prompt


def scores_by_class(results: dict) -> list[tuple[int, float]]:
    instances = results["instances"]
    pairs = zip(instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
    return sorted((class_, round(score, 4)) for class_, score in pairs)


def test_where_nothing_was_to_be_found_there_are_no_instances() -> None:
    assert image_results({}, [], SIZE, limit=100) == {}


def test_boxes_are_in_the_callers_pixels_and_classes() -> None:
    results = image_results({"height": 80, "width": 60}, [found([0.5], class_=7)], SIZE, limit=100)
    assert results["instances"].pred_classes.tolist() == [7]
    # The corners are scaled, then the last pixel is added.
    assert results["instances"].pred_boxes.tensor.tolist() == [[1, 4, 11, 25]]
    assert results["instances"].image_size == (80, 60)


def test_only_several_prompts_share_the_limit() -> None:
    first, second = found([0.9, 0.2], class_=0), found([0.5, 0.1], class_=1)
    assert len(image_results({}, [first], SIZE, limit=1)["instances"]) == 2
    both = image_results({}, [first, second], SIZE, limit=2)
    assert scores_by_class(both) == [(0, pytest.approx(0.9)), (1, pytest.approx(0.5))]
    assert len(image_results({}, [first, second], SIZE, limit=-1)["instances"]) == 4


scores = st.lists(st.integers(0, 10**6), max_size=5, unique=True)


@given(st.lists(scores, min_size=1, max_size=4), st.integers(-1, 6))
def test_what_is_dropped_before_its_mask_is_made_would_not_be_kept(
    scores_per_prompt: list[list[int]], limit: int
) -> None:
    # All different: of equal scores any may stay.
    all_found = [
        found([(score * 4 + class_) / 5e6 for score in of_prompt], class_)
        for class_, of_prompt in enumerate(scores_per_prompt)
    ]
    kept: list[Found] = []
    for detections, prompt in all_found:
        wanted = still_wanted(detections, kept, num_prompts=len(all_found), limit=limit)
        kept.append((wanted, prompt))
    assert scores_by_class(image_results({}, kept, SIZE, limit)) == scores_by_class(
        image_results({}, all_found, SIZE, limit)
    )
