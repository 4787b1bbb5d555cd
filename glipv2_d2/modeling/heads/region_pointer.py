"""Points from words at regions of their image, and so to the names that these match.

N: texts. T: their words that point. R: regions of an image. A: names. D: width of the words.
P: numbers that say where a region is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.structures import Regions
from glipv2_d2.text.answers import read_answers

PLACE_DIM = 5
"""Numbers of a region's place; see :class:`~glipv2_d2.structures.Regions`."""
LOGIT_OF_NAMING = -1.0
"""Of a name, and not a word or answer of the head's own, to start with."""

_POINTER_DIM = 64
# To start with: a detector judges every name alone, so its guesses are sharpened, and likely things
# come first.
_NAME_SHARPNESS = 4.0


class RegionPointer(nn.Module):
    """What heads that name regions have in common. Our choice."""

    def __init__(self, *, language_dim: int, place_dim: int) -> None:
        """
        Args:
            language_dim: D.
            place_dim: P.
        """
        super().__init__()
        self.query = nn.Linear(language_dim, _POINTER_DIM)
        self.place = nn.Sequential(
            nn.Linear(place_dim, _POINTER_DIM), nn.GELU(), nn.Linear(_POINTER_DIM, _POINTER_DIM)
        )
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(_NAME_SHARPNESS)))
        self.thing_weight = nn.Parameter(torch.tensor(1.0))

    def name_shares(self, regions: Regions, among: Sequence[int] | None = None) -> Tensor:
        """(N, R, A), how likely each region has each name, in sum 1.

        Args:
            among: the names that it may have; None: all.
        """
        assert regions.name_logits is not None
        logits = regions.name_logits if among is None else regions.name_logits[..., list(among)]
        return (full_precision(logits) * self.log_sharpness.exp()).softmax(dim=-1)

    def place_logits(self, hidden: Tensor, regions: Regions, places: Tensor) -> Tensor:
        """(N, T, R), how well each region's place, and that it is a thing, suits each word.

        Args:
            hidden: (N, T, D).
            places: (N, R, P).
        """
        logits = self.query(hidden) @ self.place(places).transpose(1, 2) / math.sqrt(_POINTER_DIM)
        scores = full_precision(regions.places)[:, None, :, 4]
        return logits + self.thing_weight * scores.clamp(min=1e-6).log()


def as_shares(logits: Tensor, is_found: Tensor) -> Tensor:
    """Logits of regions as shares, in sum 1; those that are not found have none.

    Args:
        logits: (..., R).
        is_found: as logits, or one that expands to it.
    """
    return logits.masked_fill(~is_found, torch.finfo(logits.dtype).min).softmax(dim=-1)


def names_of_regions(cfg: CfgNode, who: str, instead: str) -> list[str]:
    """The names of ``MODEL.REGION_READER``, of which a head makes use.

    Args:
        who: the setting that needs them and what it does with them, for the message.
        instead: the setting that does not.

    Raises:
        ValueError: the model reads no regions, or compares them with no names.
    """
    settings = cfg.MODEL.REGION_READER
    if not settings.NAME or not settings.NAMES_FILE:
        raise ValueError(
            f"{who} names of regions: set MODEL.REGION_READER.NAME and NAMES_FILE, or choose "
            f"{instead}"
        )
    return read_answers(settings.NAMES_FILE)


def checked_names(regions: Regions | None, head: nn.Module) -> Regions:
    """The regions.

    Raises:
        ValueError: there are none, or they were not compared with names, as this head needs.
    """
    if regions is None or regions.name_logits is None:
        raise ValueError(f"a {type(head).__name__} needs regions that were compared with names")
    return regions
