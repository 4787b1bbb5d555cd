"""Characters <-> tokens <-> labels.

T: tokens of a prompt. K: most tokens that one label has. A *positive map* is the (labels, T)
matrix that is True where a token spells a label.
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
    """The tokens that spell each label (GLIP spec 2.1).

    A span's tokens run from the token of its first character to that of its last; characters
    without a token (blanks, accents and control characters that the tokenizer drops) at its ends
    are skipped. GLIP skips two of them at each end and then gives the span up; we go on to the
    other end of the span, so that no readable label is without tokens.

    Args:
        spans: for each label, its character spans in the text.
        offsets: for each token, the characters [start, end) it was made of; start = end for
            [CLS], [SEP] and padding.
        num_tokens: T, at least ``len(offsets)``.

    Returns:
        (labels, T) bool.
    """
    token_of = _token_of_char(offsets)
    result = torch.zeros(len(spans), num_tokens, dtype=torch.bool)
    for label, label_spans in enumerate(spans):
        for start, end in label_spans:
            tokens = token_of[start:end]
            tokens = tokens[tokens >= 0]
            if len(tokens) > 0:
                result[label, int(tokens[0]) : int(tokens[-1]) + 1] = True
    return result


def _token_of_char(offsets: Sequence[Span]) -> np.ndarray:
    """For each character the first token that was made of it, or -1."""
    token_of = np.full(max((end for _, end in offsets), default=0), -1, dtype=np.int64)
    # One character may become several tokens (a Hangul syllable does): backwards, the first wins.
    for token in reversed(range(len(offsets))):
        start, end = offsets[token]
        token_of[start:end] = token
    return token_of


def label_scores(token_probs: Tensor, positive_map: Tensor, how: str = "mean") -> Tensor:
    """Scores of tokens -> scores of labels (GLIP spec 12).

    Args:
        token_probs: (..., T) probabilities. GLIP aggregates these, not the logits.
        positive_map: (labels, T) bool.
        how: "mean", "max" or "power" (geometric mean) over the tokens of a label.

    Returns:
        (..., labels) float32. A label without tokens scores 0 and is never detected (GLIP's score
        is NaN then, to the same effect).

    Raises:
        ValueError: ``how`` is none of the three.
    """
    if how not in _AGGREGATIONS:
        raise ValueError(
            f"unknown score aggregation {how!r}: MODEL.GROUNDING.SCORE_AGGREGATION is one of "
            f"{', '.join(_AGGREGATIONS)}"
        )
    return _AGGREGATIONS[how](token_probs.float(), positive_map)


def _mean(token_probs: Tensor, positive_map: Tensor) -> Tensor:
    weights = positive_map.float()
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    # Autocast would take the product in half precision.
    with torch.autocast(token_probs.device.type, enabled=False):
        return token_probs @ weights.T


def _power(token_probs: Tensor, positive_map: Tensor) -> Tensor:
    # log(0) is -inf, and -inf times the 0 of another label's token would be NaN.
    logs = token_probs.clamp(min=torch.finfo(torch.float32).tiny).log()
    return _mean(logs, positive_map).exp() * positive_map.any(dim=1)


def _max(token_probs: Tensor, positive_map: Tensor) -> Tensor:
    num_tokens = positive_map.sum(dim=1)
    # (labels, T): the tokens of each label first, in order, then all others.
    order = positive_map.byte().argsort(dim=1, descending=True, stable=True)
    scores = token_probs.new_zeros(*token_probs.shape[:-1], len(positive_map))
    # One pass per rank (K of them, a few) needs no (..., labels, T) tensor.
    for rank in range(int(num_tokens.max()) if len(positive_map) > 0 else 0):
        ranked = token_probs[..., order[:, rank]] * (num_tokens > rank)
        scores = torch.maximum(scores, ranked)
    return scores


_AGGREGATIONS = {"mean": _mean, "max": _max, "power": _power}
