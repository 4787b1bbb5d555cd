"""Resized sizes equal GLIP's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glipv2_d2.data.resize import (
    STRIP_RATIO,
    ResizeShortestEdge,
    TruncatedResizeShortestEdge,
    build_augmentations,
)
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


@pytest.mark.parametrize("rule", [ResizeShortestEdge, TruncatedResizeShortestEdge])
@settings(deadline=None, derandomize=True)
@given(
    height=st.integers(1, 500_000),
    width=st.integers(1, 500_000),
    short=st.integers(1, 1400),
    max_size=st.integers(1, 1400),
)
@example(2000, 1, 800, 1333)
@example(1, 400_000, 800, 1333)
@example(1, 400_000, 1, 1333)
def test_sides_are_at_least_one_pixel_and_at_most_the_maximum(
    rule: type[T.Augmentation], height: int, width: int, short: int, max_size: int
) -> None:
    # Without memory: only the shape is read.
    image = np.broadcast_to(np.uint8(0), (height, width, 3))
    resize = rule(short, max_size, "choice").get_transform(image)
    assert isinstance(resize, T.NoOpTransform | T.ResizeTransform)
    new = (height, width)
    if isinstance(resize, T.ResizeTransform):
        new = (resize.new_h, resize.new_w)
    is_strip = max(height, width) > STRIP_RATIO * min(height, width)
    rounding = 0 if is_strip or rule is ResizeShortestEdge else STRIP_RATIO // 2
    assert min(new) >= 1 and max(new) <= max_size + rounding


def test_an_image_keeps_the_size_of_glip_where_rounding_exceeds_the_maximum() -> None:
    # round(1333 * 200 / 460) = 580, and int(580 * 460 / 200) = 1334.
    assert TruncatedResizeShortestEdge.get_output_shape(200, 460, 800, 1333) == (580, 1334)


@pytest.mark.parametrize("rule", [ResizeShortestEdge, TruncatedResizeShortestEdge])
@pytest.mark.parametrize("shape", [(2000, 1, 3), (1, 400_000, 3)])
def test_boxes_of_a_strip_are_resized_with_it(
    rule: type[T.Augmentation], shape: tuple[int, int, int]
) -> None:
    image = np.zeros(shape, np.uint8)
    resize = rule(800, 1333, "choice").get_transform(image)
    height, width = resize.apply_image(image).shape[:2]
    assert sorted((height, width)) == [1, 1333]
    assert resize.apply_box([[0, 0, shape[1], shape[0]]]).tolist() == [[0, 0, width, height]]


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
