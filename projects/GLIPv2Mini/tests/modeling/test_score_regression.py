"""The regression of names on regions, from which fine-tuned products start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glipv2_mini.modeling.score_regression import (
    LOGIT_RANGE,
    MIN_IOU,
    REGION_PENALTY,
    RegionStatistics,
    region_weights,
)

C, D = 5, 8
NAMES = ["cat", "dog", "red car"]


def image(seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Regions, their IoUs with two boxes, and the names of the boxes."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(400, C, generator=generator)
    ious = torch.rand(400, 2, generator=generator) ** 3
    return regions, ious, [NAMES[seed % 2], "red car"]


def texts() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(3, D, generator=torch.manual_seed(1)), dim=-1)


def statistics(*seeds: int) -> RegionStatistics:
    found = RegionStatistics(C)
    for seed in seeds:
        found.add(*image(seed))
    return found


def targets(ious: Tensor, names: list[str]) -> Tensor:
    columns = [
        torch.stack([iou for iou, other in zip(ious.T, names, strict=True) if other == name]).amax(
            0
        )
        if name in names
        else torch.zeros(len(ious))
        for name in NAMES
    ]
    return ((torch.stack(columns, dim=1) - MIN_IOU) / (1 - MIN_IOU)).clamp(min=0)


def test_the_logits_are_those_of_weighted_least_squares_with_a_penalty() -> None:
    """The augmented system of equations, solved by a QR decomposition of all regions."""
    parts = [image(seed) for seed in (0, 1)]
    x = torch.cat([regions for regions, _, _ in parts]).double()
    y = torch.cat([targets(ious, names) for _, ious, names in parts]).double()
    w = torch.cat([region_weights(ious.amax(dim=1)) for _, ious, _ in parts]).double()
    mean = (w @ x) / w.sum()
    scale = ((w @ (x - mean) ** 2) / w.sum()).sqrt() + 1e-3
    rows = torch.cat([(x - mean) / scale, torch.ones(len(x), 1)], dim=1) * w.sqrt()[:, None]
    penalty = (w.sum() * REGION_PENALTY).sqrt() * torch.eye(C, C + 1)
    right = torch.cat([y * w.sqrt()[:, None], torch.zeros(C, 3)])
    solution = torch.linalg.lstsq(torch.cat([rows, penalty]), right).solution
    expected = LOGIT_RANGE * ((x - mean) / scale @ solution[:-1] + solution[-1])

    t = texts().double()
    scores = statistics(0, 1).regress(NAMES, t)
    logits = x @ scores.weight @ t.T + (x @ scores.region_weight)[:, None] + scores.bias
    logits = logits + t @ scores.text_weight
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_merged_statistics_are_those_of_all_images() -> None:
    together, merged = statistics(0, 1, 2), statistics(0)
    merged.merge([statistics(1), statistics(2)])
    for part in ("weight", "first", "second"):
        torch.testing.assert_close(getattr(merged, part), getattr(together, part))
    assert merged.targets.keys() == together.targets.keys()


def test_a_name_without_boxes_has_the_lowest_logits() -> None:
    t = texts()
    scores = statistics(0, 2).regress(["cat", "ghost", "red car"], t)
    regions, ious, _ = image(0)
    logits = regions @ scores.weight @ t.T + t @ scores.text_weight
    mean = logits[ious.amax(dim=1) > 0.5].mean(dim=0)
    assert mean.argmin() == 1


def test_an_image_without_boxes_adds_background() -> None:
    found = RegionStatistics(C)
    found.add(torch.randn(400, C), torch.zeros(400, 0), [])
    assert found.weight == pytest.approx(60) and not found.targets
