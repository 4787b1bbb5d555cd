"""Each format is read by a library that people read it with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import supervision as sv
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from glipv2_d2.prediction import Prediction
from glipv2_d2.prediction_formats import label_studio_config

HEIGHT, WIDTH = 40, 60
NAMES = ["cat", 'a "big" <dog> & co', "unused"]
BOXES = [[4.0, 8.0, 20.0, 16.0], [30.0, 20.0, 50.0, 40.0]]


@pytest.fixture
def prediction() -> Prediction:
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor(BOXES))
    instances.scores = torch.tensor([0.75, 0.5])
    instances.pred_classes = torch.tensor([1, 0])
    return Prediction(instances, list(NAMES), (HEIGHT, WIDTH))


@pytest.fixture
def masked(prediction: Prediction) -> Prediction:
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 8:16, 4:20] = masks[1, 20:40, 30:50] = True
    prediction.instances.pred_masks = masks
    return prediction


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    return folder


def test_supervision_has_boxes_names_scores_and_masks(masked: Prediction) -> None:
    detections = masked.to_supervision()
    assert detections.xyxy.tolist() == BOXES
    assert list(detections["class_name"]) == [NAMES[1], NAMES[0]]
    assert detections.confidence is not None and detections.confidence.tolist() == [0.75, 0.5]
    assert detections.mask is not None and detections.mask.sum(axis=(1, 2)).tolist() == [128, 400]
    back = Prediction.from_supervision(detections, NAMES, (HEIGHT, WIDTH))
    assert back.labels == masked.labels


def test_supervision_of_no_detection_is_empty(prediction: Prediction) -> None:
    detections = prediction.above(0.9).to_supervision()
    assert len(detections) == 0
    assert len(Prediction.from_supervision(detections, NAMES, (HEIGHT, WIDTH))) == 0


def test_missing_supervision_names_the_extra(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match=r"pip install 'glipv2_d2\[supervision\]'"):
        prediction.to_supervision()


def test_supervision_reads_yolo(prediction: Prediction, images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(prediction.to_yolo())
    (tmp_path / "data.yaml").write_text(json.dumps({"names": NAMES}))
    dataset = sv.DetectionDataset.from_yolo(
        str(images), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
    )
    (read,) = dataset.annotations.values()
    np.testing.assert_allclose(read.xyxy, BOXES, atol=1e-3)
    assert read.class_id is not None and read.class_id.tolist() == [1, 0]


def test_supervision_reads_voc(prediction: Prediction, images: Path, tmp_path: Path) -> None:
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(prediction.to_voc("a.png"))
    dataset = sv.DetectionDataset.from_pascal_voc(str(images), str(tmp_path / "voc"))
    (read,) = dataset.annotations.values()
    assert read.xyxy.tolist() == BOXES
    assert read.class_id is not None
    assert [dataset.classes[index] for index in read.class_id] == prediction.labels


def test_voc_has_no_character_that_xml_forbids(prediction: Prediction) -> None:
    prediction.names[0] = "cat\x00\ud800"
    root = ElementTree.fromstring(prediction.to_voc("a\x1b.png"))
    assert root.findtext("filename") == "a .png"


def test_boxes_beyond_the_image_are_cut_in_yolo_and_voc(prediction: Prediction) -> None:
    prediction.instances.pred_boxes = Boxes(torch.tensor([[-3.0, -2.0, 70.0, 50.0], BOXES[1]]))
    assert prediction.to_yolo().splitlines()[0] == "1 0.500000 0.500000 1.000000 1.000000"
    box = ElementTree.fromstring(prediction.to_voc("a.png")).find("object/bndbox")
    assert box is not None and [int(str(x.text)) for x in box] == [1, 1, WIDTH, HEIGHT]


def test_coco_rows_give_the_prediction_back(masked: Prediction) -> None:
    rows = json.loads(json.dumps(masked.to_coco(1)))
    back = Prediction.from_coco(rows, NAMES, (HEIGHT, WIDTH))
    assert back.to_coco(1) == rows
    assert torch.equal(back.instances.pred_masks, masked.instances.pred_masks)


def test_no_coco_rows_give_an_empty_prediction() -> None:
    assert len(Prediction.from_coco([], NAMES, (HEIGHT, WIDTH))) == 0


def test_label_studio_task_fits_its_interface(prediction: Prediction) -> None:
    task = json.loads(json.dumps(prediction.to_label_studio("/data/a.png", "mini")))
    assert task["data"] == {"image": "/data/a.png"}
    (predicted,) = task["predictions"]
    assert predicted["model_version"] == "mini" and predicted["score"] == 0.625
    first = predicted["result"][0]
    assert first["value"] == {
        "x": pytest.approx(100 * 4 / 60),
        "y": 20.0,
        "width": pytest.approx(100 * 16 / 60),
        "height": 20.0,
        "rotation": 0,
        "rectanglelabels": [NAMES[1]],
    }
    assert (first["original_width"], first["original_height"]) == (WIDTH, HEIGHT)
    view = ElementTree.fromstring(label_studio_config(NAMES))
    image, labels = view.find("Image"), view.find("RectangleLabels")
    assert image is not None and labels is not None
    assert image.get("name") == first["to_name"] and image.get("value") == "$image"
    assert labels.get("name") == first["from_name"] and labels.get("toName") == first["to_name"]
    assert [label.get("value") for label in labels] == NAMES
    ids = [result["id"] for result in predicted["result"]]
    assert len(set(ids)) == 2


def test_label_studio_takes_a_file_name_that_is_not_utf8(prediction: Prediction) -> None:
    task = prediction.to_label_studio("\udce9t\udce9.png", "model")
    assert len(task["predictions"][0]["result"]) == len(prediction)


def test_label_studio_values_are_within_its_schema() -> None:
    """Of label-studio-sdk: RectangleLabelsValue, Region and PredictionValue."""
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor([[-3.0, -2.0, 63.0, 45.0], [59.0, 39.0, 61.0, 41.0]]))
    instances.scores = torch.tensor([1.0, 0.0])
    instances.pred_classes = torch.tensor([0, 1])
    prediction = Prediction(instances, ["a\x01b", "dog"], (HEIGHT, WIDTH))
    (predicted,) = prediction.to_label_studio("a.png")["predictions"]
    assert isinstance(predicted["model_version"], str) and 0 <= predicted["score"] <= 1
    for result in predicted["result"]:
        value = result["value"]
        for key in ("id", "type", "from_name", "to_name"):
            assert isinstance(result[key], str)
        # The tag of the interface in lower case.
        assert result["type"] == "rectanglelabels"
        for start, length in (("x", "width"), ("y", "height")):
            assert value[start] >= 0 and value[length] >= 0
            assert value[start] + value[length] <= 100
        assert 0 <= value["rotation"] <= 360
        assert all(isinstance(label, str) for label in value["rectanglelabels"])
    names = [result["value"]["rectanglelabels"][0] for result in predicted["result"]]
    labels = ElementTree.fromstring(label_studio_config(prediction.names)).find("RectangleLabels")
    assert labels is not None and [label.get("value") for label in labels] == names
