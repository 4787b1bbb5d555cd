"""Annotation files as exporters write them: one truth for training, checks, evaluation, finetune.

Detections equal to the sound truth go through reader, mapper, check_dataset and evaluator.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from helpers.tiny_coco import write_coco
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from glipv2_d2.data.checks import DatasetReport, PromptLimits, check_dataset
from glipv2_d2.data.coco_truth import read_truth
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.data.readers.lvis import read_lvis
from glipv2_d2.data.sanitize import sanitize_dataset
from glipv2_d2.engine.finetune.coco_folder import open_coco_folder
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.text.tokenizer import Tokenizer

Content = dict[str, Any]
Change = Callable[[Content], Any]

NAME = "odd_annotations"
SQUARE = [4.0, 6.0, 24.0, 6.0, 24.0, 22.0, 4.0, 22.0]
"""The outline of every box of the sound file."""


def annotation(content: Content, **fields: Any) -> None:
    content["annotations"][0].update(fields)


def every(content: Content, key: str, value: Callable[[Content], Any], of: str = "annotations"):
    for entry in content[of]:
        entry[key] = value(entry)


def without(content: Content, key: str, of: str = "annotations") -> None:
    for entry in content[of]:
        entry.pop(key, None)


def add_group(content: Content) -> None:
    for category in content["categories"]:
        category["supercategory"] = "cat"
    content["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})


def rle(height: int, width: int, **fields: Any) -> Content:
    return {"size": [height, width], "counts": [10, 30, height * width - 40], **fields}


def compressed(height: int, width: int) -> Content:
    found = coco_mask.frPyObjects(rle(height, width), height, width)
    return {"size": [height, width], "counts": found["counts"].decode()}


SAME: dict[str, Change] = {
    "annotation ids from 0": lambda c: every(c, "id", lambda a: a["id"] - 1),
    "one id for all annotations": lambda c: every(c, "id", lambda a: 7),
    "annotations without id": lambda c: without(c, "id"),
    "no area": lambda c: without(c, "area"),
    "area 0": lambda c: every(c, "area", lambda a: 0),
    "area NaN": lambda c: every(c, "area", lambda a: float("nan")),
    "area as text": lambda c: every(c, "area", lambda a: str(a["area"])),
    "no iscrowd": lambda c: without(c, "iscrowd"),
    "iscrowd '0'": lambda c: every(c, "iscrowd", lambda a: "0"),
    "iscrowd false": lambda c: every(c, "iscrowd", lambda a: False),
    "iscrowd 'false'": lambda c: every(c, "iscrowd", lambda a: "false"),
    "iscrowd null": lambda c: every(c, "iscrowd", lambda a: None),
    "iscrowd 0.0": lambda c: every(c, "iscrowd", lambda a: 0.0),
    "ignore '0'": lambda c: every(c, "ignore", lambda a: "0"),
    "sizes as text": lambda c: [every(c, k, lambda i, k=k: str(i[k]), "images") for k in SIZES],
    "sizes as floats": lambda c: [every(c, k, lambda i, k=k: float(i[k]), "images") for k in SIZES],
    "widths null": lambda c: every(c, "width", lambda i: None, "images"),
    "widths as words": lambda c: every(c, "width", lambda i: "wide", "images"),
    "widths huge": lambda c: every(c, "width", lambda i: 10**400, "images"),
    "widths negative": lambda c: every(c, "width", lambda i: -5, "images"),
    "boxes as text": lambda c: every(c, "bbox", lambda a: list(map(str, a["bbox"]))),
    "image ids of annotations as text": lambda c: every(
        c, "image_id", lambda a: str(a["image_id"])
    ),
    "image ids of annotations as floats": lambda c: every(
        c, "image_id", lambda a: float(a["image_id"])
    ),
    "category ids as text": lambda c: every(c, "category_id", lambda a: str(a["category_id"])),
    "ids of categories as text": lambda c: every(c, "id", lambda a: str(a["id"]), "categories"),
    "category ids as text throughout": lambda c: [
        every(c, "id", lambda e: str(e["id"]), "categories"),
        every(c, "category_id", lambda a: str(a["category_id"])),
    ],
    "category ids as words": lambda c: [
        every(c, "id", lambda e: f"c{e['id']}", "categories"),
        every(c, "category_id", lambda a: f"c{a['category_id']}"),
    ],
    "image ids as floats": lambda c: every(c, "id", lambda i: float(i["id"]), "images"),
    "image ids as padded text": lambda c: [
        every(c, "id", lambda i: f"{i['id']:012d}", "images"),
        every(c, "image_id", lambda a: f"{a['image_id']:012d}"),
    ],
    "info null": lambda c: c.update(info=None, licenses=5),
    "file names with backslashes": lambda c: every(
        c, "file_name", lambda i: f"..\\images\\{i['file_name']}", "images"
    ),
    "file names with ..": lambda c: every(
        c, "file_name", lambda i: f"../images/{i['file_name']}", "images"
    ),
    "an image listed twice": lambda c: c["images"].append(dict(c["images"][0])),
    "categories listed twice": lambda c: c["categories"].extend(copy.deepcopy(c["categories"])),
    "a group called like a class": add_group,
    "a flat polygon": lambda c: annotation(c, segmentation=list(SQUARE)),
    "a polygon of pairs": lambda c: annotation(
        c, segmentation=[[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]
    ),
    "a polygon of text": lambda c: annotation(c, segmentation=[list(map(str, SQUARE))]),
    "a polygon of two points": lambda c: annotation(c, segmentation=[SQUARE[:4]]),
    "a polygon of odd length": lambda c: annotation(c, segmentation=[SQUARE[:7]]),
    "an empty polygon": lambda c: annotation(c, segmentation=[[]]),
    "a polygon on a line": lambda c: annotation(c, segmentation=[[1, 1, 5, 1, 9, 1]]),
    "a polygon with NaN": lambda c: annotation(c, segmentation=[[*SQUARE[:7], float("nan")]]),
    "a polygon with huge numbers": lambda c: annotation(c, segmentation=[[*SQUARE[:7], 1e300]]),
    "no polygons": lambda c: annotation(c, segmentation=[]),
    "a mask null": lambda c: annotation(c, segmentation=None),
    "a mask of words": lambda c: annotation(c, segmentation="square"),
    "deeply nested polygons": lambda c: annotation(c, segmentation=nested(200)),
    "an RLE of half the size": lambda c: annotation(c, segmentation=rle(24, 24)),
    "a compressed RLE of half the size": lambda c: annotation(c, segmentation=compressed(24, 24)),
    "an RLE that ends early": lambda c: annotation(c, segmentation=rle(48, 48, counts=[10, 30])),
    "an RLE that never ends": lambda c: annotation(c, segmentation=rle(48, 48, counts=[1, 2**40])),
    "an RLE with a negative run": lambda c: annotation(
        c, segmentation=rle(48, 48, counts=[48 * 48 + 5, -5])
    ),
    "an RLE without size": lambda c: annotation(c, segmentation={"counts": [1, 2]}),
    "an RLE without counts": lambda c: annotation(c, segmentation={"size": [48, 48]}),
    "an RLE of other letters": lambda c: annotation(c, segmentation=rle(48, 48, counts="é~~~ ")),
    "an RLE that is cut": lambda c: annotation(c, segmentation=rle(48, 48, counts="ooooooooo")),
    "an empty RLE": lambda c: annotation(c, segmentation=rle(48, 48, counts="")),
    "an RLE without a pixel": lambda c: annotation(c, segmentation=rle(48, 48, counts=[48 * 48])),
    "fields nested deeply": lambda c: annotation(c, attributes=nested(300)),
}
"""Files that are as good as the sound one."""
SIZES = ("height", "width")


def nested(depth: int) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(depth):
        value = [value]
    return value


LESS_ONE: dict[str, Change] = {
    "a missing bbox": lambda c: c["annotations"][0].pop("bbox"),
    "an empty bbox": lambda c: annotation(c, bbox=[]),
    "a bbox null": lambda c: annotation(c, bbox=None),
    "a bbox of three numbers": lambda c: annotation(c, bbox=[1, 2, 3]),
    "a bbox with null": lambda c: annotation(c, bbox=[1, 2, None, 4]),
    "a bbox with NaN": lambda c: annotation(c, bbox=[1, 2, float("nan"), 4]),
    "a bbox with infinity": lambda c: annotation(c, bbox=[1, 2, float("inf"), 4]),
    "a bbox with a huge number": lambda c: annotation(c, bbox=[1, 2, 10**400, 4]),
    "a bbox of words": lambda c: annotation(c, bbox=["a", "b", "c", "d"]),
    "a bbox of text with other marks": lambda c: annotation(c, bbox=["4,0", "6", "2_0", "16"]),
    "a bbox as one text": lambda c: annotation(c, bbox="4 6 20 16"),
    "a bbox in a list": lambda c: annotation(c, bbox=[[4, 6, 20, 16]]),
    "a bbox of flags": lambda c: annotation(c, bbox=[True, True, True, True]),
    "a bbox as an object": lambda c: annotation(c, bbox={"x": 1}),
    "a bbox without width": lambda c: annotation(c, bbox=[4, 6, 0, 16]),
    "a bbox of negative height": lambda c: annotation(c, bbox=[4, 6, 20, -16]),
    "a bbox beside the image": lambda c: annotation(c, bbox=[400, 6, 20, 16]),
    "an image that is not listed": lambda c: annotation(c, image_id=99),
    "a category that is not listed": lambda c: annotation(c, category_id=99),
}
"""Files of which the first annotation is left out."""

REFUSED: dict[str, Change] = {
    "a missing category_id": lambda c: c["annotations"][0].pop("category_id"),
    "a category_id null": lambda c: annotation(c, category_id=None),
    "a category_id NaN": lambda c: annotation(c, category_id=float("nan")),
    "a category_id that is a list": lambda c: annotation(c, category_id=[10]),
    "a category_id true": lambda c: annotation(c, category_id=True),
    "a missing image_id": lambda c: c["annotations"][0].pop("image_id"),
    "an image_id that is an object": lambda c: annotation(c, image_id={}),
    "an image without id": lambda c: c["images"][0].pop("id"),
    "an image id 1.5": lambda c: c["images"][0].update(id=1.5),
    "one image id for two files": lambda c: c["images"][0].update(id=1),
    "an image without a file": lambda c: c["images"][0].pop("file_name"),
    "a category without id": lambda c: c["categories"][0].pop("id"),
    "a category without a name": lambda c: c["categories"][0].pop("name"),
    "a category name null": lambda c: c["categories"][0].update(name=None),
    "one category id for two names": lambda c: c["categories"][0].update(id=20),
    "iscrowd 'perhaps'": lambda c: annotation(c, iscrowd="perhaps"),
    "iscrowd a list": lambda c: annotation(c, iscrowd=[1]),
    "annotations as an object": lambda c: c.update(annotations={"1": c["annotations"][0]}),
    "images as an object": lambda c: c.update(images={}),
    "no images": lambda c: c.pop("images"),
    "an image that is a name": lambda c: c["images"].append("7.png"),
    "an annotation that is a list": lambda c: c["annotations"].append([1, 2]),
    "no categories": lambda c: c.pop("categories"),
}
"""Files that allow no decision."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Content, Path]:
    path, images = write_coco(tmp_path_factory.mktemp("sound"), num_images=6)
    return json.loads(path.read_text()), images


