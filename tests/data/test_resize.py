"""Resized sizes equal GLIP's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T

from glipv2_d2.data.resize import TruncatedResizeShortestEdge, build_augmentations
from glipv2_d2.engine.setup import load_config

MISC = json.loads((Path(__file__).parents[1] / "assets/misc/misc.json").read_text())
LIMITS = {
    "test_800_1333_hw": (800, 1333),
    "train_480_1333_hw": (480, 1333),
    "demo_short800_hw": (800, sys.maxsize),
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("wh", MISC["resize_input_wh"])
def test_size_equals_the_reference(wh: str, limits: str) -> None:
    width, height = map(int, wh.split("x"))
    size = TruncatedResizeShortestEdge.get_output_shape(height, width, *LIMITS[limits])
    assert list(size) == MISC["resize_input_wh"][wh][limits]


def test_short_side_keeps_one_pixel() -> None:
    assert TruncatedResizeShortestEdge.get_output_shape(1, 5000, 800, 1333)[0] == 1


def test_choice_draws_the_given_sizes() -> None:
    resize = TruncatedResizeShortestEdge([20, 30], sample_style="choice")
    image = np.zeros((10, 15, 3), np.uint8)
    sizes = {resize.get_transform(image).new_h for _ in range(50)}
    assert sizes == {20, 30}


def test_range_draws_both_ends() -> None:
    resize = TruncatedResizeShortestEdge([20, 22], sample_style="range")
    image = np.zeros((10, 15, 3), np.uint8)
    assert {resize.get_transform(image).new_h for _ in range(100)} == {20, 21, 22}


def test_size_zero_keeps_the_image() -> None:
    image = np.zeros((10, 15, 3), np.uint8)
    assert isinstance(TruncatedResizeShortestEdge(0).get_transform(image), T.NoOpTransform)


def test_config_selects_the_resize_and_flips_in_training_only() -> None:
    cfg = load_config(opts=["INPUT.RESIZE", "TruncatedResizeShortestEdge"])
    train, test = build_augmentations(cfg, True), build_augmentations(cfg, False)
    assert [type(a) for a in train] == [TruncatedResizeShortestEdge, T.RandomFlip]
    assert [type(a) for a in test] == [TruncatedResizeShortestEdge]


def test_unknown_resize_raises() -> None:
    cfg = load_config(opts=["INPUT.RESIZE", "Shrink"])
    with pytest.raises(ValueError, match=r"Shrink.*TruncatedResizeShortestEdge"):
        build_augmentations(cfg, True)
