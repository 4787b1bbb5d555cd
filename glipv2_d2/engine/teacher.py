"""A trained model as a teacher: pairs of image and caption in, grounded records out.

As GLIP makes its training data from captions (GLIP paper, section 3.3): a parser finds the noun
phrases, the model finds their boxes, and those with a good score are believed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import nn
from torch.utils.data import DataLoader, Dataset

from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.readers.image_text import Pair
from glipv2_d2.data.sanitize import fit_caption
from glipv2_d2.engine.tuning import load_model
from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.noun_phrases import load_tagger, noun_phrases

# Why a pair gives no record.
BAD_IMAGE = "images could not be read"
BAD_CAPTION = "captions were not valid text"
NO_PHRASE = "captions had no noun phrase within the token limit"
NO_BOX = "captions had no box over the threshold"

# Digits after the point that are kept of boxes (pixels) and of scores.
BOX_DIGITS = 2
SCORE_DIGITS = 4

GroundedRecord = dict[str, Any]
"""A line as :mod:`glipv2_d2.data.readers.captions` reads it."""


@dataclass(frozen=True)
class LeftOut:
    """A pair that gave no record.

    Attributes:
        why: one of the kinds above.
        detail: what else is known, such as the error.
    """

    image: str
    caption: str
    why: str
    detail: str = ""


class Question(NamedTuple):
    """A pair, and the input dict that asks the model for its phrases."""

    pair: Pair
    model_input: dict[str, Any]


class Teacher:
    """A model that labels pairs of image and caption."""

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
            mapper: of evaluation; reads and resizes the images.
            image_root: the folder of the images; "" where their paths are whole.
            threshold: boxes are kept whose score is above it, 0 to 1.
            batch_size: images that go through the model together.
            num_workers: processes that read images ahead; 0: none.

        Raises:
            ValueError: spaCy or its English model is not installed.
        """
        # Now, so that the processes that read ahead inherit it.
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

    def label(self, pairs: Sequence[Pair]) -> Iterator[GroundedRecord | LeftOut]:
        """One outcome per pair, in their order."""
        batches = DataLoader(
            _Questions(pairs, self.image_root, self.mapper),
            batch_size=self.batch_size,
            collate_fn=list,
            num_workers=self.num_workers,
        )
        for batch in batches:
            answers = iter(self._ask([x for x in batch if isinstance(x, Question)]))
            for item in batch:
                if isinstance(item, Question):
                    yield grounded_record(item, next(answers), self.threshold)
                else:
                    yield item

    def _ask(self, questions: Sequence[Question]) -> list[Instances]:
        if not questions:
            return []
        with torch.no_grad():
            outputs = self.model([question.model_input for question in questions])
        return [output[fields.INSTANCES].to("cpu") for output in outputs]


class _Questions(Dataset[Question | LeftOut]):
    """Turns pairs into questions, in the processes of a DataLoader."""

    def __init__(self, pairs: Sequence[Pair], image_root: str, mapper: GroundingMapper) -> None:
        self.pairs = pairs
        self.image_root = image_root
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Question | LeftOut:
        pair = self.pairs[index]
        try:
            phrases = noun_phrases(pair.caption)
            prompt = fit_caption(pair.caption, phrases, self.mapper.tokenizer) if phrases else None
        # Half of a surrogate pair, for one.
        except ValueError as error:
            return LeftOut(*pair, BAD_CAPTION, str(error))
        if prompt is None or prompt.num_labels == 0:
            return LeftOut(*pair, NO_PHRASE)
        record = {
            fields.FILE_NAME: os.path.join(self.image_root, pair.image),
            fields.CAPTION: pair.caption,
            fields.PHRASES: phrases,
            fields.PROMPT: prompt,
        }
        try:
            return Question(pair, self.mapper(record))
        # A damaged file makes PIL raise nearly anything, and one in a million must not end the run.
        except Exception as error:
            return LeftOut(*pair, BAD_IMAGE, f"{type(error).__name__}: {error}")


def grounded_record(
    question: Question, instances: Instances, threshold: float
) -> GroundedRecord | LeftOut:
    """What is believed of a model's answer: boxes inside the image with a score above a threshold.

    Args:
        instances: ``pred_boxes`` (XYXY, pixels of the original image), ``scores``, and
            ``pred_classes``, which index the caption's phrases.
    """
    x, caption = question.model_input, question.pair.caption
    height, width = x[fields.HEIGHT], x[fields.WIDTH]
    boxes: list[list[float]] = []
    spans: list[Sequence[Span]] = []
    scores: list[float] = []
    for index in instances.scores.argsort(descending=True, stable=True).tolist():
        # What is written is compared, so that a reader with the same threshold agrees.
        score = round(instances.scores[index].item(), SCORE_DIGITS)
        box = _inside(instances.pred_boxes.tensor[index].tolist(), height, width)
        if score > threshold and box is not None:
            boxes.append(box)
            spans.append(x[fields.PHRASES][int(instances.pred_classes[index])])
            scores.append(score)
    if not boxes:
        return LeftOut(*question.pair, NO_BOX)
    return {
        "image": question.pair.image,
        "caption": caption,
        "boxes": boxes,
        "spans": [[list(span) for span in phrase] for phrase in spans],
        "scores": scores,
        "phrases": [" ".join(caption[begin:end] for begin, end in phrase) for phrase in spans],
        "height": height,
        "width": width,
    }


def _inside(box: Sequence[float], height: int, width: int) -> list[float] | None:
    """A box (XYXY) clipped to its image and rounded; None if it has no area there."""
    limits = (width, height, width, height)
    x1, y1, x2, y2 = (
        round(min(max(value, 0), limit), BOX_DIGITS)
        for value, limit in zip(box, limits, strict=True)
    )
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None
