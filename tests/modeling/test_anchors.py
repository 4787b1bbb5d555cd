import copy
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from glipv2_d2.modeling.anchors import MAX_CACHED_LEVELS, AnchorGenerator

ASSETS = Path(__file__).parents[1] / "assets"
STRIDES = (8, 16, 32, 64, 128)


def test_anchors_are_the_references() -> None:
    golden = np.load(ASSETS / "tiny_T_s0" / "golden_eval.npz")
    levels = ("p3", "p4", "p5", "p6", "p7")
    features = [torch.from_numpy(golden[f"one/fpn/{level}"]) for level in levels]
    anchors_per_level = AnchorGenerator(STRIDES, 8.0)(features)
    for level, anchors in zip(levels, anchors_per_level, strict=True):
        assert anchors.equal(torch.from_numpy(golden[f"one/anchors/{level}"])), level


def test_first_anchor_of_every_level_is_the_references() -> None:
    misc = np.load(ASSETS / "misc" / "misc.npz")
    anchors_per_level = AnchorGenerator(STRIDES, 8.0)([torch.zeros(1, 1, 2, 2)] * 5)
    for level, anchors in enumerate(anchors_per_level):
        assert anchors[:1].equal(torch.from_numpy(misc[f"anchors/cell{level}"])), level


def test_anchors_are_row_major_squares() -> None:
    (anchors,) = AnchorGenerator([8], 2.0)([torch.zeros(1, 1, 2, 3)])
    assert anchors[:, :2].tolist() == [[-4, -4], [4, -4], [12, -4], [-4, 4], [4, 4], [12, 4]]
    assert (anchors[:, 2:] - anchors[:, :2] + 1 == 16).all()


def test_anchors_of_a_shape_are_computed_once() -> None:
    generator = AnchorGenerator([8], 8.0)
    first = generator([torch.zeros(1, 4, 3, 3)])[0]
    assert generator([torch.zeros(2, 1, 3, 3)])[0] is first
    assert len(generator([torch.zeros(1, 4, 3, 4)])[0]) == 12


def test_generators_of_other_scales_do_not_share_anchors() -> None:
    features = [torch.zeros(1, 1, 2, 2)]
    assert not AnchorGenerator([8], 8.0)(features)[0].equal(AnchorGenerator([8], 4.0)(features)[0])


def test_anchors_are_not_in_the_state_dict() -> None:
    generator = AnchorGenerator(STRIDES, 8.0)
    generator([torch.zeros(1, 1, 2, 2)] * 5)
    assert not generator.state_dict()


def test_anchors_cached_in_inference_mode_are_usable_in_training() -> None:
    generator = AnchorGenerator([8], 8.0)
    with torch.inference_mode():
        generator([torch.zeros(1, 1, 5, 7)])
    (anchors,) = generator([torch.zeros(1, 1, 5, 7)])
    deltas = torch.ones(35, 4, requires_grad=True)
    (deltas * anchors).sum().backward()
    assert deltas.grad is not None
    assert deltas.grad.equal(anchors)


def test_the_number_of_cached_anchors_is_bounded() -> None:
    generator = AnchorGenerator([8], 8.0)
    for width in range(1, MAX_CACHED_LEVELS + 20):
        generator([torch.zeros(1, 1, 1, width)])
    assert len(generator._anchors) == MAX_CACHED_LEVELS


def test_fake_tensors_of_a_tracer_are_not_cached() -> None:
    generator = AnchorGenerator([8], 8.0)
    with FakeTensorMode():
        generator([torch.zeros(1, 1, 3, 3)])
    (anchors,) = generator([torch.zeros(1, 1, 3, 3)])
    assert anchors[0].tolist() == [-28, -28, 35, 35]


def test_a_copied_generator_has_a_cache_of_its_own() -> None:
    generator = AnchorGenerator([8], 8.0)
    (anchors,) = generator([torch.zeros(1, 1, 3, 3)])
    (copied,) = copy.deepcopy(generator)([torch.zeros(1, 1, 3, 3)])
    assert copied is not anchors
    assert copied.equal(anchors)