@pytest.fixture(scope="module")
def limits() -> PromptLimits:
    return PromptLimits(Tokenizer("bert-base-uncased", 256), ". ", 0)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> CfgNode:
    cfg = load_config(opts=["OUTPUT_DIR", str(tmp_path_factory.mktemp("output"))]).clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    return cfg


@pytest.fixture(autouse=True)
def _unregister() -> Iterator[None]:
    yield
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME, None)


@pytest.fixture
def register(sound: tuple[Content, Path], tmp_path: Path) -> Callable[..., Path]:
    """Registers a changed copy of the sound file, and returns its path."""

    def put(change: Change, encode: Callable[[str], bytes] = str.encode) -> Path:
        content = copy.deepcopy(sound[0])
        change(content)
        path = tmp_path / "odd.json"
        path.write_bytes(encode(json.dumps(content)))
        register_coco(NAME, str(path), str(sound[1]))
        return path

    return put


def evaluate_truth(cfg: CfgNode, content: Content, names: list[str]) -> dict[str, Any]:
    """The results of detections equal to the content's boxes, with masks if the config has them."""
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    class_of = {c["id"]: names.index(c["name"]) for c in content["categories"]}
    for image in content["images"]:
        boxes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        size = (image["height"], image["width"])
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in boxes)]
        found = Instances(
            size,
            pred_boxes=Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)),
            scores=torch.full((len(boxes),), 0.9),
            pred_classes=torch.tensor([class_of[a["category_id"]] for a in boxes]).long(),
        )
        found.pred_masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(found.pred_masks, corners, strict=True):
            mask[y1:y2, x1:x2] = True
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    return evaluator.evaluate()


