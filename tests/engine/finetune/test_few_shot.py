"""The images of a few-shot split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from glipv2_d2.engine.finetune.few_shot import SEEDS, SHOTS, few_shot_subset


def dataset(num_images: int = 40) -> dict[str, Any]:
    """Image i has class i % 3, every fourth image also class 1; class 9 is in one image."""
    classes_of = [{i % 3} | ({1} if i % 4 == 0 else set()) for i in range(num_images)]
    classes_of[7].add(9)
    pairs = [(i, c) for i, classes in enumerate(classes_of) for c in sorted(classes)]
    return {
        "images": [{"id": i} for i in range(num_images + 1)],  # the last has no annotation
        "annotations": [
            {"id": k, "image_id": i, "category_id": c} for k, (i, c) in enumerate(pairs)
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in (0, 1, 2, 9)],
    }


def images_per_class(coco: dict[str, Any]) -> Counter[int]:
    return Counter(c for _, c in {(a["image_id"], a["category_id"]) for a in coco["annotations"]})


def ids(coco: dict[str, Any]) -> list[int]:
    return [image["id"] for image in coco["images"]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shots", SHOTS)
def test_every_class_has_the_requested_number_of_images_or_all_of_its_images(
    shots: int, seed: int
) -> None:
    sampled = images_per_class(few_shot_subset(dataset(), shots=shots, seed=seed))
    for category, available in images_per_class(dataset()).items():
        assert sampled[category] >= min(shots, available)


def test_no_more_images_than_classes_are_sampled_for_one_shot() -> None:
    subset = few_shot_subset(dataset(), shots=1, seed=3)
    assert len(subset["images"]) <= len(subset["categories"])


def test_the_sample_depends_on_the_seed() -> None:
    first, again, other = (
        ids(few_shot_subset(dataset(), shots=3, seed=seed)) for seed in (3, 3, 30)
    )
    assert first == again != other


def test_the_sample_does_not_depend_on_the_order_of_the_file() -> None:
    reversed_file = {**dataset(), "images": dataset()["images"][::-1]}
    subset = few_shot_subset(reversed_file, shots=3, seed=3)
    assert sorted(ids(subset)) == ids(few_shot_subset(dataset(), shots=3, seed=3))


def test_the_annotations_are_those_of_the_sampled_images() -> None:
    subset = few_shot_subset(dataset(), shots=1, seed=3)
    expected = [a for a in dataset()["annotations"] if a["image_id"] in ids(subset)]
    assert subset["annotations"] == expected


def test_crowd_annotations_are_ignored() -> None:
    coco = dataset()
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(ValueError, match="no image has an annotation"):
        few_shot_subset(coco, shots=1, seed=3)


def test_less_than_one_shot_is_an_error() -> None:
    with pytest.raises(ValueError, match="shots is 0"):
        few_shot_subset(dataset(), shots=0, seed=3)
