"""Which images a few-shot split has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from glipv2_d2.engine.few_shot import SEEDS, SHOTS, few_shot_subset


def data_set(num_images: int = 40) -> dict[str, Any]:
    """Image i shows class i % 3, every fourth also class 1; class 9 is in one image."""
    shown = [{i % 3} | ({1} if i % 4 == 0 else set()) for i in range(num_images)]
    shown[7].add(9)
    pairs = [(i, c) for i, classes in enumerate(shown) for c in sorted(classes)]
    return {
        "images": [{"id": i} for i in range(num_images + 1)],  # the last shows nothing
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
def test_every_class_is_seen_in_as_many_images_or_in_all_that_show_it(
    shots: int, seed: int
) -> None:
    seen = images_per_class(few_shot_subset(data_set(), shots=shots, seed=seed))
    for category, available in images_per_class(data_set()).items():
        assert seen[category] >= min(shots, available)


def test_each_image_was_needed_when_it_was_taken() -> None:
    subset = few_shot_subset(data_set(), shots=1, seed=3)
    assert len(subset["images"]) <= len(subset["categories"])


def test_the_seed_decides() -> None:
    first, again, other = (
        ids(few_shot_subset(data_set(), shots=3, seed=seed)) for seed in (3, 3, 30)
    )
    assert first == again != other


def test_the_order_of_the_file_does_not_decide() -> None:
    reversed_file = {**data_set(), "images": data_set()["images"][::-1]}
    subset = few_shot_subset(reversed_file, shots=3, seed=3)
    assert sorted(ids(subset)) == ids(few_shot_subset(data_set(), shots=3, seed=3))


def test_all_boxes_of_an_image_come_along_and_no_others() -> None:
    subset = few_shot_subset(data_set(), shots=1, seed=3)
    expected = [a for a in data_set()["annotations"] if a["image_id"] in ids(subset)]
    assert subset["annotations"] == expected


def test_crowds_count_as_nothing() -> None:
    coco = data_set()
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(ValueError, match="no image has an annotation"):
        few_shot_subset(coco, shots=1, seed=3)


def test_no_shots_are_refused() -> None:
    with pytest.raises(ValueError, match="shots is 0"):
        few_shot_subset(data_set(), shots=0, seed=3)