def mapped_boxes(cfg: CfgNode, limits: PromptLimits) -> int:
    """The number of boxes that training receives."""
    records = load_dataset(NAME, filter_empty=False)
    names = MetadataCatalog.get(NAME).thing_classes
    records = sanitize_dataset(records, name=NAME, class_names=names, tokenizer=limits.tokenizer)
    mapper = GroundingMapper(cfg, is_train=True, class_names={NAME: names})
    return sum(len(mapper(record)["instances"]) for record in records)


def check(limits: PromptLimits) -> DatasetReport:
    return check_dataset(NAME, limits, open_images=False)


@pytest.mark.parametrize("kind", SAME)
def test_an_unusual_form_changes_nothing(
    kind: str,
    register: Callable[..., Path],
    sound: tuple[Content, Path],
    cfg: CfgNode,
    limits: PromptLimits,
) -> None:
    register(SAME[kind])
    assert mapped_boxes(cfg, limits) == 6
    report = check(limits)
    assert (report.num_images, report.num_boxes, report.num_classes) == (6, 6, 3)
    assert report.num_defects == 0
    names = MetadataCatalog.get(NAME).thing_classes
    assert evaluate_truth(cfg, sound[0], names)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("kind", LESS_ONE)
def test_an_unusable_annotation_is_left_out_everywhere(
    kind: str,
    register: Callable[..., Path],
    sound: tuple[Content, Path],
    cfg: CfgNode,
    limits: PromptLimits,
) -> None:
    path = register(LESS_ONE[kind])
    assert mapped_boxes(cfg, limits) == 5
    report = check(limits)
    assert report.num_boxes == 5
    assert report.faults.counts["left-out-by-reader"] == report.num_defects == 1
    [example] = report.faults.examples["left-out-by-reader"]
    assert str(path) in example and "annotation 1 of image " in example
    rest = {**sound[0], "annotations": sound[0]["annotations"][1:]}
    names = MetadataCatalog.get(NAME).thing_classes
    assert evaluate_truth(cfg, rest, names)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_entry_that_allows_no_decision_is_refused_everywhere(
    kind: str, register: Callable[..., Path], cfg: CfgNode, limits: PromptLimits
) -> None:
    path = register(REFUSED[kind])
    with pytest.raises(ValueError, match="odd.json|file_name") as caught:
        load_dataset(NAME, filter_empty=False)
    report = check(limits)
    assert report.faults.counts == {"does-not-load": 1}
    [example] = report.faults.examples["does-not-load"]
    assert str(caught.value) in example
    if kind not in ("an image without a file", "no categories"):
        assert str(path) in str(caught.value)
        with pytest.raises(ValueError, match="odd.json"):
            build_evaluator(cfg, NAME)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_every_unicode_encoding_is_read(
    encoding: str,
    register: Callable[..., Path],
    sound: tuple[Content, Path],
    cfg: CfgNode,
    limits: PromptLimits,
) -> None:
    register(lambda c: None, lambda text: text.encode(encoding))
    assert mapped_boxes(cfg, limits) == 6
    names = MetadataCatalog.get(NAME).thing_classes
    assert evaluate_truth(cfg, sound[0], names)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 100_000, b"null", b"7", b'{"images": [1e', b"\xff\xfe\x00", b"9" * 5000],
)
def test_a_file_that_is_not_json_is_named(
    text: bytes, register: Callable[..., Path], cfg: CfgNode, limits: PromptLimits
) -> None:
    register(lambda c: None, lambda _: text)
    assert check(limits).faults.counts == {"does-not-load": 1}
    for fail in (
        lambda: load_dataset(NAME, filter_empty=False),
        lambda: build_evaluator(cfg, NAME),
    ):
        with pytest.raises(ValueError, match="odd.json"):
            fail()


