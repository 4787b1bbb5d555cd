"""Pointers from text to regions, and so to the class names that these match.

N: texts. T: their pointing tokens. R: regions of an image. A: class names. D: width of the text
features. B: numbers that describe a region's box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.text.answers import load_answers
from glipv2_mini.modeling.regions import Regions

BOX_DIM = 5
"""Numbers of a region's box; see :class:`~glipv2_mini.modeling.regions.Regions`."""
INITIAL_POINTER_LOGIT = -1.0
"""Initial logit of pointing at a region rather than predicting a token or answer."""

_POINTER_DIM = 64
# Initial inverse temperature: region-word logits are trained with binary losses.
_CLASS_SCALE = 4.0


class RegionPointer(nn.Module):
    """Points from text to regions by their boxes and objectness (our choice)."""

    def __init__(self, *, language_dim: int, box_dim: int) -> None:
        """
        Args:
            language_dim: D.
            box_dim: B.
        """
        super().__init__()
        self.query = nn.Linear(language_dim, _POINTER_DIM)
        self.box = nn.Sequential(
            nn.Linear(box_dim, _POINTER_DIM), nn.GELU(), nn.Linear(_POINTER_DIM, _POINTER_DIM)
        )
        self.objectness_weight = nn.Parameter(torch.tensor(1.0))

    def box_logits(self, hidden: Tensor, regions: Regions, boxes: Tensor) -> Tensor:
        """(N, T, R) logits of pointing at each region by its box and objectness.

        Args:
            hidden: (N, T, D).
            boxes: (N, R, B).
        """
        logits = self.query(hidden) @ self.box(boxes).transpose(1, 2) / math.sqrt(_POINTER_DIM)
        scores = full_precision(regions.boxes)[:, None, :, 4]
        return logits + self.objectness_weight * scores.clamp(min=1e-6).log()


class ClassPointer(RegionPointer):
    """A :class:`RegionPointer` that reads the class names of regions."""

    def __init__(self, *, language_dim: int, box_dim: int) -> None:
        super().__init__(language_dim=language_dim, box_dim=box_dim)
        self.log_class_scale = nn.Parameter(torch.tensor(math.log(_CLASS_SCALE)))

    def class_probabilities(self, regions: Regions, among: Sequence[int] | None = None) -> Tensor:
        """(N, R, A) probabilities of the class names of each region.

        Args:
            among: indices of the class names to choose from; None: all.
        """
        assert regions.class_logits is not None
        logits = regions.class_logits if among is None else regions.class_logits[..., list(among)]
        return (full_precision(logits) * self.log_class_scale.exp()).softmax(dim=-1)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension, 0 where the mask is False.

    Args:
        logits: (..., R).
        mask: of the shape of ``logits``, or one that expands to it.
    """
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim=-1)


def configured_class_names(cfg: CfgNode, head: str, alternative: str) -> list[str]:
    """The class names of ``MODEL.REGION_ENCODER``, for a head that uses them.

    Args:
        head: the setting that selects the head, for the message.
        alternative: a head that needs none.

    Raises:
        ValueError: the text tasks have no regions, or these are scored against no class names.
    """
    settings = cfg.MODEL.REGION_ENCODER
    if cfg.MODEL.TEXT_TASKS.NAME != "RegionTextTasks" or not settings.NAMES_FILE:
        raise ValueError(
            f"{head} uses the class names of regions: set MODEL.TEXT_TASKS.NAME to "
            f"RegionTextTasks and MODEL.REGION_ENCODER.NAMES_FILE, or choose {alternative}"
        )
    return load_answers(settings.NAMES_FILE)


def check_class_logits(regions: Regions, head: nn.Module) -> Regions:
    """The regions.

    Raises:
        ValueError: they were not scored against class names.
    """
    if regions.class_logits is None:
        raise ValueError(f"{type(head).__name__} needs regions with class logits")
    return regions
