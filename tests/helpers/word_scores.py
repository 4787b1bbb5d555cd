"""A GLIPv2 whose scores are known: each token's is a function of its id and of the image.

Prompting, tokenizer, caches, rounds, label scores and post-processing are the real ones. Of the
network nothing is left: there is one location, and what it says of a word can be computed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.layers.box_coder import BoxCoder
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.assigner import ATSSAssigner
from glipv2_d2.modeling.heads import GroundingRPN
from glipv2_d2.modeling.postprocess import PostprocessSettings
from glipv2_d2.modeling.prompting import InputPrompts
from glipv2_d2.structures import DensePredictions, TextFeatures, TokenBatch
from glipv2_d2.text import Tokenizer
from glipv2_d2.text.prompts import clean_name, normalized_name

CENTERNESS = 0.5
NUM_VALUES = 9973
"""Different scores of words: a prime, so that ids spread over all of them."""

ScoreOfToken = Callable[[Tensor, int], Tensor]
"""(T,) token ids of a prompt and the number of the image -> (T,) scores between 0 and 1."""


def word_scores(ids: Tensor, image: int) -> Tensor:
    """A score that depends on the token and the image alone."""
    return 0.02 + 0.96 * ((ids * 7919 + image * 104729) % NUM_VALUES).double() / NUM_VALUES


class ImageNumber(nn.Module):
    """A pyramid of one location that tells the number of the image: its first pixel."""

    size_divisibility = 0
    padding_constraints: dict[str, int] = {}  # noqa: RUF012 - as Detectron2's backbones have it

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"p3": images[:, :1, :1, :1]}


class TokenIds(nn.Module):
    """Features that are the ids themselves; counts the prompts that it was asked."""

    width = 1
    vocab_size = 30522

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        self.asked += len(tokens)
        return TextFeatures(tokens.input_ids[..., None].double(), tokens.mask)


class PassBy(nn.Module):
    """Image and words do not read each other."""

    def forward(self, features: Any, language: TextFeatures) -> tuple[Any, TextFeatures]:
        return features, language


class KnownScores(GroundingRPN):
    """Says of every word of every image what a function says."""

    score_of_token: ScoreOfToken

    def predict(self, features: dict[str, Tensor], language: TextFeatures) -> DensePredictions:
        numbers = features["p3"].flatten().round().long().tolist()
        scores = [
            self.score_of_token(ids.long(), number)
            for ids, number in zip(language.hidden[..., 0], numbers, strict=True)
        ]
        num_images = len(numbers)
        return DensePredictions(
            token_logits_per_level=[torch.stack(scores).logit()[:, None].float()],
            box_deltas_per_level=[torch.zeros(num_images, 1, 4)],
            centerness_per_level=[torch.full((num_images, 1), CENTERNESS).logit()],
            anchors_per_level=[torch.tensor([[2.0, 2.0, 5.0, 5.0]])],
        )


def known_model(
    tokenizer: Tokenizer,
    *,
    max_classes: int = 0,
    max_tokens: int = 256,
    num_orders: int = 0,
    score_of_token: ScoreOfToken = word_scores,
    cache_size: int = 3,
) -> GLIPv2:
    """The model in evaluation mode; every class is found once in every image, in one same box."""
    head = KnownScores(
        visual_dim=1,
        strides=[8],
        max_tokens=max_tokens,
        region_word=nn.Identity(),
        anchor_generator=nn.Identity(),
        assigner=ATSSAssigner(topk=1),
        box_coder=BoxCoder(),
        postprocess=PostprocessSettings(
            score_thresh=0.0,
            pre_nms_topk=10_000,
            nms_thresh=0.5,
            detections_per_prompt=10_000,
            aggregation="mean",
        ),
        loss_settings={},
    )
    head.score_of_token = score_of_token
    prompts = InputPrompts(
        tokenizer=tokenizer,
        separator=". ",
        max_tokens=max_tokens,
        max_classes=max_classes,
        default_classes=lambda training: [],
        num_orders=num_orders,
        takes_negatives=True,
    )
    return GLIPv2(
        backbone=ImageNumber(),
        language_backbone=TokenIds(),
        fused_head=PassBy(),
        proposal_generator=head,
        tokenizer=tokenizer,
        input_prompts=prompts,
        pixel_mean=[0.0],
        pixel_std=[1.0],
        language_cache_size=cache_size,
    ).eval()


def image_number(number: int) -> Tensor:
    """An image (1, 8, 8) that the known model takes for that number."""
    return torch.full((1, 8, 8), float(number))


def known_score(tokenizer: Tokenizer, name: str, image: int = 0) -> float:
    """The score of a name: that of its tokens in the mean, and of the centerness.

    Of a last character that is several tokens (a Hangul syllable is), the first counts, as in GLIP.
    """
    encoding = tokenizer._encode([clean_name(name)], add_special_tokens=False)
    (ids,), (offsets,) = encoding["input_ids"], encoding["offset_mapping"]
    counted = ids[: offsets.index(offsets[-1]) + 1]
    mean = word_scores(torch.tensor(counted), image).mean().item()
    return math.sqrt(mean * CENTERNESS)


def first_indices(names: Sequence[str]) -> list[int]:
    """The index under which each different name is known."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        first.setdefault(normalized_name(name), i)
    return list(first.values())


def scores_of_classes(instances: Instances) -> dict[int, float]:
    """The score of each class that was found; each is found once."""
    classes = instances.pred_classes.tolist()
    assert len(set(classes)) == len(classes), classes
    return dict(zip(classes, instances.scores.tolist(), strict=True))
