"""Queries and fused features of a model, for tests of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Instances

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.structures import (
    FusedFeatures,
    Prompt,
    Query,
    QueryKind,
    TextFeatures,
    TokenBatch,
)


def detect_queries(
    prompts: Sequence[Prompt], gt_instances: Sequence[Instances] | None = None
) -> list[Query]:
    """One query per image."""
    instances = gt_instances or [None] * len(prompts)
    return [
        Query(i, QueryKind.DETECT, prompt, gt_instances=gt)
        for i, (prompt, gt) in enumerate(zip(prompts, instances, strict=True))
    ]


def fuse(
    model: GLIPv2,
    inputs: list[dict[str, Any]],
    prompts: Sequence[Prompt],
    gt_instances: Sequence[Instances] | None = None,
) -> FusedFeatures:
    """The fused features of images and one prompt each."""
    queries = detect_queries(prompts, gt_instances)
    features, tokens = model.encode_images(inputs), model.tokenize(queries)
    return model.fuse(features, queries, tokens, model.encode_text(tokens))


def fused_features(
    *,
    text: TextFeatures,
    tokens: TokenBatch,
    levels: dict[str, torch.Tensor] | None = None,
    fused_levels: dict[str, torch.Tensor] | None = None,
    gt_instances: Sequence[Instances] | None = None,
    image_sizes: Sequence[tuple[int, int]] = (),
) -> FusedFeatures:
    """Fused features with the same text before and after fusion."""
    levels = levels or {}
    return FusedFeatures(
        queries=tuple(detect_queries(tokens.prompts, gt_instances)),
        tokens=tokens,
        text=text,
        fused_text=text,
        region_text=text,
        image_sizes=list(image_sizes),
        features=levels,
        fused_features=levels if fused_levels is None else fused_levels,
    )
