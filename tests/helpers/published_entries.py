"""Entries of published annotation files, in the types of their fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CAPTION = "Two young guys with shaggy hair rest on their hands"
GUYS, HAIR, HANDS = [0, 14], [20, 31], [40, 51]

OPENIMAGES_COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside,XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
)
"""Of version 6."""

IMAGENET_XML = """<annotation>
	<folder>n01440764</folder>
	<filename>n01440764_10026</filename>
	<source>
		<database>ILSVRC_2014</database>
	</source>
	<size>
		<width>500</width>
		<height>375</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
	<object>
		<name>{synset}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>{xmin}</xmin>
			<ymin>1</ymin>
			<xmax>200</xmax>
			<ymax>375</ymax>
		</bndbox>
	</object>
</annotation>
"""


def mdetr_flickr() -> dict[str, Any]:
    """final_flickr_separateGT_*.json: sizes are text, and one box is of two phrases."""
    box = {"image_id": 0, "iscrowd": 0, "category_id": 1}
    return {
        "info": [],
        "licenses": [],
        "images": [
            {
                "file_name": "1000092795.jpg",
                "height": "500",
                "width": "333",
                "id": 0,
                "original_img_id": 1000092795,
                "sentence_id": 0,
                "caption": CAPTION,
                "dataset_name": "flickr",
                "tokens_negative": [[0, 51]],
                "tokens_positive_eval": [[GUYS], [HAIR], [HANDS]],
            }
        ],
        "annotations": [
            {**box, "id": 0, "bbox": [40, 50, 100, 300], "area": 30000, "tokens_positive": [GUYS]},
            {
                **box,
                "id": 1,
                "bbox": [60, 50, 30, 30],
                "area": 900,
                "tokens_positive": [GUYS, HAIR],
            },
            {**box, "id": 2, "bbox": [70, 200, 9, 9], "area": 81, "tokens_positive": [HANDS]},
        ],
        "categories": [{"supercategory": "object", "id": 1, "name": "object"}],
    }


def vqa_annotation(
    question_id: int, people: Sequence[str], answer_type: str, image_id: int = 458752
) -> dict[str, Any]:
    """An entry of v2_mscoco_*_annotations.json."""
    return {
        "question_type": "what is this" if answer_type == "other" else "is it",
        "multiple_choice_answer": people[0],
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": i}
            for i, answer in enumerate(people, start=1)
        ],
        "image_id": image_id,
        "answer_type": answer_type,
        "question_id": question_id,
    }


def phrasecut_task(
    image_id: int,
    phrase: str,
    boxes: Sequence[Sequence[float]],
    polygons: Sequence[Sequence[Sequence[Sequence[float]]]],
) -> dict[str, Any]:
    """An entry of refer_*.json.

    Args:
        boxes: XYWH of each instance.
        polygons: of each instance, as lists of [x, y] points.
    """
    return {
        "task_id": f"{image_id}__1",
        "image_id": image_id,
        "ann_ids": list(range(5, 5 + len(boxes))),
        "phrase": phrase,
        "phrase_structure": {"name": phrase.split()[-1], "attributes": phrase.split()[:-1]},
        "instance_boxes": [list(box) for box in boxes],
        "Polygons": polygons,
    }


def visual_genome_image(image_id: int, width: int, height: int) -> dict[str, Any]:
    """An entry of image_data.json, of an image that is not in COCO."""
    return {
        "image_id": image_id,
        "width": width,
        "height": height,
        "url": f"https://cs.stanford.edu/people/rak248/VG_100K/{image_id}.jpg",
        "coco_id": None,
        "flickr_id": None,
    }
