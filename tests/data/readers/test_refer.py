"""The published files of RefCOCO, with their masks."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from helpers.models import tiny_cfg
from helpers.phrase_data import model_output

from glipv2_d2.data.readers.refer import SPLITS, read_refer, read_refs
from glipv2_d2.data.registration import register
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.evaluation.mask_iou import union_of_segmentations
from glipv2_d2.structures import fields

Write = Callable[[str, Any], str]
POLYGON = [5.0, 5.0, 25.0, 5.0, 25.0, 15.0, 5.0, 15.0]


def make_ref(**changes: Any) -> dict[str, Any]:
    """An entry with the fields of refs(unc).p."""
    ref = {
        "ref_id": 0,
        "ann_id": 1719310,
        "category_id": 1,
        "image_id": 581857,
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "split": "testA",
        "sent_ids": [0, 1],
        "sentences": [
            {
                "tokens": ["the", "lady"],
                "raw": "THE LADY",
                "sent_id": 0,
                "sent": "the lady",
            },
            {"tokens": ["woman", "left"], "raw": "woman left", "sent_id": 1, "sent": "woman left"},
        ],
    }
    return {**ref, **changes}


def make_instances() -> dict[str, Any]:
    return {
        "info": {"version": "0.1"},
        "licenses": [],
        "images": [
            {
                "id": 581857,
                "license": 1,
                "file_name": "COCO_train2014_000000581857.jpg",
                "height": 30,
                "width": 40,
                "coco_url": "http://mscoco.org/images/581857",
                "date_captured": "2013-11-22 21:43:00",
                "flickr_url": "",
            }
        ],
        "annotations": [
            {
                "id": 1719310,
                "image_id": 581857,
                "category_id": 1,
                "bbox": [5.0, 5.0, 20.0, 10.0],
                "segmentation": [POLYGON],
                "area": 200.0,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }


@pytest.fixture
def write_files(tmp_path: Path, write_json: Write) -> Callable[..., tuple[str, str]]:
    def write(*refs: Any, protocol: int = 2) -> tuple[str, str]:
        path = tmp_path / "refs(unc).p"
        path.write_bytes(pickle.dumps(list(refs), protocol))
        return str(path), write_json("instances.json", make_instances())

    return write


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_sentence_is_a_record_with_the_box_and_mask_of_its_referent(
    write_files: Callable[..., tuple[str, str]], protocol: int
) -> None:
    files = write_files(make_ref(), make_ref(ref_id=1, split="val"), protocol=protocol)
    records = read_refer(*files, "images", "testA", "set")
    assert records == [
        {
            "file_name": "images/COCO_train2014_000000581857.jpg",
            "height": 30,
            "width": 40,
            "image_id": sentence_id,
            fields.CAPTION: caption,
            fields.PHRASES: [[(0, len(caption))]],
            "annotations": [
                {
                    "bbox": [5.0, 5.0, 20.0, 10.0],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": [POLYGON],
                    "iscrowd": 0,
                    "category_id": 0,
                }
            ],
        }
        for sentence_id, caption in enumerate(("the lady", "woman left"))
    ]


@pytest.fixture
def cfg() -> CfgNode:
    return tiny_cfg()


def test_overall_and_mean_iou_are_those_of_the_masks(
    write_files: Callable[..., tuple[str, str]], cfg: CfgNode, dataset_name: str
) -> None:
    files = write_files(make_ref())
    register(
        dataset_name,
        lambda: read_refer(*files, "images", "testA", dataset_name),
        source_files=files,
        evaluator_type="refcoco",
    )
    truth = union_of_segmentations([[POLYGON]], (30, 40))
    half = truth.copy()
    half[:, 15:] = False
    evaluator = build_evaluator(cfg, dataset_name)
    evaluator.reset()
    for record, mask in zip(
        read_refer(*files, "images", "testA", dataset_name), (truth, half), strict=True
    ):
        output = model_output([(5, 5, 25, 15)], [0.9], [0], mask[None])
        evaluator.process([record], [output])
    results = evaluator.evaluate()["referring_segm"]
    # 200 and 100 of 200 pixels.
    assert (results["mIoU"], results["oIoU"]) == (75, 75)


def test_references_without_a_known_annotation_are_dropped_with_a_report(
    write_files: Callable[..., tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    files = write_files(make_ref(ann_id=5), make_ref())
    with caplog.at_level(logging.WARNING):
        assert len(read_refer(*files, "images", "testA", "set")) == 2
    assert "1 references had an ann_id that is not in instances.json" in caplog.text


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("executed",)


def test_a_pickle_that_requests_code_is_refused_without_running_it(
    write_files: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_files(Evil())
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p' requests __builtin__\.print"):
        read_refs(files[0])
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"sentences": "a lady"}, {"ann_id": "x"}, {"split": None}, {"sentences": [{}]}]
)
def test_an_entry_with_other_fields_is_an_error_with_its_number(
    write_files: Callable[..., tuple[str, str]], changes: dict[str, Any]
) -> None:
    files = write_files(make_ref(), make_ref(**changes))
    with pytest.raises(ValueError, match=r"number 1 of .*refs\(unc\)\.p"):
        read_refs(files[0])


def test_a_file_that_is_no_pickle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is not a pickle"):
        read_refs(str(path))


def test_every_published_split_is_registered() -> None:
    for dataset, authors in SPLITS.items():
        for author, splits in authors.items():
            for split in splits:
                metadata = MetadataCatalog.get(f"{dataset}_{author}_{split}")
                assert metadata.source_files[0].endswith(f"{dataset}/refs({author}).p")
                assert metadata.evaluator_type == "refcoco"
