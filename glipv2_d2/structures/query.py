"""A request about one image: the unit in which text is encoded, fused and scored."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.structures import Instances

from glipv2_d2.structures.generation import GenerationConfig
from glipv2_d2.structures.text import Prompt


class QueryKind(enum.Enum):
    """What a query requests."""

    DETECT = "detect"  # boxes of class names
    GROUND = "ground"  # boxes of the phrases of a caption
    ANSWER = "answer"  # the answer to a question
    CAPTION = "caption"  # a caption of the image

    @property
    def is_text_task(self) -> bool:
        """Whether the result is text."""
        return self in (QueryKind.ANSWER, QueryKind.CAPTION)


@dataclass(frozen=True, eq=False)
class Query:
    """One prompt for one image.

    Attributes:
        image: index of the image's input dict in the batch.
        kind: what is requested.
        prompt: the text to encode; for a caption in training, the target.
        gt_instances: in training, the boxes of the prompt's labels (``gt_boxes`` in pixels of the
            network input, ``gt_classes``); None: the query localizes nothing. A question with boxes
            is both localized and answered.
        answers: of a question in training, {answer: score in 0..1}.
        choices: of a question at inference, the answers to choose from; None: the head decides.
        generation: of a caption at inference; None: the model's default.
        is_placeholder: the query keeps all parameters in the graph of a batch that localizes
            nothing; its losses are multiplied by 0.
    """

    image: int
    kind: QueryKind
    prompt: Prompt
    gt_instances: Instances | None = None
    answers: Mapping[str, float] | None = None
    choices: Sequence[str] | None = None
    generation: GenerationConfig | None = None
    is_placeholder: bool = False

    def to(self, device: torch.device) -> Query:
        """The query with its ground truth on a device."""
        if self.gt_instances is None:
            return self
        return replace(self, gt_instances=self.gt_instances.to(device))


def gt_instances_of(queries: Sequence[Query]) -> list[Instances]:
    """The ground truth of localized queries."""
    instances = [query.gt_instances for query in queries]
    assert all(x is not None for x in instances), "a query has no ground truth"
    return [x for x in instances if x is not None]
