"""How sure a model is of each name somewhere in an image, also where that is no detection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glipv2_d2.modeling.meta_arch import GLIPv2
from glipv2_d2.modeling.orders import judge_in_orders
from glipv2_d2.modeling.rounds import rounds, select_images
from glipv2_d2.structures import fields
from glipv2_d2.text.prompts import normalized_name


@torch.no_grad()
def best_scores(model: GLIPv2, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
    """The score of the best box of every name, without thresholds, limits and suppression.

    What inference gives of a class has this score at most, and exactly this where its best box is
    detected.

    Args:
        model: in evaluation mode.
        batched_inputs: input dicts that ask ``classes`` (see structures.fields).

    Returns:
        Per image (names,), 0..1, on the CPU; a name that repeats another one has its score.
        Negatives have none.
    """
    images = model.preprocess_image(batched_inputs)
    features = model.backbone(images.tensor)
    prompts_per_image = [model.input_prompts.for_inference(x) for x in batched_inputs]
    scores_per_image: list[dict[int, float]] = [{} for _ in batched_inputs]
    for indices, prompts in rounds(prompts_per_image):
        selected = select_images(features, indices)
        judged = judge_in_orders(model, selected, prompts, model.read(selected, prompts))
        for i, prompt, predictions in zip(indices, prompts, judged, strict=True):
            best = predictions.best_scores().tolist()
            scores_per_image[i] |= dict(zip(prompt.classes, best, strict=True))
    return [
        _in_order_of(x[fields.CLASSES], scores)
        for x, scores in zip(batched_inputs, scores_per_image, strict=True)
    ]


def _in_order_of(names: Sequence[str], score_of_class: dict[int, float]) -> Tensor:
    first_of: dict[str, int] = {}
    classes = [first_of.setdefault(normalized_name(name), i) for i, name in enumerate(names)]
    return torch.tensor([score_of_class[class_] for class_ in classes])
