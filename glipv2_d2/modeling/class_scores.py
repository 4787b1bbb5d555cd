"""The best score of every class name in an image, whether or not it is detected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glipv2_d2.modeling.meta_arch import GLIPv2
from glipv2_d2.modeling.queries import iterate_chunks
from glipv2_d2.structures import fields
from glipv2_d2.text.names import normalized_name


@torch.no_grad()
def best_class_scores(model: GLIPv2, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
    """The score of the best box of every class name, without thresholds, limits and NMS.

    It is an upper bound of the scores of a class's detections, and equal to the best one where its
    best box is detected.

    Args:
        model: in evaluation mode.
        batched_inputs: input dicts with ``classes`` (see structures.fields).

    Returns:
        Per image (class names,), 0..1, on the CPU. Repeated names have equal scores, and
        names without a word in the tokenizer's vocabulary the score 0; negatives have none.
    """
    features = model.encode_images(batched_inputs)
    queries = model.query_builder.localized_queries(batched_inputs, [{}] * len(batched_inputs))
    scores_per_image: list[dict[int, float]] = [{} for _ in batched_inputs]
    for chunk in iterate_chunks(queries):
        tokens = model.tokenize(chunk)
        fused = model.fuse(features, chunk, tokens, model.encode_text(tokens))
        for query, scores in zip(chunk, model.score_labels(features, fused), strict=True):
            best = scores.best_scores().tolist()
            scores_per_image[query.image] |= dict(zip(query.prompt.classes, best, strict=True))
    return [
        _in_order_of(x[fields.CLASSES], scores)
        for x, scores in zip(batched_inputs, scores_per_image, strict=True)
    ]


def _in_order_of(names: Sequence[str], score_of_class: dict[int, float]) -> Tensor:
    first_of: dict[str, int] = {}
    classes = [first_of.setdefault(normalized_name(name), i) for i, name in enumerate(names)]
    return torch.tensor([score_of_class.get(class_, 0.0) for class_ in classes])
