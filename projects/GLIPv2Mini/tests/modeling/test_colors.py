"""The basic colours of boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2lab
from torch import Tensor

from glipv2_mini.modeling.colors import (
    color_logits,
    color_probabilities,
    colors_of_boxes,
    rgb_to_lab,
)
from glipv2_mini.text.phrases import COLOR_NAMES

RED, BLUE = (255.0, 0.0, 0.0), (0.0, 0.0, 255.0)
# The mean of COCO, which padding shows.
PADDING = (123.675, 116.28, 103.53)


def half_and_half(height: int = 40, width: int = 80) -> Tensor:
    """Red on the left, blue on the right."""
    pixels = torch.empty(1, 3, height, width)
    pixels[..., : width // 2] = torch.tensor(RED)[:, None, None]
    pixels[..., width // 2 :] = torch.tensor(BLUE)[:, None, None]
    return pixels


def shares(pixels: Tensor, *boxes: list[float]) -> list[dict[str, float]]:
    """The shares of the colours of each box of the first image, rounded; without those of 0."""
    colors = colors_of_boxes(pixels, torch.tensor([boxes]).expand(len(pixels), -1, -1))[0]
    return [
        {name: round(x, 2) for name, x in zip(COLOR_NAMES, row, strict=True) if x > 0.005}
        for row in colors.tolist()
    ]


def test_cielab_is_that_of_scikit_image() -> None:
    levels = np.linspace(0, 1, 16)
    rgb = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    ours = rgb_to_lab(torch.from_numpy(rgb).float()).numpy()
    np.testing.assert_allclose(ours, rgb2lab(rgb), atol=0.05)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((10, 40, 200), "blue"),
        ((101, 67, 33), "brown"),
        ((128, 128, 128), "gray"),
        ((20, 140, 40), "green"),
        ((250, 150, 20), "orange"),
        ((250, 130, 180), "pink"),
        ((110, 30, 140), "purple"),
        ((200, 30, 30), "red"),
        ((250, 250, 250), "white"),
        ((250, 230, 40), "yellow"),
    ],
)
def test_a_typical_colour_has_its_name(rgb: tuple[int, ...], name: str) -> None:
    probabilities = color_probabilities(torch.tensor(rgb) / 255)
    assert COLOR_NAMES[int(probabilities.argmax())] == name
    assert probabilities.max() > 0.6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=5))
def test_probabilities_of_any_colour_sum_to_1(rgb: list[tuple[float, ...]]) -> None:
    probabilities = color_probabilities(torch.tensor(rgb))
    assert probabilities.shape == (len(rgb), 11) and (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(rgb)))


def test_a_box_has_the_colours_of_its_central_part() -> None:
    found = shares(
        half_and_half(),
        [0, 0, 40, 40],
        [40, 0, 80, 40],
        [0, 0, 80, 40],
        # A fifth of the width on each side is left out: 12 of 60 pixels, then 36 pixels from 12.
        [0, 0, 60, 40],
    )
    assert found[:3] == [{"red": 1.0}, {"blue": 1.0}, {"red": 0.5, "blue": 0.5}]
    assert found[3] == {
        "red": pytest.approx(28 / 36, abs=0.01),
        "blue": pytest.approx(8 / 36, abs=0.01),
    }


@pytest.mark.parametrize(
    ("box", "color"),
    [
        ([-500, -500, -100, -100], "red"),
        ([200, 200, 300, 300], "blue"),
        ([-1000, 10, 40, 30], "red"),
        ([60, 20, 60, 20], "blue"),
        ([80, 40, 80, 40], "blue"),
        ([30, 20, 10, 5], "red"),
        ([-1e30, -1e30, -1e29, -1e29], "red"),
        ([1e29, 1e29, 1e30, 1e30], "blue"),
    ],
    ids=[
        *("left of it", "right of it", "partly", "of size zero", "at the corner", "inverted"),
        *("far left", "far right"),
    ],
)
def test_boxes_beyond_the_image_or_without_area_have_the_nearest_colour(
    box: list[float], color: str
) -> None:
    assert shares(half_and_half(), [float(x) for x in box]) == [{color: 1.0}]


@pytest.mark.parametrize("size", [(40, 80), (37, 50), (1, 1), (3, 130)])
def test_equals_a_loop_over_the_pixels(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    height, width = size
    pixels = 255 * torch.rand(2, 3, height, width, generator=random)
    corners = torch.tensor([width, height]) * (torch.rand(2, 6, 2, generator=random) * 1.6 - 0.4)
    sizes = torch.tensor([width, height]) * torch.rand(2, 6, 2, generator=random)
    boxes = torch.cat([corners, corners + sizes], dim=2)
    found = colors_of_boxes(pixels, boxes)
    for n in range(2):
        for a in range(6):
            torch.testing.assert_close(
                found[n, a], looped(pixels[n], boxes[n, a].tolist()), atol=1e-4, rtol=0
            )


def looped(pixels: Tensor, box: list[float]) -> Tensor:
    """The mean over the blocks of 4 x 4 pixels that the central part touches."""
    ranges = []
    for axis in range(2):
        length = pixels.shape[2 - axis]
        last = -(-length // 4) - 1
        center, size = (box[axis] + box[axis + 2]) / 2, box[axis + 2] - box[axis]
        low, high = (center - 0.3 * size) / 4, (center + 0.3 * size) / 4
        touched = [i for i in range(last + 1) if i < high and i + 1 > low]
        ranges.append(touched or [0 if high <= 0 else last])
    blocks = [
        color_probabilities(
            pixels[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten(1).mean(dim=1) / 255
        )
        for y in ranges[1]
        for x in ranges[0]
    ]
    return torch.stack(blocks).mean(dim=0)


def test_padding_of_the_batch_does_not_change_the_colours_of_boxes_inside() -> None:
    pixels = half_and_half()
    padded = torch.tensor(PADDING)[:, None, None].expand(2, -1, 64, 128).clone()
    padded[0, :, :40, :80] = pixels[0]
    boxes = [[0.0, 0, 40, 40], [10.0, 5, 78, 40], [79.0, 39, 80, 40]]
    assert shares(padded, *boxes) == shares(pixels, *boxes)


def test_half_precision_pixels_give_the_colours_of_float32() -> None:
    pixels, boxes = half_and_half(), torch.tensor([[[0.0, 0, 60, 40]]])
    found = colors_of_boxes(pixels.bfloat16(), boxes)
    torch.testing.assert_close(found, colors_of_boxes(pixels, boxes), atol=0.02, rtol=0)


def test_a_usual_share_has_the_logit_0_and_more_a_positive_one() -> None:
    usual = torch.tensor([0.2, 0.07, 0.2, 0.3, 0.12, 0.04, 0.03, 0.02, 0.04, 0.12, 0.03])
    torch.testing.assert_close(color_logits(usual), torch.zeros(11), atol=1e-6, rtol=0)
    logits = color_logits(torch.eye(11))
    assert (logits.diagonal() > 0).all() and (logits.fill_diagonal_(-1) < 0).all()
    assert color_logits(torch.zeros(11)).isfinite().all()
