"""The mean of what an image says of names that it is asked in several orders.

It is taken where every location still has a score for every name: boxes of one location differ
little between the orders, while detections would first have to be matched. Our choice.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.prompting import InputPrompts
from glipv2_d2.modeling.rounds import rounds, select_images
from glipv2_d2.structures import Prompt, Reading


class Judge(Protocol):
    """What a model offers that can be asked in orders."""

    input_prompts: InputPrompts

    def read(self, features: dict[str, Tensor], prompts: list[Prompt]) -> Reading:
        """What comes of images and prompts reading each other."""

    def judge(self, reading: Reading) -> list[LabelScores]:
        """What was read, as scores and boxes of each image."""


def judge_in_orders(
    model: Judge, features: dict[str, Tensor], prompts: list[Prompt], reading: Reading
) -> list[LabelScores]:
    """The means over the orders of each prompt.

    Args:
        features: of N images, before fusion.
        prompts: N, the first of their orders.
        reading: what ``model.read`` gave for them.

    Returns:
        N.
    """
    means = model.judge(reading)
    further_per_image = [model.input_prompts.orders(prompt)[1:] for prompt in prompts]
    for k, (indices, asked) in enumerate(rounds(further_per_image)):
        judged = model.judge(model.read(select_images(features, indices), asked))
        for i, predictions in zip(indices, judged, strict=True):
            means[i] = means[i].lerp(predictions, 1 / (k + 2))
    return means