def test_masks_are_evaluated_without_the_unusable_ones(
    register: Callable[..., Path], sound: tuple[Content, Path], cfg: CfgNode, limits: PromptLimits
) -> None:
    def change(content: Content) -> None:
        every(content, "segmentation", lambda a: [list(SQUARE)])
        annotation(content, segmentation=rle(24, 24))
        content["annotations"][1]["segmentation"] = [SQUARE[:4]]

    register(change)
    load_dataset(NAME, filter_empty=False)
    with_masks = cfg.clone()
    with_masks.MODEL.MASK_ON = True
    names = MetadataCatalog.get(NAME).thing_classes
    results = evaluate_truth(with_masks, sound[0], names)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert check(limits).faults.counts["mask-left-out"] == 2


def test_a_valid_rle_is_the_mask_of_training_and_evaluation(
    register: Callable[..., Path], sound: tuple[Content, Path]
) -> None:
    height, width = 48, 48
    register(lambda c: annotation(c, segmentation=compressed(height, width)))
    [record, *_] = load_dataset(NAME, filter_empty=False)
    mask = coco_mask.decode(record["annotations"][0]["segmentation"])
    assert mask.shape == (height, width) and mask.sum() == 30
    truth = read_truth(MetadataCatalog.get(NAME).json_file)
    assert truth.annotations_of[0][0]["segmentation"] == compressed(height, width)


