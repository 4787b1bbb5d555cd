"""A GLIPv2 with known scores: the score of a token is a function of its id and of the image.

Prompts, tokenizer, caches, chunks, label scores and post-processing are the real ones. The network
is replaced by a single location with these token scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.layers.box_coder import BoxCoder
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.assigner import ATSSAssigner
from glipv2_d2.modeling.fusion import FusedHead
from glipv2_d2.modeling.heads import GroundingRPN
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.postprocess import PostprocessSettings
from glipv2_d2.modeling.prompt_builder import PromptBuilder
from glipv2_d2.modeling.queries import QueryBuilder
from glipv2_d2.structures import DensePredictions, FusedFeatures, TextFeatures, TokenBatch
from glipv2_d2.text import Tokenizer
from glipv2_d2.text.names import clean_name, normalized_name

CENTERNESS = 0.5
NUM_VALUES = 9973
"""The number of different scores: a prime, so that ids are spread over all of them."""

ScoreOfToken = Callable[[Tensor, int], Tensor]
"""(T,) token ids of a prompt and the number of the image -> (T,) scores between 0 and 1."""


def word_scores(ids: Tensor, image: int) -> Tensor:
    """A score that depends on the token and the image alone."""
    return 0.02 + 0.96 * ((ids * 7919 + image * 104729) % NUM_VALUES).double() / NUM_VALUES


class ImageNumber(nn.Module):
    """A pyramid of one location with the number of the image: its first pixel."""

    size_divisibility = 0
    padding_constraints: dict[str, int] = {}  # noqa: RUF012 - as Detectron2's backbones have it

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"p3": images[:, :1, :1, :1]}


class TokenIds(LanguageBackbone):
    """Text features that are the token ids; counts the encoded prompts."""

    width = 1
    vocab_size = 30522

    def __init__(self) -> None:
        super().__init__()
        self.num_encoded = 0

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        self.num_encoded += len(tokens)
        return TextFeatures(tokens.input_ids[..., None].double(), tokens.mask)


class NoFusion(FusedHead):
    """Image and text features stay as they are."""

    def forward(
        self, features: dict[str, Tensor], text: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        return features, text


class KnownScores(GroundingRPN):
    """Region-word scores from a function of token ids and image."""

    score_of_token: ScoreOfToken

    def predict(self, fused: FusedFeatures) -> DensePredictions:
        numbers = fused.fused_features["p3"].flatten().round().long().tolist()
        scores = [
            self.score_of_token(ids.long(), number)
            for ids, number in zip(fused.region_text.hidden[..., 0], numbers, strict=True)
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
    num_orders: int = 0,
    score_of_token: ScoreOfToken = word_scores,
    cache_size: int = 3,
) -> GLIPv2:
    """The model in evaluation mode; it detects every class once per image, in the same box."""
    head = KnownScores(
        visual_dim=1,
        strides=[8],
        max_tokens=tokenizer.max_tokens,
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
    prompts = PromptBuilder(
        tokenizer=tokenizer,
        separator=". ",
        max_classes=max_classes,
        default_classes=lambda x, training: [],
        num_orders=num_orders,
        accepts_negatives=True,
    )
    return GLIPv2(
        backbone=ImageNumber(),
        language_backbone=TokenIds(),
        fused_head=NoFusion(),
        proposal_generator=head,
        query_builder=QueryBuilder(prompts=prompts, can_answer=False, can_caption=False),
        pixel_mean=[0.0],
        pixel_std=[1.0],
        language_cache_size=cache_size,
    ).eval()


def image_number(number: int) -> Tensor:
    """An image (1, 8, 8) of which the known model reads the number."""
    return torch.full((1, 8, 8), float(number))


def known_score(tokenizer: Tokenizer, name: str, image: int = 0) -> float:
    """The score of a name: the geometric mean of its mean token score and of the centerness."""
    (ids,) = tokenizer.encode([clean_name(name)])
    mean = word_scores(torch.tensor(ids), image).mean().item()
    return math.sqrt(mean * CENTERNESS)


def first_indices(names: Sequence[str]) -> list[int]:
    """The index of the first occurrence of each different name."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        first.setdefault(normalized_name(name), i)
    return list(first.values())


def scores_of_classes(instances: Instances) -> dict[int, float]:
    """The score of each detected class; each must be detected once."""
    classes = instances.pred_classes.tolist()
    assert len(set(classes)) == len(classes), classes
    return dict(zip(classes, instances.scores.tolist(), strict=True))
