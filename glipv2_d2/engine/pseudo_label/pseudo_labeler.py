"""Pseudo-labelling: grounded records from image-caption pairs, by a trained model.

As GLIP grounds its caption data (GLIP paper, section 3.3): a parser extracts the noun phrases, the
model detects their boxes, and boxes with a score above a threshold are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn
from torch.utils.data import DataLoader, Dataset

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.readers.image_text import Pair
from glipv2_d2.data.sanitize import fit_caption
from glipv2_d2.engine.finetune.tuning import load_model
from glipv2_d2.item_errors import predict_each
from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.noun_phrases import load_tagger, noun_phrases

# Reasons why a pair has no record.
BAD_IMAGE = "images could not be read"
NOT_PREDICTED = "images could not be predicted"
BAD_CAPTION = "captions were not valid text"
NO_PHRASE = "captions had no noun phrase within the token limit"
NO_BOX = "captions had no box over the threshold"

# Decimals of boxes (pixels) and scores in a record.
BOX_DIGITS = 2
SCORE_DIGITS = 4

GroundedRecord = dict[str, Any]
"""One line of a file for :mod:`glipv2_d2.data.readers.captions`."""


@dataclass(frozen=True)
class LeftOutPair:
    """A pair without a record.

    Attributes:
        reason: one of the constants above.
        detail: more about the reason, such as the error message.
    """

    image: str
    caption: str
    reason: str
    detail: str = ""


LabelResult = GroundedRecord | LeftOutPair
"""Of a pair."""


class MappedPair(NamedTuple):
    """A pair and the model's input dict for it."""

    pair: Pair
    model_input: dict[str, Any]


class PseudoLabeler(Configurable):
    """A grounding model that labels image-caption pairs."""

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        mapper: GroundingMapper,
        image_root: str,
        threshold: float,
        batch_size: int,
        num_workers: int,
    ) -> None:
        """
        Args:
            mapper: in evaluation mode; loads and resizes the images.
            image_root: the folder of the images; "" for absolute paths.
            threshold: boxes with a score above it are kept, 0 to 1.
            batch_size: images per forward pass.
            num_workers: loader processes; 0: load in this process.

        Raises:
            ValueError: spaCy or its English model is not installed.
        """
        # Before the loader processes are forked, so that they share it.
        load_tagger()
        self.model = model.eval()
        self.mapper = mapper
        self.image_root = image_root
        self.threshold = threshold
        self.batch_size = batch_size
        self.num_workers = num_workers

    @classmethod
    def from_config(
        cls, cfg: CfgNode, *, image_root: str, threshold: float, batch_size: int
    ) -> dict[str, Any]:
        return {
            "model": load_model(cfg),
            "mapper": GroundingMapper(cfg, is_train=False, class_names={}),
            "image_root": image_root,
            "threshold": threshold,
            "batch_size": batch_size,
            "num_workers": cfg.DATALOADER.NUM_WORKERS,
        }

    def label(self, pairs: Sequence[Pair]) -> Iterator[LabelResult]:
        """One result per pair, in the order of ``pairs``."""
        batches = DataLoader(
            _PairDataset(pairs, self.image_root, self.mapper),
            batch_size=self.batch_size,
            collate_fn=list,
            num_workers=self.num_workers,
        )
        for batch in batches:
            mapped = {i: item for i, item in enumerate(batch) if isinstance(item, MappedPair)}
            detections, errors = predict_each(self._predict, mapped, _probe)
            for i, item in enumerate(batch):
                if i in detections:
                    yield grounded_record(mapped[i], detections[i], self.threshold)
                elif i in errors:
                    detail = f"{type(errors[i]).__name__}: {errors[i]}"
                    yield LeftOutPair(*mapped[i].pair, NOT_PREDICTED, detail)
                else:
                    yield item

    def _predict(self, mapped: dict[int, MappedPair]) -> list[Instances]:
        with torch.no_grad():
            outputs = self.model([x.model_input for x in mapped.values()])
        return [output[fields.INSTANCES].to("cpu") for output in outputs]


def _probe(mapped: MappedPair) -> MappedPair:
    """The same caption with a small black image."""
    image = torch.zeros_like(mapped.model_input[fields.IMAGE][:, :1, :1]).expand(-1, 64, 64)
    size = {fields.HEIGHT: 64, fields.WIDTH: 64}
    return mapped._replace(model_input={**mapped.model_input, fields.IMAGE: image, **size})


class _PairDataset(Dataset[MappedPair | LeftOutPair]):
    """Maps pairs to input dicts, in the processes of a DataLoader."""

    def __init__(self, pairs: Sequence[Pair], image_root: str, mapper: GroundingMapper) -> None:
        self.pairs = pairs
        self.image_root = image_root
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> MappedPair | LeftOutPair:
        pair = self.pairs[index]
        try:
            phrases = noun_phrases(pair.caption)
            prompt = fit_caption(pair.caption, phrases, self.mapper.tokenizer) if phrases else None
        # For example a lone surrogate.
        except ValueError as error:
            return LeftOutPair(*pair, BAD_CAPTION, str(error))
        if prompt is None or prompt.num_labels == 0:
            return LeftOutPair(*pair, NO_PHRASE)
        record = {
            fields.FILE_NAME: os.path.join(self.image_root, pair.image),
            fields.CAPTION: pair.caption,
            fields.PHRASES: phrases,
            fields.PROMPT: prompt,
        }
        try:
            return MappedPair(pair, self.mapper(record))
        # PIL raises many kinds of errors for a damaged file; one file must not end the run.
        except Exception as error:
            return LeftOutPair(*pair, BAD_IMAGE, f"{type(error).__name__}: {error}")


def grounded_record(mapped: MappedPair, instances: Instances, threshold: float) -> LabelResult:
    """Build the record of a pair from boxes inside the image with a score above a threshold.

    Args:
        instances: ``pred_boxes`` (XYXY, pixels of the upright image), ``scores`` and
            ``pred_classes``, which index the phrases of the caption.
    """
    x, caption = mapped.model_input, mapped.pair.caption
    height, width = x[fields.HEIGHT], x[fields.WIDTH]
    boxes: list[list[float]] = []
    spans: list[Sequence[Span]] = []
    scores: list[float] = []
    for index in instances.scores.argsort(descending=True, stable=True).tolist():
        # Rounded before the comparison, so that readers with the same threshold agree.
        score = round(instances.scores[index].item(), SCORE_DIGITS)
        box = _clip_box(instances.pred_boxes.tensor[index].tolist(), height, width)
        if score > threshold and box is not None:
            boxes.append(box)
            spans.append(x[fields.PHRASES][int(instances.pred_classes[index])])
            scores.append(score)
    if not boxes:
        return LeftOutPair(*mapped.pair, NO_BOX)
    return {
        "image": mapped.pair.image,
        "caption": caption,
        "boxes": boxes,
        "spans": [[list(span) for span in phrase] for phrase in spans],
        "scores": scores,
        "phrases": [" ".join(caption[begin:end] for begin, end in phrase) for phrase in spans],
        "height": height,
        "width": width,
    }


def _clip_box(box: Sequence[float], height: int, width: int) -> list[float] | None:
    """Clip a box (XYXY) to its image and round it; None for a box without area."""
    limits = (width, height, width, height)
    x1, y1, x2, y2 = (
        round(min(max(value, 0), limit), BOX_DIGITS)
        for value, limit in zip(box, limits, strict=True)
    )
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None
