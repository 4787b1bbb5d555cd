"""Positions and words attend to each other, band by band, forwards and backwards.

N: images. P: positions of all levels. T: tokens. C: width of the image. H: heads.

The (P, H T) scores of :mod:`~glipv2_d2.modeling.fusion.bi_attention` never exist at once. Positions
come in bands whose scores stay in the cache of a CPU. Forwards the softmax over positions is
carried from one band to the next. Backwards a band's scores are computed anew, and what is kept of
each word, the logarithm of its sum of exp(score), turns them into weights: training keeps nothing
of the size of the scores either. The formulas of the gradients are those of attention; as in
FlashAttention (arXiv:2205.14135) the sum over a softmax's gradients is told from its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glipv2_d2.layers.dropout import keep_, keep_bits

# The reference clamps the scores so that fp16 does not overflow.
MAX_SCORE = 50000.0

# Scores that are worked on at a time. On a CPU they stay in the cache (8 MB); on a GPU the products
# still fill the card.
MAX_BAND_SCORES = {"cpu": 2**21, "cuda": 2**26}

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class AbsorbedWords:
    """The words of N prompts with the projections of the positions folded in.

    Attributes:
        num_heads: H.
        key: (N, C, H T), of the type that products are computed in.
        constant: (N, 1, H T), a part of the scores.
        value: (N, H T, C), what a position reads; None: positions read nothing.
        hiding: (N, 1, 1, T), added to scores where positions read: 0 for valid tokens, the lowest
            number for others.
    """

    num_heads: int
    key: Tensor
    constant: Tensor
    value: Tensor | None = None
    hiding: Tensor | None = None


@dataclass(frozen=True)
class ReadByWords:
    """What each head of each word has read of the positions.

    Attributes:
        means: (N, H T, C), of the positions' features; where dropout drops, sums of what is left.
        kept: (N, H T), the sum of the weights that dropout left; 1 without it.
        evidence: (N, H T), the logarithm of the sum of exp(score).
    """

    means: Tensor
    kept: Tensor
    evidence: Tensor


def attend(
    visual: Tensor, words: AbsorbedWords, *, words_read: bool, dropout: float = 0.0
) -> tuple[Tensor, ReadByWords | None]:
    """Let positions read words and words read positions, over the same scores.

    Args:
        visual: (N, P, C); where no gradient is asked for, it may be written into.
        words: what is read; without values the positions stay as they are.
        words_read: whether words read positions.
        dropout: the probability of a weight to be dropped. What is left is *not* scaled up: the
            caller scales the few values and means.

    Returns:
        (N, P, C), the positions and what they read, and what the words read.
    """
    how = _How(words.num_heads, words_read, dropout, _draw_seed() if dropout else 0)
    tensors = (visual, words.key, words.constant, words.value, words.hiding)
    if torch.is_grad_enabled():
        positions, *read = _attend_with_gradients(*tensors, how)
    else:
        positions, *read = _attend(*tensors, how, positions=visual)
    if words.value is None:
        positions = visual
    return positions, ReadByWords(*read) if words_read else None


@dataclass(frozen=True)
class _How:
    num_heads: int
    words_read: bool
    dropout: float
    seed: int

    def left(self, like: Tensor, band: int, *, by_words: bool) -> Tensor | None:
        """Bits of the weights of a band that dropout leaves, the same backwards; None: all."""
        if self.dropout == 0:
            return None
        return keep_bits(like, self.dropout, self.seed + 2 * band + by_words)


def _draw_seed() -> int:
    return int(torch.randint(2**60, ()))


def _bands(visual: Tensor, key: Tensor) -> Iterator[slice]:
    """Positions in parts with a limited number of scores each."""
    num_positions, scores_per_position = visual.shape[1], len(visual) * key.shape[2]
    limit = MAX_BAND_SCORES.get(visual.device.type)
    size = num_positions if limit is None else limit // max(1, scores_per_position)
    size = max(1, size)
    for start in range(0, num_positions, size):
        yield slice(start, start + size)


def _scores(x: Tensor, key: Tensor, constant: Tensor) -> Tensor:
    """(N, B, H T), in at least fp32."""
    scores = torch.baddbmm(constant, x, key)
    return scores.to(_score_dtype(scores.dtype)).clamp_(-MAX_SCORE, MAX_SCORE)


def _score_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _exp_of_difference(scores: Tensor, most: Tensor) -> Tensor:
    """exp(scores - most), as a power of two: on a CPU torch's ``exp`` takes three times as long."""
    return torch.add(most * -_LOG2_E, scores, alpha=_LOG2_E).exp2_()


