"""Maps between characters, tokens and labels.

T: tokens of a prompt. K: maximum number of tokens per label. A *positive map* is the (labels, T)
matrix that is True where a token belongs to a label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glipv2_d2.structures.text import Span


def positive_map(
    spans: Sequence[Sequence[Span]], offsets: Sequence[Span], num_tokens: int
) -> Tensor:
    """Mark the tokens of each label (glip_reference.md 2.1).

    A span's tokens run from the first token of its first character to the last of its last (GLIP
    takes the first there, too, so that Hangul syllables lose letters). Characters
    without a token at its ends (blanks, accents and control characters that the tokenizer drops)
    are skipped: any number of them, while GLIP skips at most two at each end.

    Args:
        spans: for each label, its character spans in the text.
        offsets: for each token, its characters [start, end); start = end for [CLS], [SEP] and
            padding.
        num_tokens: T, at least ``len(offsets)``.

    Returns:
        (labels, T) bool.
    """
    first_of, last_of = _tokens_of_chars(offsets)
    result = torch.zeros(len(spans), num_tokens, dtype=torch.bool)
    for label, label_spans in enumerate(spans):
        for start, end in label_spans:
            (characters,) = np.nonzero(first_of[start:end] >= 0)
            if len(characters) > 0:
                first, last = start + characters[[0, -1]]
                result[label, int(first_of[first]) : int(last_of[last]) + 1] = True
    return result


def _tokens_of_chars(offsets: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """For each character its first and its last token, or -1."""
    num_characters = max((end for _, end in offsets), default=0)
    first_of, last_of = np.full((2, num_characters), -1, dtype=np.int64)
    # A character may have several tokens (a Hangul syllable does).
    for token, (start, end) in enumerate(offsets):
        last_of[start:end] = token
    for token, (start, end) in reversed(list(enumerate(offsets))):
        first_of[start:end] = token
    return first_of, last_of


def label_scores(token_probs: Tensor, positive_map: Tensor, aggregation: str = "mean") -> Tensor:
    """Aggregate token probabilities into label scores (glip_reference.md 12).

    Args:
        token_probs: (..., T) probabilities; GLIP aggregates these, not the logits.
        positive_map: (labels, T) bool.
        aggregation: "mean", "max" or "power" (geometric mean) over the tokens of a label.

    Returns:
        (..., labels) float32. A label without tokens scores 0 and is never detected (in GLIP it
        scores NaN, with the same effect).

    Raises:
        ValueError: unknown ``aggregation``.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")
    return AGGREGATIONS[aggregation](token_probs.float(), positive_map)


def _mean(token_probs: Tensor, positive_map: Tensor) -> Tensor:
    weights = positive_map.float()
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    # Autocast would compute the product in half precision.
    with torch.autocast(token_probs.device.type, enabled=False):
        return token_probs @ weights.T


def _power(token_probs: Tensor, positive_map: Tensor) -> Tensor:
    # log(0) is -inf, and -inf times the weight 0 of another label would be NaN.
    logs = token_probs.clamp(min=torch.finfo(torch.float32).tiny).log()
    return _mean(logs, positive_map).exp() * positive_map.any(dim=1)


def _max(token_probs: Tensor, positive_map: Tensor) -> Tensor:
    num_tokens = positive_map.sum(dim=1)
    # (labels, T): for each label its own tokens first, in order.
    order = positive_map.byte().argsort(dim=1, descending=True, stable=True)
    scores = token_probs.new_zeros(*token_probs.shape[:-1], len(positive_map))
    # A loop over the K ranks avoids a (..., labels, T) tensor.
    for rank in range(int(num_tokens.max()) if len(positive_map) > 0 else 0):
        ranked = token_probs[..., order[:, rank]] * (num_tokens > rank)
        scores = torch.maximum(scores, ranked)
    return scores


AGGREGATIONS = {"mean": _mean, "max": _max, "power": _power}