@pytest.mark.parametrize("flag", [{"iscrowd": "1"}, {"iscrowd": True}, {"ignore": 1}])
def test_a_crowd_is_dropped_in_training_and_ignored_in_evaluation(
    flag: Content,
    register: Callable[..., Path],
    sound: tuple[Content, Path],
    cfg: CfgNode,
    limits: PromptLimits,
) -> None:
    register(lambda c: annotation(c, **flag))
    assert mapped_boxes(cfg, limits) == 5
    report = check(limits)
    assert (report.num_defects, report.faults.counts["crowd"]) == (0, 1)
    # Without a detection of the crowd.
    rest = {**sound[0], "annotations": sound[0]["annotations"][1:]}
    names = MetadataCatalog.get(NAME).thing_classes
    assert evaluate_truth(cfg, rest, names)["bbox"]["AP"] == pytest.approx(100)


def test_a_class_name_that_is_a_number_is_its_text(register: Callable[..., Path]) -> None:
    register(lambda c: [category.update(name=i) for i, category in enumerate(c["categories"])])
    load_dataset(NAME, filter_empty=False)
    assert MetadataCatalog.get(NAME).thing_classes == ["0", "1", "2"]


def test_ids_that_are_partly_text_are_one_type(
    register: Callable[..., Path], cfg: CfgNode, limits: PromptLimits
) -> None:
    def change(content: Content) -> None:
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = "first"
        content["categories"][0]["id"] = "cat"
        for entry in content["annotations"]:
            entry["category_id"] = "cat" if entry["category_id"] == 10 else entry["category_id"]

    path = register(change)
    assert mapped_boxes(cfg, limits) == 6
    images = {
        str(i["id"]): {**i, "id": str(i["id"])} for i in json.loads(path.read_text())["images"]
    }
    truth = read_truth(str(path))
    assert truth.images.keys() == images.keys()
    same = {**truth.to_coco(), "images": list(images.values())}
    names = MetadataCatalog.get(NAME).thing_classes
    assert evaluate_truth(cfg, same, names)["bbox"]["AP"] == pytest.approx(100)


FINDINGS: dict[str, tuple[Change, str]] = {
    "boxes in fractions": (
        lambda c: annotation(c, bbox=[0.1, 0.1, 0.5, 0.5]),
        "box-in-fractions",
    ),
    "crowds only": (lambda c: every(c, "iscrowd", lambda a: 1), "trains-on-nothing"),
    "no annotations": (lambda c: c.pop("annotations"), "trains-on-nothing"),
    "no image": (lambda c: c.update(images=[], annotations=[]), "trains-on-nothing"),
    "a strip": (lambda c: c["images"][0].update(width=400_000), "image-of-one-pixel"),
}


@pytest.mark.parametrize("kind", FINDINGS)
def test_what_training_cannot_use_is_a_defect(
    kind: str, register: Callable[..., Path], limits: PromptLimits
) -> None:
    change, finding = FINDINGS[kind]
    register(change)
    report = check_dataset(NAME, limits, open_images=False, max_image_size=1333)
    assert report.faults.counts[finding] == 1
    assert report.num_defects == 1


@pytest.mark.parametrize(
    "record",
    [
        7,
        {},
        {"file_name": 3, "annotations": [{}]},
        {"file_name": "a.jpg", "annotations": 5, "height": "x", "width": None},
        {"file_name": "a.jpg", "annotations": [{"bbox": "no", "bbox_mode": 0, "category_id": 0}]},
        {"file_name": "a.jpg", "caption": None, "annotations": []},
        {"file_name": "a.jpg", "classes": 4, "annotations": [], "image_id": []},
        {"file_name": "a.jpg", "question": 4, "question_id": {}, "answers": "yes"},
    ],
)
def test_records_of_any_type_are_checked(record: Any, limits: PromptLimits) -> None:
    DatasetCatalog.register(NAME, lambda: [record])
    MetadataCatalog.get(NAME).set(thing_classes=["cat"])
    assert check_dataset(NAME, limits, open_images=True).num_defects > 0