def _attention(scores: Tensor, hiding: Tensor, num_heads: int, *, in_place: bool) -> Tensor:
    """(N, B, H T) scores -> weights of the words, whose sum per head is 1."""
    per_head = scores.unflatten(2, (num_heads, -1))
    per_head = per_head.add_(hiding) if in_place else per_head + hiding
    return per_head.softmax(dim=-1).flatten(2)


@dataclass
class _Carried:
    """What words have read of the bands so far, weighed by exp(score - best).

    Attributes:
        best: (N, 1, H T), the highest score of each.
        sums, kept: (N, H T), of the weights, and of those that are left.
        features: (N, H T, C), sums.
    """

    best: Tensor
    sums: Tensor
    kept: Tensor
    features: Tensor

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        evidence = self.best.flatten(1) + self.sums.log()
        return self.features / self.sums[..., None], self.kept / self.sums, evidence


def _read_positions(
    scores: Tensor, x: Tensor, left: Tensor | None, so_far: _Carried | None
) -> _Carried:
    best = scores.amax(dim=1, keepdim=True)
    if so_far is not None:
        best = torch.maximum(best, so_far.best)
    weights = _exp_of_difference(scores, best)
    sums = weights.sum(dim=1)
    if x.dtype == torch.float16:
        # Sums over positions may be too large for it; means are not.
        weights = weights / sums[:, None]
    weights = keep_(weights.to(x.dtype), left)
    kept = sums if left is None else weights.sum(dim=1, dtype=sums.dtype)
    features = _transposed_product(weights, x).to(scores.dtype)
    if x.dtype == torch.float16:
        features = features * sums[..., None]
        kept = kept if left is None else kept * sums
    further = _Carried(best, sums=sums, kept=kept, features=features)
    if so_far is None:
        return further
    fading = (so_far.best - best).exp().flatten(1)
    further.sums = further.sums + fading * so_far.sums
    further.kept = further.kept + fading * so_far.kept
    further.features = further.features + fading[..., None] * so_far.features
    return further


def _attend(
    visual: Tensor,
    key: Tensor,
    constant: Tensor,
    value: Tensor | None,
    hiding: Tensor | None,
    how: _How,
    *,
    positions: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """:func:`attend` with ``positions`` as what is written into where there are values."""
    carried = None
    with torch.autocast(visual.device.type, enabled=False):
        for index, band in enumerate(_bands(visual, key)):
            x = visual[:, band].to(key.dtype)
            scores = _scores(x, key, constant)
            if how.words_read:
                # First, as the other uses scores and positions up.
                left = how.left(scores, index, by_words=True)
                carried = _read_positions(scores, x, left, carried)
            if value is not None and hiding is not None and positions is not None:
                left = how.left(scores, index, by_words=False)
                weights = _attention(scores, hiding, how.num_heads, in_place=True)
                _add_product(positions[:, band], keep_(weights.to(value.dtype), left), value)
    return (positions, *(carried.result() if carried is not None else (None, None, None)))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b. Under autocast only what is added is rounded."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(a @ b)


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """(N, B, M), (N, B, C) -> (N, M, C), each image's a^T b.

    On a CPU image by image: the product of a batch would first copy what is transposed.
    """
    if a.device.type != "cpu":
        return a.transpose(1, 2) @ b
    product = a.new_empty(len(a), a.shape[2], b.shape[2])
    for of_image, left, right in zip(product, a, b, strict=True):
        torch.mm(left.t(), right, out=of_image)
    return product


# A compiler would break its graph in many places of the backward pass.
@torch.compiler.disable
def _attend_with_gradients(*args: Any) -> tuple[Tensor | None, ...]:
    return _BandedAttention.apply(*args)


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        visual: Tensor,
        key: Tensor,
        constant: Tensor,
        value: Tensor | None,
        hiding: Tensor | None,
        how: _How,
    ) -> tuple[Tensor | None, ...]:
        written = visual.clone() if value is not None else None
        positions, means, kept, evidence = _attend(
            visual, key, constant, value, hiding, how, positions=written
        )
        ctx.how = how
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(visual, key, constant, value, hiding, means, kept, evidence)
        return positions, means, kept, evidence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        backward = _Backward(ctx.how, *ctx.saved_tensors, *gradients)
        for index, band in enumerate(backward.bands()):
            backward.add(index, band, wants_visual=ctx.needs_input_grad[0])
        visual, key, constant, value = backward.gradients()
        return visual, key, constant, value, None, None


