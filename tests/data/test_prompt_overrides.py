"""Custom prompt texts replace class names in the prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.data.build import build_test_loader
from glipv2_d2.data.prompt_overrides import load_prompt_overrides, override_prompts
from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.engine.setup import load_config
from glipv2_d2.text.prompts import Decoration

NAME = "overridden_coco"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    register_coco(NAME, *map(str, write_coco(tmp_path / "coco")))
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    return path


def test_prompt_has_the_custom_texts_and_other_class_names(dataset: str, tmp_path: Path) -> None:
    texts = {"cat": ["there is a ", "kitten", " here"], "traffic light": "stop light"}
    override_prompts(dataset, load_prompt_overrides(write(tmp_path, {dataset: texts}))[dataset])
    cfg = load_config(opts=["INPUT.MIN_SIZE_TEST", 32, "DATALOADER.NUM_WORKERS", 0])
    [x] = next(iter(build_test_loader(cfg, dataset)))
    assert x["classes"] == list(NAMES)
    # The cleaned name ends in a space, as in GLIP's prompts.
    assert x["prompt"].text == "there is a kitten here. stop light. hot dog "
    assert x["prompt"].phrases == ["kitten", "stop light", "hot dog "]


def test_second_override_replaces_the_first(dataset: str) -> None:
    for text in ("kitten", "tiger"):
        override_prompts(dataset, {"cat": Decoration("", text, "")})
    assert MetadataCatalog.get(dataset).decorations[0].name == "tiger"


def test_unknown_class_raises(dataset: str) -> None:
    with pytest.raises(ValueError, match=r"no classes \['unicorn'\].*traffic light"):
        override_prompts(dataset, {"unicorn": Decoration("", "horse", "")})


@pytest.mark.parametrize(
    "content",
    [["cat"], {"set": {"cat": ["a ", "cat"]}}, {"set": {"cat": ["a", " ", "b"]}}, {"set": 3}],
)
def test_invalid_prompt_file_raises(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a prompt file"):
        load_prompt_overrides(write(tmp_path, content))


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        load_prompt_overrides(tmp_path / "nothing_here.json")
