"""The recipes of grounded VQA and captions: first steps and evaluation of a small network."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from helpers.models import tiny_cfg
from PIL import Image

from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.readers.flickr30k_captions import read_images
from glipv2_d2.data.readers.gqa import read_grounded_gqa
from glipv2_d2.data.registration import register
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.param_groups import build_optimizer
from glipv2_d2.evaluation import build_evaluator

ROOT = Path(__file__).parents[2]
CAPTION = "a dog on a mat"
QUESTION = "what is on the mat?"
BOXES = {"boxes": [[2, 3, 30, 40], [1, 20, 60, 60]], "scores": [0.9, 0.8]}


def gqa(folder: Path, name: str) -> None:
    """GQA's files, of one question."""
    entry = {"imageId": "1", "question": QUESTION, "answer": "dog", "fullAnswer": "A dog."}
    entry["types"] = {"semantic": "rel", "structural": "query", "detailed": "relS"}
    entry["annotations"] = {"question": {"4": "12"}, "answer": {"0": "11"}, "fullAnswer": {}}
    objects = {
        "11": {"name": "dog", "x": 2, "y": 3, "w": 28, "h": 37},
        "12": {"name": "mat", "x": 1, "y": 20, "w": 59, "h": 40},
    }
    (folder / "questions.json").write_text(json.dumps({"07": entry}))
    graph = {"1": {"width": 64, "height": 64, "objects": objects}}
    (folder / "graphs.json").write_text(json.dumps(graph))
    files = (str(folder / "questions.json"), str(folder / "graphs.json"), str(folder))
    load = functools.partial(read_grounded_gqa, *files, name)
    register(name, load, source_files=files, evaluator_type="grounded_vqa")


def flickr30k(folder: Path, name: str) -> None:
    """MDETR's file of Flickr30k Entities, of one sentence."""
    image = {"id": 0, "file_name": "1.jpg", "height": "64", "width": "64", "caption": CAPTION}
    image |= {"original_img_id": 1, "sentence_id": 0, "tokens_positive_eval": [[[0, 5]]]}
    box = {"id": 0, "image_id": 0, "bbox": [2, 3, 28, 37], "area": 9, "iscrowd": 0}
    box |= {"category_id": 1, "tokens_positive": [[0, 5]]}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "object"}]}
    (folder / "flickr.json").write_text(json.dumps(content))
    files = (str(folder / "flickr.json"), str(folder))
    load = functools.partial(read_images, *files, name)
    register(name, load, source_files=files, evaluator_type="grounded_captions")


# Config -> a line of its training file, its evaluation data, its metrics, the loss of its text.
RECIPES: dict[str, tuple[dict[str, Any], Callable[[Path, str], None], set[str], str]] = {
    "VQA/configs/grounded_vqa_glipv2_swin_t.yaml": (
        {
            "caption": f"{QUESTION} dog",
            "question": QUESTION,
            "question_id": 7,
            "answers": {"dog": 1.0},
            "spans": [[[20, 23]], [[11, 18]]],
            **BOXES,
        },
        gqa,
        {"vqa/accuracy", "grounding/R@1", "grounding/answer-R@1"},
        "loss_answer",
    ),
    "Captioning/configs/grounded_captions_glipv2_swin_t.yaml": (
        {"caption": CAPTION, "spans": [[[0, 5]], [[9, 14]]], **BOXES},
        flickr30k,
        {"captions/CIDEr", "grounding/F1_all", "grounding/F1_loc"},
        "loss_caption",
    ),
}


@pytest.fixture(params=RECIPES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cfg(name: str, tmp_path: Path) -> Iterator[CfgNode]:
    """The recipe with a small network, on files of one image."""
    line, write_test_set, *_ = RECIPES[name]
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "1.jpg")
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "1.jpg", **line}) + "\n")
    (tmp_path / "answers.txt").write_text("dog\nyes\n")
    sizes = ("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu")
    limits = ("SOLVER.IMS_PER_BATCH", 1, "DATALOADER.NUM_WORKERS", 0, "MODEL.CAPTION.MAX_LENGTH", 4)
    cfg = load_config(ROOT / "projects" / name, [*sizes, *limits]).clone()
    cfg.defrost()
    small = tiny_cfg().MODEL
    for key in ("SWIN", "FPN", "LANGUAGE_BACKBONE", "FUSED_HEAD"):
        cfg.MODEL[key] = small[key]
    cfg.MODEL.ANSWER.FILE = cfg.MODEL.ANSWER.FILE and str(tmp_path / "answers.txt")
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    [entry] = cfg.DATASETS.CUSTOM
    # The loaded config registers the recipe's own name.
    entry |= {"name": "grounded_recipe_train"}
    cfg.DATASETS.TRAIN = (entry["name"],)
    entry |= {"json": str(tmp_path / "train.jsonl"), "images": str(tmp_path)}
    cfg.DATASETS.TEST = ("grounded_recipe_test",)
    write_test_set(tmp_path, "grounded_recipe_test")
    yield cfg
    for dataset in (entry["name"], "grounded_recipe_test"):
        DatasetCatalog.remove(dataset)
        MetadataCatalog.remove(dataset)


def test_first_steps_train_text_and_boxes_and_both_are_evaluated(name: str, cfg: CfgNode) -> None:
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    before = {key: value.clone() for key, value in model.named_parameters()}
    for _, batch in zip(range(2), build_train_loader(cfg), strict=False):
        losses = model(batch)
        assert {"loss_box", RECIPES[name][3]} <= losses.keys()
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    moved = {k for k, v in model.named_parameters() if not v.equal(before[k])}
    head = "answer" if "VQA" in name else "caption"
    assert any(head in key for key in moved)
    assert any("bbox_pred" in key for key in moved)

    model.eval()
    [test_set] = cfg.DATASETS.TEST
    results = inference_on_dataset(
        model, build_test_loader(cfg, test_set), build_evaluator(cfg, test_set)
    )
    reported = {f"{task}/{key}" for task, metrics in results.items() for key in metrics}
    assert RECIPES[name][2] <= reported
