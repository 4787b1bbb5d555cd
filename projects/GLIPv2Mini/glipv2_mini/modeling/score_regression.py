"""The closed-form start of region-word products: a ridge regression on labelled images.

R: regions of an image. C: channels of a region. G: ground-truth boxes of an image. K: names. D:
width of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# IoU above which a region has the name of a ground-truth box; between, it is near it.
MIN_IOU, NEAR_IOU = 0.3, 0.05
# Weight of the regions of an image that have a name, that are near one, and of all others: there
# are hundreds, hundreds and thousands of them (our choice).
POSITIVE_WEIGHT = 3.0
MAX_NEAR_WEIGHT, FAR_WEIGHT = 150.0, 60.0
# Logit of a region with a name above that of one without, if the regression distinguishes them, as
# it does in part (our choice: without training, 60 scenes of drawn shapes have AP 15 with 20, 25
# with 45, 27 with 70; a training must be able to correct them).
LOGIT_RANGE = 45.0
# Of the ridge regressions, relative to the variance of a channel and to a text's squared norm.
REGION_PENALTY = 0.01
TEXT_PENALTY = 1e-5


@dataclass(frozen=True)
class LinearScores:
    """The logit of a region x for a text t: x W t + w x + b t + c.

    Attributes:
        weight: W, (C, D).
        region_weight: w, (C,).
        text_weight: b, (D,).
        bias: c, ().
    """

    weight: Tensor
    region_weight: Tensor
    text_weight: Tensor
    bias: Tensor


class RegionStatistics:
    """Sums over regions, from which their names are regressed; those of several images add up."""

    def __init__(self, num_channels: int) -> None:
        self.weight = torch.zeros((), dtype=torch.float64)
        self.first = torch.zeros(num_channels, dtype=torch.float64)
        self.second = torch.zeros(num_channels, num_channels, dtype=torch.float64)
        # Name -> sum of target, then of target times region.
        self.targets: dict[str, Tensor] = {}

    def add(self, regions: Tensor, ious: Tensor, names: Sequence[str]) -> None:
        """Add an image.

        The target of a region and a name grows from 0 to 1 with the IoU of its box.

        Args:
            regions: (R, C).
            ious: (R, G), of the regions' boxes with the ground truth.
            names: of the G boxes.
        """
        x = regions.detach().to("cpu", torch.float64)
        ious = ious.detach().to("cpu", torch.float64)
        best = ious.amax(dim=1) if names else x.new_zeros(len(x))
        weights = region_weights(best)
        weighted = x * weights[:, None]
        self.weight += weights.sum()
        self.first += weighted.sum(dim=0)
        self.second += weighted.T @ x
        for name in set(names):
            of_name = torch.tensor([other == name for other in names])
            target = ((ious[:, of_name].amax(dim=1) - MIN_IOU) / (1 - MIN_IOU)).clamp(min=0)
            self._add_target(name, torch.cat([(weights @ target)[None], weighted.T @ target]))

    def merge(self, others: Iterable[RegionStatistics]) -> None:
        """Add the images of others."""
        for other in others:
            self.weight += other.weight
            self.first += other.first
            self.second += other.second
            for name, sums in other.targets.items():
                self._add_target(name, sums)

    def _add_target(self, name: str, sums: Tensor) -> None:
        self.targets[name] = self.targets[name] + sums if name in self.targets else sums

    def regress(self, names: Sequence[str], texts: Tensor) -> LinearScores:
        """Regress the names of regions on regions and texts.

        First every name on the regions, then the coefficients of the names on their texts, but for
        their mean: what all names have in common distinguishes objects from background.

        Args:
            names: K names; those without ground truth are regressed as well.
            texts: (K, D).
        """
        mean = self.first / self.weight
        covariance = self.second / self.weight - mean.outer(mean)
        scale = covariance.diagonal().clamp(min=0).sqrt() + 1e-3
        none = self.first.new_zeros(1 + len(mean))
        sums = torch.stack([self.targets.get(n, none) for n in names], dim=1) / self.weight
        target_mean = sums[0]
        normalized = covariance / scale.outer(scale)
        penalty = REGION_PENALTY * torch.eye(len(mean), dtype=mean.dtype)
        product = (sums[1:] - mean.outer(target_mean)) / scale[:, None]
        coefficients = torch.linalg.solve(normalized + penalty, product) / scale[:, None]  # (C, K)
        intercepts = target_mean - mean @ coefficients
        common, offset = coefficients.mean(dim=1), intercepts.mean()
        t = texts.detach().to("cpu", torch.float64)
        identity = torch.eye(len(t), dtype=t.dtype)
        solver = torch.linalg.solve(t @ t.T + TEXT_PENALTY * identity, t)  # (K, D)
        scores = LinearScores(
            weight=(coefficients - common[:, None]) @ solver,
            region_weight=common,
            text_weight=(intercepts - offset) @ solver,
            bias=offset,
        )
        return LinearScores(*(LOGIT_RANGE * part.to(texts) for part in vars(scores).values()))


def region_weights(best_ious: Tensor) -> Tensor:
    """(R,) weights of an image's regions by their largest IoU with the ground truth.

    >>> region_weights(torch.tensor([0.9, 0.1, 0.0])).tolist()
    [3.0, 1.0, 60.0]
    """
    near = best_ious > NEAR_IOU
    share = min(1.0, MAX_NEAR_WEIGHT / max(1, int(near.sum())))
    far_share = FAR_WEIGHT / max(1, int((~near).sum()))
    of_near = torch.where(best_ious > MIN_IOU, POSITIVE_WEIGHT * share, share)
    return torch.where(near, of_near, far_share).to(best_ious.dtype)