class _Backward:
    """The sums of the gradients over the bands."""

    def __init__(
        self,
        how: _How,
        visual: Tensor,
        key: Tensor,
        constant: Tensor,
        value: Tensor | None,
        hiding: Tensor | None,
        means: Tensor | None,
        kept: Tensor | None,
        evidence: Tensor | None,
        d_positions: Tensor | None,
        d_means: Tensor | None,
        d_kept: Tensor | None,
        d_evidence: Tensor | None,
    ) -> None:
        self.how = how
        self.visual, self.key, self.constant = visual, key, constant
        self.value, self.hiding, self.evidence = value, hiding, evidence
        # Copied here, not once per band.
        self.key_back = key.transpose(1, 2).contiguous()
        self.value_back = None if value is None else value.transpose(1, 2).contiguous()
        dtype = _score_dtype(key.dtype)
        self.d_positions = d_positions
        self.d_visual = torch.zeros_like(visual) if d_positions is None else d_positions.clone()
        self.d_key = torch.zeros_like(key, dtype=dtype)
        self.d_constant = torch.zeros_like(constant, dtype=dtype)
        self.d_value = None if value is None else torch.zeros_like(value, dtype=dtype)
        if means is not None and kept is not None:
            d_means = torch.zeros_like(means) if d_means is None else d_means
            d_kept = torch.zeros_like(kept) if d_kept is None else d_kept
            self.d_means, self.d_kept = d_means.to(key.dtype), d_kept[:, None].to(key.dtype)
            self.d_means_back = self.d_means.transpose(1, 2).contiguous()
            # The weights' mean gradient, which the softmax takes from each.
            mean = (means * d_means).sum(dim=-1) + kept * d_kept
            self.mean = (mean if d_evidence is None else mean - d_evidence)[:, None]

    def bands(self) -> Iterator[slice]:
        return _bands(self.visual, self.key)

    def add(self, index: int, band: slice, *, wants_visual: bool) -> None:
        """Add what a band of positions tells."""
        x = self.visual[:, band].to(self.key.dtype)
        d_visual = self.d_visual[:, band]
        scores = _scores(x, self.key, self.constant)
        d_scores = scores.new_zeros(())
        if self.how.words_read:
            left = self.how.left(scores, index, by_words=True)
            d_scores = self._of_words(scores, x, left, d_visual if wants_visual else None)
        if self.value is not None and self.d_positions is not None:
            left = self.how.left(scores, index, by_words=False)
            d_scores = self._of_positions(scores, self.d_positions[:, band], left).add_(d_scores)
        # Nothing comes from beyond the clamp.
        d_scores = d_scores.expand_as(scores)
        d_scores = torch.ops.aten.hardtanh_backward(d_scores, scores, -MAX_SCORE, MAX_SCORE)
        self.d_constant += d_scores.sum(dim=1, keepdim=True)
        d_scores = d_scores.to(self.key.dtype)
        self.d_key += _transposed_product(x, d_scores)
        if wants_visual:
            _add_product(d_visual, d_scores, self.key_back)

    def _of_words(
        self, scores: Tensor, x: Tensor, left: Tensor | None, d_visual: Tensor | None
    ) -> Tensor:
        """The gradient of the scores by way of what words read."""
        assert self.evidence is not None
        weights = _exp_of_difference(scores, self.evidence[:, None])
        if d_visual is not None:
            kept = keep_(weights.to(x.dtype, copy=left is not None), left)
            _add_product(d_visual, kept, self.d_means)
        d_weights = keep_(torch.baddbmm(self.d_kept, x, self.d_means_back), left)
        return d_weights.to(scores.dtype).sub_(self.mean).mul_(weights)

    def _of_positions(self, scores: Tensor, d_positions: Tensor, left: Tensor | None) -> Tensor:
        """The gradient of the scores by way of what positions read."""
        assert self.value_back is not None
        assert self.hiding is not None
        assert self.d_value is not None
        weights = _attention(scores, self.hiding, self.how.num_heads, in_place=False)
        d_read = d_positions.to(self.value_back.dtype)
        kept = keep_(weights.to(d_read.dtype, copy=left is not None), left)
        self.d_value += _transposed_product(kept, d_read)
        d_weights = keep_(d_read @ self.value_back, left).to(scores.dtype)
        heads = (self.how.num_heads, -1)
        return torch.ops.aten._softmax_backward_data(
            d_weights.unflatten(2, heads),
            weights.unflatten(2, heads),
            -1,
            scores.dtype,
        ).flatten(2)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of visual, key, constant and value."""
        return (
            self.d_visual,
            self.d_key.to(self.key.dtype),
            self.d_constant.to(self.constant.dtype),
            None if self.d_value is None else self.d_value.to(self.key.dtype),
        )
