"""A user's words for classes are asked in place of their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.data.build import build_test_loader
from glipv2_d2.data.prompt_overrides import override_prompts, read_overrides
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


def test_the_words_are_asked_and_other_names_stay(dataset: str, tmp_path: Path) -> None:
    words = {"cat": ["there is a ", "kitten", " here"], "traffic light": "stop light"}
    override_prompts(dataset, read_overrides(write(tmp_path, {dataset: words}))[dataset])
    cfg = load_config(opts=["INPUT.MIN_SIZE_TEST", 32, "DATALOADER.NUM_WORKERS", 0])
    [asked] = next(iter(build_test_loader(cfg, dataset)))
    assert asked["classes"] == list(NAMES)
    # The cleaned name ends in a blank, as in GLIP's prompts.
    assert asked["prompt"].text == "there is a kitten here. stop light. hot dog "
    assert asked["prompt"].phrases == ["kitten", "stop light", "hot dog "]


def test_a_second_override_takes_the_place_of_the_first(dataset: str) -> None:
    for words in ("kitten", "tiger"):
        override_prompts(dataset, {"cat": Decoration("", words, "")})
    assert MetadataCatalog.get(dataset).decorations[0].name == "tiger"


def test_a_class_that_the_set_does_not_have_is_named(dataset: str) -> None:
    with pytest.raises(ValueError, match=r"no classes \['unicorn'\].*traffic light"):
        override_prompts(dataset, {"unicorn": Decoration("", "horse", "")})


@pytest.mark.parametrize(
    "content",
    [["cat"], {"set": {"cat": ["a ", "cat"]}}, {"set": {"cat": ["a", " ", "b"]}}, {"set": 3}],
)
def test_a_file_of_another_form_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file of prompts"):
        read_overrides(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        read_overrides(tmp_path / "nothing_here.json")