@pytest.mark.parametrize("content", [{"images": []}, {"annotations": []}])
def test_a_dataset_without_a_usable_image_is_an_error_of_the_loader(
    content: Content, register: Callable[..., Path]
) -> None:
    register(lambda c: c.update(content))
    with pytest.raises(ValueError, match=f"{NAME}.*no usable image.*check-data"):
        load_dataset(NAME, filter_empty=True)


@pytest.mark.parametrize("kind", SAME | LESS_ONE)
def test_finetune_reads_the_same_truth(
    kind: str, sound: tuple[Content, Path], tmp_path: Path
) -> None:
    change = (SAME | LESS_ONE)[kind]
    (tmp_path / "images").symlink_to(sound[1])
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        for image in sound[1].iterdir():
            (tmp_path / split / image.name).symlink_to(image)
        content = copy.deepcopy(sound[0])
        change(content)
        add_group(content)
        path = tmp_path / split / "_annotations.coco.json"
        path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    folder = open_coco_folder(tmp_path)
    assert folder.train.class_names == ["cat", "traffic light", "hot_dog_(food)"]
    num_boxes = 6 if kind in SAME else 5
    assert [a["bbox"] for a in folder.train.coco["annotations"]] == [[4, 6, 20, 16]] * num_boxes
    assert [a["iscrowd"] for a in folder.valid.coco["annotations"]] == [0] * num_boxes


def as_lvis(content: Content) -> None:
    every(content, "frequency", lambda c: "r", "categories")
    for number, category in enumerate(content["categories"], start=1):
        for entry in content["annotations"]:
            if entry["category_id"] == category["id"]:
                entry["category_id"] = number
        category["id"] = number
    every(content, "coco_url", lambda i: f"http://host/images/{i['file_name']}", "images")


@pytest.mark.parametrize("kind", ["annotation ids from 0", "no area", "a flat polygon", *LESS_ONE])
def test_lvis_is_trained_and_evaluated_on_the_same_truth(
    kind: str, sound: tuple[Content, Path], tmp_path: Path, cfg: CfgNode
) -> None:
    content = copy.deepcopy(sound[0])
    as_lvis(content)
    expected = copy.deepcopy(content)
    if kind in LESS_ONE:
        del expected["annotations"][0]
    (SAME | LESS_ONE)[kind](content)
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    names = [c["name"] for c in content["categories"]]
    root = str(sound[1].parent)
    DatasetCatalog.register(NAME, lambda: read_lvis(str(path), root, NAME))
    MetadataCatalog.get(NAME).set(json_file=str(path), evaluator_type="lvis", thing_classes=names)
    records = DatasetCatalog.get(NAME)
    assert Path(records[0]["file_name"]).is_file()
    assert sum(len(r["annotations"]) for r in records) == len(expected["annotations"])
    assert evaluate_truth(cfg, expected, names)["bbox"]["AP"] == pytest.approx(100)


def test_a_file_without_frequencies_is_not_lvis(
    sound: tuple[Content, Path], tmp_path: Path
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(sound[0]))
    with pytest.raises(ValueError, match=r"odd\.json.*'cat'.*frequency"):
        read_lvis(str(path), "", NAME)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=8), max_leaves=12)
places = st.sampled_from(
    [("images", key) for key in ("id", "file_name", "height", "width")]
    + [("categories", key) for key in ("id", "name", "supercategory")]
    + [
        ("annotations", key)
        for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    ]
)


@given(place=places, value=values)
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_value_is_read_alike_or_refused_by_name(
    place: tuple[str, str], value: Any, sound: tuple[Content, Path], tmp_path: Path
) -> None:
    content = copy.deepcopy(sound[0])
    content[place[0]][0][place[1]] = value
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    message = ""
    try:
        truth = read_truth(str(path))
    except ValueError as error:
        message = str(error)
    if message:
        assert "odd.json" in message
        return
    assert len(truth.images) == 6
    # What the truth holds is sound: it is its own truth.
    again = tmp_path / "again.json"
    again.write_text(json.dumps(truth.to_coco()))
    repeated = read_truth(str(again))
    assert list(repeated.annotations()) == [
        {**a, "id": i} for i, a in enumerate(truth.annotations(), start=1)
    ]
