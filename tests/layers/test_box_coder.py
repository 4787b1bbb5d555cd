from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glipv2_d2.layers.box_coder import (
    BoxCoder,
    box_area,
    pairwise_iou_inclusive,
    to_exclusive,
    to_inclusive,
)

MISC = Path(__file__).parents[1] / "assets" / "misc" / "misc.npz"


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    arrays = np.load(MISC)
    names = [name for name in arrays if name.startswith("boxcoder/") or name == "iou"]
    return {name: torch.from_numpy(arrays[name]) for name in names}


@st.composite
def boxes(draw: st.DrawFn) -> Tensor:
    """One box of 1..500 pixels, (1, 4), inclusive corners, float64."""
    x, y = draw(st.floats(-100, 1500)), draw(st.floats(-100, 1500))
    width, height = draw(st.floats(1, 500)), draw(st.floats(1, 500))
    return torch.tensor([[x, y, x + width - 1, y + height - 1]], dtype=torch.float64)


def test_encoded_boxes_equal_the_reference(reference: dict[str, Tensor]) -> None:
    encoded = BoxCoder().encode(reference["boxcoder/gt"], reference["boxcoder/anchors"])
    torch.testing.assert_close(encoded, reference["boxcoder/encoded"], atol=2e-5, rtol=0)


def test_decoded_boxes_equal_the_reference(reference: dict[str, Tensor]) -> None:
    decoded = BoxCoder().decode(reference["boxcoder/deltas"], reference["boxcoder/anchors"])
    torch.testing.assert_close(decoded, reference["boxcoder/decoded"], atol=1e-4, rtol=0)


def test_ious_equal_the_reference(reference: dict[str, Tensor]) -> None:
    ious = pairwise_iou_inclusive(reference["boxcoder/anchors"], reference["boxcoder/gt"][:9])
    torch.testing.assert_close(ious, reference["iou"], atol=1e-6, rtol=0)


@given(box=boxes(), anchor=boxes())
def test_decode_inverts_encode(box: Tensor, anchor: Tensor) -> None:
    coder = BoxCoder()
    smallest_side = (anchor[:, 2:] - anchor[:, :2] + 1).min().item()
    if (box[:, 2:] - box[:, :2] + 1).max().item() <= 62 * smallest_side:
        decoded = coder.decode(coder.encode(box, anchor), anchor)
        torch.testing.assert_close(decoded, box, atol=1e-8, rtol=0)


@given(box=boxes())
def test_conversions_of_corners_are_inverse(box: Tensor) -> None:
    torch.testing.assert_close(to_inclusive(to_exclusive(box)), box)


def test_only_right_and_bottom_corners_move_by_one_pixel() -> None:
    assert to_inclusive(torch.tensor([[3, 4, 10, 20]])).tolist() == [[3, 4, 9, 19]]


@given(box=boxes(), anchor=boxes())
def test_deltas_equal_detectron2s_for_exclusive_corners(box: Tensor, anchor: Tensor) -> None:
    # Sizes agree after the conversion, and both centres move by the same half pixel.
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    expected = transform.get_deltas(to_exclusive(anchor), to_exclusive(box))
    torch.testing.assert_close(BoxCoder().encode(box, anchor), expected, atol=1e-8, rtol=1e-8)


def test_zero_deltas_return_the_anchor() -> None:
    anchors = torch.tensor([[-28.0, -28.0, 35.0, 35.0]])
    assert BoxCoder().decode(torch.zeros(1, 4), anchors).equal(anchors)


def test_a_box_grows_at_most_from_16_to_1000_pixels() -> None:
    anchor = torch.tensor([[0.0, 0.0, 15.0, 15.0]])
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0.0, 1e6, 1e6]]), anchor)
    torch.testing.assert_close(box_area(decoded), torch.tensor([1000.0**2]))


def test_decode_broadcasts_anchors_over_images() -> None:
    deltas, anchors = torch.randn(2, 3, 4), torch.tensor([[0.0, 0.0, 7.0, 7.0]]).repeat(3, 1)
    decoded = BoxCoder().decode(deltas, anchors)
    torch.testing.assert_close(decoded[1], BoxCoder().decode(deltas[1], anchors))


def test_gradients_of_decode_equal_finite_differences() -> None:
    anchors = torch.tensor([[0.0, 0.0, 15.0, 31.0], [4.0, 8.0, 90.0, 10.0]], dtype=torch.float64)
    deltas = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: BoxCoder().decode(x, anchors), deltas)


def test_iou_counts_shared_pixels() -> None:
    # Integer boxes with inclusive corners are sets of pixels.
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 12, (30, 2, 2), generator=generator)
    candidates = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)

    def pixels(box: Tensor) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = box.tolist()
        return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}

    expected = [
        [len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)) for b in candidates[:9]]
        for a in candidates
    ]
    ious = pairwise_iou_inclusive(candidates.float(), candidates[:9].float())
    torch.testing.assert_close(ious, torch.tensor(expected))


def test_no_boxes_give_empty_results() -> None:
    none, one = torch.zeros(0, 4), torch.zeros(1, 4)
    assert pairwise_iou_inclusive(none, one).shape == (0, 1)
    assert BoxCoder().encode(none, none).shape == BoxCoder().decode(none, none).shape == (0, 4)
