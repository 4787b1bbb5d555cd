"""Input dicts of the mapper for detection and grounding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from helpers.tiny_coco import NAMES
from PIL import Image
from pycocotools import mask as coco_mask

from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.text.prompts import Decoration


@pytest.fixture
def image_file(tmp_path: Path) -> str:
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[..., 0] = 200  # red
    Image.fromarray(pixels).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.fixture
def mapper(cfg: CfgNode) -> GroundingMapper:
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (100,)
    return GroundingMapper(cfg, is_train=True, class_names={"tiny_coco": NAMES})


@pytest.fixture
def test_mapper(cfg: CfgNode) -> GroundingMapper:
    return GroundingMapper(cfg, is_train=False, class_names={"tiny_coco": NAMES})


def record(file_name: str, *classes: int, **more: Any) -> dict[str, Any]:
    return {
        "file_name": file_name,
        "image_id": 7,
        "height": 50,
        "width": 100,
        "annotations": [
            {"bbox": [10, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": c}
            for c in classes
        ],
        **more,
    }


def test_image_has_the_configured_channel_order(mapper: GroundingMapper, image_file: str) -> None:
    image = mapper(record(image_file, 0))["image"]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 100, 200)
    assert image[:, 0, 0].tolist() == [0, 0, 200]  # B, G, R


def test_boxes_are_xyxy_of_the_resized_image(mapper: GroundingMapper, image_file: str) -> None:
    instances = mapper(record(image_file, 1))["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[20, 10, 60, 30]]


def test_boxes_flip_with_the_image(cfg: CfgNode, image_file: str) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (50,)
    mapper = GroundingMapper(cfg, is_train=True, class_names={"tiny_coco": NAMES})
    boxes = {
        tuple(mapper(record(image_file, 1))["instances"].gt_boxes.tensor[0].tolist())
        for _ in range(20)
    }
    # x' = width - x, as in Detectron2.
    assert boxes == {(10, 5, 30, 15), (70, 5, 90, 15)}


def test_class_and_prompt_agree(mapper: GroundingMapper, image_file: str) -> None:
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        x = mapper(record(image_file, 2, 0))
        prompt = x["prompt"]
        assert x["instances"].gt_classes.tolist() == [2, 0]
        phrase_of = dict(zip(prompt.classes, prompt.phrases, strict=True))
        assert phrase_of[2] == "hot dog "
        assert phrase_of[0] == "cat"


def test_class_names_of_the_image_override_those_of_the_dataset(
    mapper: GroundingMapper, image_file: str
) -> None:
    x = mapper(record(image_file, 1, classes=["zebra", "bus"]))
    label = x["prompt"].classes.index(1)
    assert x["prompt"].phrases[label] == "bus"


def test_class_names_are_per_dataset(cfg: CfgNode, image_file: str) -> None:
    names = {"first": ["cat"], "second": ["dog"]}
    mapper = GroundingMapper(cfg, is_train=True, class_names=names)
    assert mapper(record(image_file, 0, dataset_name="second"))["prompt"].text == "dog"


def test_crowds_are_dropped(mapper: GroundingMapper, image_file: str) -> None:
    crowd = record(image_file, 0, 1)
    crowd["annotations"][1]["iscrowd"] = 1
    assert mapper(crowd)["instances"].gt_classes.tolist() == [0]


def test_image_without_boxes_gets_a_negative_prompt(
    mapper: GroundingMapper, image_file: str
) -> None:
    x = mapper(record(image_file))
    assert len(x["instances"]) == 0
    assert x["instances"].gt_boxes.tensor.shape == (0, 4)
    assert x["prompt"].num_labels >= 1


def test_boxes_of_names_beyond_the_token_limit_are_dropped(cfg: CfgNode, image_file: str) -> None:
    cfg.MODEL.PROMPT.MAX_TOKENS = 6
    mapper = GroundingMapper(cfg, is_train=True, class_names={"tiny_coco": NAMES})
    for _ in range(10):
        x = mapper(record(image_file, 0, 1, 2))
        assert set(x["instances"].gt_classes.tolist()) == set(x["prompt"].classes)
        assert mapper.tokenizer.count(x["prompt"].text) <= 4


def test_names_without_a_known_word_are_in_no_training_prompt(
    cfg: CfgNode, image_file: str
) -> None:
    mapper = GroundingMapper(cfg, is_train=True, class_names={"tiny_coco": ["cat", "猫", "杯"]})
    for _ in range(5):
        x = mapper(record(image_file, 0, 1, 2))
        assert x["prompt"].text == "cat"
        assert x["instances"].gt_classes.tolist() == [0]


def test_class_names_without_any_known_word_raise(cfg: CfgNode, image_file: str) -> None:
    mapper = GroundingMapper(cfg, is_train=True, class_names={"tiny_coco": ["猫", "杯"]})
    with pytest.raises(ValueError, match="none of the class names .'猫', '杯'. has a word"):
        mapper(record(image_file, 0))


def test_phrases_without_a_known_word_are_no_labels(cfg: CfgNode, image_file: str) -> None:
    mapper = GroundingMapper(cfg, is_train=True, class_names={})
    boxes = [
        {**box, "tokens_positive": [span]}
        for box, span in zip(record(image_file, 0, 0)["annotations"], ([0, 1], [2, 5]), strict=True)
    ]
    x = mapper({**record(image_file), "caption": "猫 cat", "annotations": boxes})
    assert x["prompt"].phrases == ["cat"] and x["prompt"].classes == (1,)
    assert x["instances"].gt_classes.tolist() == [1]


def test_distinct_spans_of_a_caption_are_its_labels(
    mapper: GroundingMapper, image_file: str
) -> None:
    caption = "a cat and a cat on a mat"
    x = record(image_file, 0, 0, 0, 0, caption=caption)
    spans = [[[0, 5]], [[10, 15]], [[0, 5]], [[0, 5], [19, 24]]]
    for annotation, tokens_positive in zip(x["annotations"], spans, strict=True):
        del annotation["category_id"]
        annotation["tokens_positive"] = tokens_positive
    x = mapper(x)
    assert x["prompt"].text == caption
    assert x["prompt"].phrases == ["a cat", "a cat", "a cat a mat"]
    assert x["instances"].gt_classes.tolist() == [0, 1, 0, 2]


def test_listed_phrases_keep_their_indices(mapper: GroundingMapper, image_file: str) -> None:
    x = mapper(record(image_file, 1, caption="a cat, no dog", phrases=[[(10, 13)], [(2, 5)]]))
    assert x["prompt"].phrases == ["dog", "cat"]
    assert x["instances"].gt_classes.tolist() == [1]


def test_evaluation_has_all_class_names_and_the_original_size(
    test_mapper: GroundingMapper, image_file: str
) -> None:
    x = test_mapper(record(image_file, 0))
    assert x["classes"] == list(NAMES)
    assert (x["height"], x["width"]) == (50, 100)
    assert x["image"].shape == (3, 32, 64)
    assert "prompt" not in x
    assert "instances" not in x
    assert "annotations" not in x


def test_evaluation_keeps_the_class_names_of_the_image(
    test_mapper: GroundingMapper, image_file: str
) -> None:
    assert test_mapper(record(image_file, classes=["zebra"]))["classes"] == ["zebra"]


@pytest.mark.parametrize("classes", ["zebra", []])
def test_invalid_class_names_of_an_image_raise(
    test_mapper: GroundingMapper, image_file: str, classes: object
) -> None:
    with pytest.raises(ValueError, match="list of"):
        test_mapper(record(image_file, classes=classes))


def test_evaluation_keeps_the_caption(test_mapper: GroundingMapper, image_file: str) -> None:
    x = test_mapper(record(image_file, caption="a cat", phrases=[[(2, 5)]]))
    assert x["caption"] == "a cat"
    assert x["phrases"] == [[(2, 5)]]
    assert "classes" not in x


def test_record_is_not_modified(mapper: GroundingMapper, image_file: str) -> None:
    original = record(image_file, 0)
    before = copy.deepcopy(original)
    mapper(original)
    assert original == before


def test_numpy_seed_determines_the_result(mapper: GroundingMapper, image_file: str) -> None:
    prompts = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002
        prompts.append(mapper(record(image_file, 0))["prompt"])
    assert prompts[0] == prompts[1]


def test_missing_image_raises(mapper: GroundingMapper, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        mapper(record(str(tmp_path / "gone.png"), 0))


@pytest.mark.parametrize("keep", [0, 60], ids=["empty", "truncated"])
def test_broken_image_raises(
    keep: int, mapper: GroundingMapper, image_file: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(image_file).read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"broken\.png.*is not a readable image"):
        mapper(record(str(broken), 0))


def test_dataset_without_class_names_raises(cfg: CfgNode, image_file: str) -> None:
    mapper = GroundingMapper(cfg, is_train=True, class_names={"nameless": []})
    with pytest.raises(ValueError, match="nameless"):
        mapper(record(image_file, 0))


def test_separator_that_merges_names_raises_with_its_config_key(cfg: CfgNode) -> None:
    cfg.MODEL.PROMPT.SEPARATOR = "x"
    with pytest.raises(ValueError, match=r"(?i)separator 'x'") as caught:
        GroundingMapper(cfg, is_train=True, class_names={"tiny_coco": NAMES})
    assert "MODEL.PROMPT.SEPARATOR" in str(caught.value)


CAPTION = "a dog left of a cat"
TRIANGLE = [10.0, 5.0, 30.0, 5.0, 30.0, 15.0]


def test_flip_swaps_left_and_right_in_the_caption(cfg: CfgNode, image_file: str) -> None:
    mapper = GroundingMapper(cfg, is_train=True, class_names={})
    cat = [[len(CAPTION) - 5, len(CAPTION)]]
    captioned = record(image_file, 0, caption=CAPTION)
    captioned["annotations"][0]["tokens_positive"] = cat
    texts = {}
    for _ in range(20):
        x = mapper(captioned)
        flipped = x["instances"].gt_boxes.tensor[0, 0] > x["image"].shape[2] / 2
        assert x["prompt"].text == x["caption"]
        assert x["prompt"].phrases == ["a cat"]
        texts[bool(flipped)] = x["caption"]
    assert texts == {False: CAPTION, True: "a dog right of a cat"}


def test_flip_does_not_change_class_names(cfg: CfgNode, image_file: str) -> None:
    mapper = GroundingMapper(cfg, is_train=True, class_names={"set": ["left shoe"]})
    assert {mapper(record(image_file, 0))["prompt"].text for _ in range(10)} == {"left shoe"}


@pytest.fixture
def mask_mapper(cfg: CfgNode) -> GroundingMapper:
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (100,)
    return GroundingMapper(cfg, is_train=True, class_names={"tiny_coco": NAMES})


def test_masks_are_off_by_default(mapper: GroundingMapper, image_file: str) -> None:
    masked = record(image_file, 0)
    masked["annotations"][0]["segmentation"] = [TRIANGLE]
    assert not mapper(masked)["instances"].has("gt_masks")


def test_polygons_are_resized_with_the_image(mask_mapper: GroundingMapper, image_file: str) -> None:
    masked = record(image_file, 0)
    masked["annotations"][0]["segmentation"] = [TRIANGLE]
    instances = mask_mapper(masked)["instances"]
    assert instances.gt_masks.polygons[0][0].tolist() == [2 * number for number in TRIANGLE]
    assert instances.gt_has_mask.tolist() == [True]


def test_rle_masks_become_bitmasks(mask_mapper: GroundingMapper, image_file: str) -> None:
    mask = np.zeros((50, 100), np.uint8, order="F")
    mask[5:15, 10:30] = 1
    masked = record(image_file, 0, 1)
    masked["annotations"][0]["segmentation"] = coco_mask.encode(mask)
    masked["annotations"][1]["segmentation"] = [TRIANGLE]
    masks = mask_mapper(masked)["instances"].gt_masks.tensor
    assert masks.shape == (2, 100, 200)
    assert masks.flatten(1).sum(1).tolist() == pytest.approx([800, 400], rel=0.1)


def test_box_without_a_mask_is_flagged(mask_mapper: GroundingMapper, image_file: str) -> None:
    masked = record(image_file, 0, 1)
    masked["annotations"][1]["segmentation"] = [TRIANGLE]
    instances = mask_mapper(masked)["instances"]
    assert instances.gt_has_mask.tolist() == [False, True]
    # The placeholder is a rectangle.
    assert instances.gt_masks.area().tolist() == [800, 400]


def test_an_image_without_boxes_has_no_masks(mask_mapper: GroundingMapper, image_file: str) -> None:
    instances = mask_mapper(record(image_file))["instances"]
    assert len(instances.gt_masks) == len(instances.gt_has_mask) == 0


PORCH = {"prompted": [Decoration("there is a ", "package", " on the porch")]}


@pytest.mark.parametrize("is_train", [True, False])
def test_dataset_can_have_custom_prompt_texts(
    is_train: bool, cfg: CfgNode, image_file: str
) -> None:
    mapper = GroundingMapper(
        cfg, is_train=is_train, class_names={"prompted": ["parcel"]}, decorations=PORCH
    )
    x = mapper(record(image_file, 0, dataset_name="prompted"))
    assert x["prompt"].text == "there is a package on the porch"
    assert x["prompt"].phrases == ["package"]
    assert x["classes"] == ["parcel"]


def test_custom_prompt_texts_do_not_apply_to_class_names_of_the_image(
    cfg: CfgNode, image_file: str
) -> None:
    mapper = GroundingMapper(
        cfg, is_train=False, class_names={"prompted": ["parcel"]}, decorations=PORCH
    )
    assert "prompt" not in mapper(record(image_file, dataset_name="prompted", classes=["cat"]))
