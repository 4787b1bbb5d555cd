"""The start of the caption head: the head that predicted masked words in pre-training."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

logger = logging.getLogger(__name__)

CAPTION_HEAD = "text_tasks.caption."
MASKED_LANGUAGE_HEAD = "loss_heads.masked_language."


def with_caption_head(
    weights: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights of a file, and those of its masked language head as caption head.

    GLIPv2's captioner is fine-tuned from the bidirectional language model (GLIPv2 paper). The
    weights are unchanged if the file has a caption head, or no masked language head of its form.

    Args:
        weights: of a file, with the names of this project.
        model_state: of the model.
    """
    result = dict(weights)
    names = [name for name in model_state if name.startswith(CAPTION_HEAD)]
    if not names or any(name in weights for name in names):
        return result
    source_of = {n: MASKED_LANGUAGE_HEAD + n.removeprefix(CAPTION_HEAD) for n in names}
    # A tied and an own decoder differ by a name.
    found = {name for name in weights if name.startswith(MASKED_LANGUAGE_HEAD)}
    if found == {*source_of.values()} and all(
        weights[source].shape == model_state[name].shape for name, source in source_of.items()
    ):
        result |= {name: weights[source].clone() for name, source in source_of.items()}
        logger.info("the caption head starts from the masked language head")
    return result
