"""Datasets defined in a config, under ``DATASETS.CUSTOM``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.custom import register_custom
from glipv2_d2.engine.setup import load_config


@pytest.fixture(autouse=True)
def _unregister() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_custom_coco_dataset_trains_and_is_evaluated(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path / "mine")
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"""
DATASETS:
  CUSTOM:
    - {{name: mine_train, json: {annotations}, images: {images}}}
  TRAIN: ("mine_train",)
  TEST: ("mine_train",)
SOLVER:
  IMS_PER_BATCH: 2
DATALOADER:
  NUM_WORKERS: 0
"""
    )
    cfg = load_config(config)
    batch = next(iter(build_train_loader(cfg)))
    assert all(x["classes"] == list(NAMES) for x in batch)
    assert len(list(build_test_loader(cfg, "mine_train"))) == 4
    assert MetadataCatalog.get("mine_train").evaluator_type == "coco"
    # The config that a run saves can be loaded again.
    written = tmp_path / "written.yaml"
    written.write_text(cfg.dump())
    assert load_config(written).DATASETS == cfg.DATASETS


def test_custom_questions_and_captions_train(cfg: CfgNode, tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path / "mine", num_images=1)
    content = json.loads(annotations.read_text())
    content["images"][0]["caption"] = "a picture of noise"
    captions, questions, answers = (tmp_path / f"{name}.json" for name in ("c", "q", "a"))
    captions.write_text(json.dumps(content))
    ids = {"question_id": 1, "image_id": content["images"][0]["id"]}
    questions.write_text(json.dumps({"questions": [{**ids, "question": "what is it?"}]}))
    answers.write_text(json.dumps({"annotations": [{**ids, "answers": [{"answer": "noise"}]}]}))
    entry = {"json": str(captions), "images": str(images)}
    paths = {"questions": str(questions), "answers": str(answers)}
    cfg.DATASETS.CUSTOM = [
        {"name": "my_vqa", "format": "vqa", **entry, **paths},
        {"name": "my_captions", "format": "captioning", **entry},
    ]
    cfg.DATASETS.TRAIN = ("my_vqa", "my_captions")
    x = next(iter(build_test_loader(cfg, "my_captions")))[0]
    assert x["target_captions"] == ["a picture of noise"]
    for x in itertools.chain.from_iterable(itertools.islice(build_train_loader(cfg), 3)):
        expected = {"noise": 1.0} if x["dataset_name"] == "my_vqa" else None
        assert x.get("answers") == expected
    assert MetadataCatalog.get("my_vqa").evaluator_type == "vqa"
    assert MetadataCatalog.get("my_captions").evaluator_type == "captions"


def test_a_test_set_of_questions_has_no_answers(cfg: CfgNode, tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path / "mine", num_images=1)
    image_id = json.loads(annotations.read_text())["images"][0]["id"]
    question = {"question_id": 1, "image_id": image_id, "question": "what is it?"}
    questions = tmp_path / "q.json"
    questions.write_text(json.dumps({"questions": [question]}))
    paths = {"json": str(annotations), "images": str(images), "questions": str(questions)}
    cfg.DATASETS.CUSTOM = [{"name": "my_vqa_test", "format": "vqa", **paths}]
    ((x,),) = build_test_loader(cfg, "my_vqa_test")
    assert x["question"] == "what is it?" and "answers" not in x


def test_custom_captions_with_boxes_train(cfg: CfgNode, tmp_path: Path) -> None:
    _, images = write_coco(tmp_path / "pictures")
    pairs = [
        {
            "image": f"{i}.png",
            "caption": caption,
            "boxes": [[4, 6, 24, 22]],
            "spans": [[[0, 5]]],
        }
        for i, caption in enumerate(["a cat here", "a dog there", "a bus now"])
    ]
    lines = tmp_path / "captions.jsonl"
    lines.write_text("\n".join(map(json.dumps, pairs)))
    cfg.DATASETS.CUSTOM = [
        {"name": "pairs", "format": "captions", "json": str(lines), "images": str(images)}
    ]
    cfg.DATASETS.TRAIN = ("pairs",)
    cfg.DATALOADER.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB = 1.0
    cfg.SOLVER.IMS_PER_BATCH = 3
    batch = next(iter(build_train_loader(cfg)))
    assert any(x["prompt"].text != x["caption"] for x in batch)
    for x in batch:
        [phrase] = x["prompt"].phrases
        assert phrase == x["caption"][:5]
        assert x["instances"].gt_classes.tolist() == [0]


def test_equal_entry_can_be_registered_again() -> None:
    entry = {"name": "again", "json": "a.json", "images": "a"}
    register_custom([entry])
    register_custom([dict(entry)])
    assert "again" in DatasetCatalog


def test_name_of_another_dataset_raises() -> None:
    register_custom([{"name": "taken", "json": "a.json", "images": "a"}])
    with pytest.raises(ValueError, match="'taken'.*another name"):
        register_custom([{"name": "taken", "json": "b.json", "images": "b"}])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mine.json", "not a mapping"),
        ({"name": "x", "json": "a.json"}, "images"),
        ({"name": "x", "json": "a.json", "images": "a", "image": "b"}, "'image'"),
        ({"name": "x", "json": "", "images": "a"}, "each with a nonempty string"),
        ({"name": "x", "json": "a.json", "images": "a", "format": "voc"}, "'voc'.*coco"),
        ({"name": "x", "format": "webdataset", "json": "a"}, "shards"),
        ({"name": "x", "format": "vqa", "json": "a"}, "Example: .*, questions: my/questions.json"),
    ],
)
def test_invalid_entry_raises_with_a_remedy(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_custom([entry])


def test_missing_file_raises(cfg: CfgNode) -> None:
    cfg.DATASETS.CUSTOM = [{"name": "gone", "json": "gone.json", "images": "gone"}]
    cfg.DATASETS.TRAIN = ("gone",)
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        build_train_loader(cfg)
