"""Things found without their names, for words that are to be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.box_coder import to_exclusive
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.postprocess import DetectionsPerImage, PostprocessSettings, detect_labels
from glipv2_d2.structures import Prompt, Reading, Regions

# A level of the pyramid, and the stride of that level.
_LEVEL, _STRIDE = 4, 16


class Searcher(Protocol):
    """What a model offers in which regions are found."""

    language_backbone: Any
    fused_head: Any
    proposal_generator: Any

    def read(self, features: dict[str, Tensor], prompts: list[Prompt]) -> Reading:
        """What comes of images and prompts reading each other."""

    def judge(self, reading: Reading) -> list[LabelScores]:
        """What was read, as scores and boxes of each image."""


class RegionFinder:
    """Asks the detector for any thing at all, and cuts what it finds out of the maps.

    Names share what makes a thing, so a detector that has learned many finds those of no name in
    its list, too. The search is the same in training and evaluation, and learns nothing.
    """

    def __init__(self, *, prompt: str, pooler: ROIPooler, settings: PostprocessSettings) -> None:
        """
        Args:
            prompt: what is asked for.
            pooler: cuts boxes out of the levels of the pyramid, one vector of each.
            settings: how many are kept, and which overlap too much.

        Raises:
            ValueError: the prompt has no words.
        """
        if not prompt.strip():
            raise ValueError(
                f"MODEL.REGION_READER.PROMPT is {prompt!r}: name what is to be found, such as "
                "'an object'"
            )
        text = prompt.strip()
        self.prompt = Prompt(text, (((0, len(text)),),), (0,), is_class_list=True)
        self.pooler = pooler
        self.settings = settings

    def __call__(self, model: Searcher, images: ImageList, features: dict[str, Tensor]) -> Regions:
        """The regions of N images.

        Args:
            images: for their sizes without padding.
            features: before fusion; they get the gradients of what is cut out of them.
        """
        parts = (model.language_backbone, model.fused_head, model.proposal_generator)
        with torch.no_grad(), _evaluating(*parts):
            reading = model.read(features, [self.prompt] * len(images.image_sizes))
            found = [
                self._limit(
                    detect_labels(
                        predictions, size, self.settings, model.proposal_generator.box_coder
                    )
                )
                for predictions, size in zip(model.judge(reading), images.image_sizes, strict=True)
            ]
        return Regions(
            self._cut(features, found),
            self._padded(_at_locations(reading.features, found)),
            self._padded([_places(f, s) for f, s in zip(found, images.image_sizes, strict=True)]),
        )

    def _limit(self, found: DetectionsPerImage) -> DetectionsPerImage:
        # Ties with the last one are found, too.
        return found[torch.arange(len(found))[: self.settings.detections_per_prompt]]

    def _cut(self, features: dict[str, Tensor], found: Sequence[DetectionsPerImage]) -> Tensor:
        """(N, R, C), the mean of each box in the level of its size."""
        boxes = [Boxes(to_exclusive(f.boxes)) for f in found]
        pooled = self.pooler(list(features.values()), boxes).flatten(1)
        return self._padded(pooled.split([len(b) for b in boxes]))

    def _padded(self, rows_per_image: Sequence[Tensor]) -> Tensor:
        limit = self.settings.detections_per_prompt
        return torch.stack([F.pad(rows, (0, 0, 0, limit - len(rows))) for rows in rows_per_image])


def build_region_finder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> RegionFinder:
    """The finder of ``cfg.MODEL.REGION_READER``."""
    settings, grounding = cfg.MODEL.REGION_READER, cfg.MODEL.GROUNDING
    return RegionFinder(
        prompt=settings.PROMPT,
        pooler=ROIPooler(
            output_size=1,
            scales=[1 / level.stride for level in input_shape.values()],
            sampling_ratio=2,
            pooler_type="ROIAlignV2",
            # A box is cut from the level whose anchor is about as large.
            canonical_box_size=int(grounding.ANCHOR_SCALE * _STRIDE),
            canonical_level=_LEVEL,
        ),
        settings=PostprocessSettings(
            score_thresh=0.0,
            pre_nms_topk=grounding.PRE_NMS_TOPK,
            nms_thresh=settings.NMS_THRESH,
            detections_per_prompt=settings.NUM_REGIONS,
            aggregation=grounding.SCORE_AGGREGATION,
        ),
    )


def _at_locations(features: dict[str, Tensor], found: Sequence[DetectionsPerImage]) -> list[Tensor]:
    """Per image (K, C), what the maps hold where each thing was found."""
    locations = torch.cat([level.flatten(2) for level in features.values()], dim=2)
    return [own[:, f.locations].T for own, f in zip(locations, found, strict=True)]


def _places(found: DetectionsPerImage, image_size: tuple[int, int]) -> Tensor:
    """(K, 5), see :class:`~glipv2_d2.structures.Regions`."""
    height, width = image_size
    boxes = to_exclusive(found.boxes)
    sizes = boxes[:, 2:] - boxes[:, :2]
    centers = boxes[:, :2] + sizes / 2
    shares = torch.cat([centers, sizes], dim=1) / boxes.new_tensor([width, height] * 2)
    return torch.cat([shares, found.scores[:, None].to(shares)], dim=1)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode for a while, and then as they were."""
    were_training = [[part for part in module.modules() if part.training] for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for parts in were_training:
            for part in parts:
                part.training = True
