"""Bi-directional attention over blocks of image positions, with its own gradients.

N: images. P: positions of all levels. T: tokens. C: visual channels. H: attention heads.

The (P, H T) attention scores never exist as a whole. Positions are processed in blocks whose scores
fit in the cache of a CPU. The forward pass carries an online softmax over the positions from block
to block. The backward pass recomputes the scores of each block and turns them into attention
weights with the stored logsumexp of each head and token, so training keeps no tensor of the size of
the scores either. As in FlashAttention (arXiv:2205.14135), the sum in the gradient of a softmax is
computed from the output of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glipv2_d2.layers.dropout import apply_keep_mask_, keep_mask
from glipv2_d2.layers.packed_linear import prepared_linear
from glipv2_d2.layers.tracing import is_exporting_onnx, is_tracing

# GLIP clamps the scores so that fp16 does not overflow.
MAX_SCORE = 50000.0

# Scores per block. On a CPU they fit in the cache (8 MB); on a GPU the products are still large
# enough to occupy the device.
MAX_BLOCK_SCORES = {"cpu": 2**21, "cuda": 2**26}

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class AbsorbedText:
    """Keys and values of N prompts, multiplied by the projections of the image positions.

    Attributes:
        num_heads: H.
        key: (N, C, H T), in the dtype of the products.
        key_bias: (N, 1, H T), added to the scores of every position.
        value: (N, H T, C), for text-to-image attention; None: there is none.
        padding_bias: (N, 1, 1, T), added to the scores of text-to-image attention: 0 for valid
            tokens, the lowest finite number for padding. None: nothing is added.
    """

    num_heads: int
    key: Tensor
    key_bias: Tensor
    value: Tensor | None = None
    padding_bias: Tensor | None = None


@dataclass(frozen=True)
class TextContext:
    """Output of image-to-text attention for each head and token.

    Attributes:
        features: (N, H T, C), sums of the positions' features, weighted by attention. The weights
            sum to 1 without dropout, and to ``weight_sum`` with it.
        weight_sum: (N, H T), the sum of the attention weights that dropout keeps.
        logsumexp: (N, H T), over the scores of all positions.
    """

    features: Tensor
    weight_sum: Tensor
    logsumexp: Tensor


def blockwise_attention(
    visual: Tensor, text: AbsorbedText, *, dropout: float = 0.0
) -> tuple[Tensor, TextContext]:
    """Attend from tokens to positions, and with values also back, over the same scores.

    Args:
        visual: (N, P, C). Without gradients it may be overwritten by the result.
        text: keys, and values if positions attend to tokens (text-to-image attention).
        dropout: probability to drop an attention weight. The remaining weights are *not* scaled
            up: the caller scales the few values and sums instead.

    Returns:
        (N, P, C), ``visual`` plus the result of text-to-image attention, and the result of
        image-to-text attention.
    """
    options = _Options(text.num_heads, dropout, _draw_seed() if dropout else 0)
    tensors = (visual, text.key, text.key_bias, text.value, text.padding_bias)
    if torch.is_grad_enabled():
        updated, *context = _attend_with_gradients(*tensors, options)
    elif _is_eager_on_cpu(visual) and dropout == 0 and len(visual) > 0:
        updated, context = _attend_per_image(*tensors, options)
    else:
        updated, *context = _attend(*tensors, options)
    if text.value is None:
        updated = visual
    return updated, TextContext(*context)


@dataclass(frozen=True)
class _Options:
    num_heads: int
    dropout: float
    seed: int

    def keep_mask(self, like: Tensor, block: int, *, image_to_text: bool) -> Tensor | None:
        """Dropout mask of a block, equal in forward and backward pass; None: nothing is dropped."""
        if self.dropout == 0:
            return None
        return keep_mask(like, self.dropout, self.seed + 2 * block + image_to_text)


def _draw_seed() -> int:
    return int(torch.randint(2**60, ()))


def _blocks(visual: Tensor, key: Tensor) -> Iterator[slice]:
    """Slices of the positions with a limited number of scores each."""
    size = _block_size(visual, key)
    for start in range(0, visual.shape[1], size):
        yield slice(start, start + size)


def _block_size(visual: Tensor, key: Tensor) -> int:
    scores_per_position = max(1, len(visual) * key.shape[2])
    limit = None if is_tracing() else MAX_BLOCK_SCORES.get(visual.device.type)
    return max(1, visual.shape[1] if limit is None else limit // scores_per_position)


def _clamped(scores: Tensor) -> Tensor:
    """(N, B, H T) scores of a block of B positions, in at least fp32."""
    return scores.to(_score_dtype(scores.dtype)).clamp_(-MAX_SCORE, MAX_SCORE)


def _score_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _exp_of_difference(scores: Tensor, offset: Tensor) -> Tensor:
    """exp(scores - offset), as a power of two: torch's ``exp`` takes three times as long on CPU."""
    if is_exporting_onnx():  # which has no exp2
        return (scores - offset).exp()
    return torch.add(offset * -_LOG2_E, scores, alpha=_LOG2_E).exp2_()


def _softmax_over_tokens(
    scores: Tensor, padding_bias: Tensor | None, num_heads: int, *, in_place: bool
) -> Tensor:
    """(N, B, H T) scores -> attention weights, which sum to 1 over the tokens of each head."""
    per_head = scores.unflatten(2, (num_heads, -1))
    if padding_bias is not None:
        per_head = per_head.add_(padding_bias) if in_place else per_head + padding_bias
    return per_head.softmax(dim=-1).flatten(2)


@dataclass
class OnlineSoftmaxState:
    """Running sums of image-to-text attention, each term weighted by exp(score - max_score).

    Attributes:
        max_score: (N, 1, H T), over the blocks so far.
        normalizer: (N, H T), sum of the weights.
        weight_sum: (N, H T), sum of the weights that dropout keeps.
        features: (N, H T, C), weighted sum of the positions' features.
    """

    max_score: Tensor
    normalizer: Tensor
    weight_sum: Tensor
    features: Tensor

    def merge(self, earlier: OnlineSoftmaxState) -> None:
        """Add the sums of earlier blocks, whose maximum is at most ``max_score``."""
        decay = (earlier.max_score - self.max_score).exp().flatten(1)
        self.normalizer = self.normalizer + decay * earlier.normalizer
        self.weight_sum = self.weight_sum + decay * earlier.weight_sum
        self.features = torch.addcmul(self.features, decay[..., None], earlier.features)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """The fields of :class:`TextContext`."""
        return (
            self.features / self.normalizer[..., None],
            self.weight_sum / self.normalizer,
            self.max_score.flatten(1) + self.normalizer.log(),
        )


def _attend_to_positions(
    scores: Tensor, x: Tensor, mask: Tensor | None, earlier: OnlineSoftmaxState | None
) -> OnlineSoftmaxState:
    """The state after one more block of positions."""
    max_score = scores.amax(dim=1, keepdim=True)
    if earlier is not None:
        max_score = torch.maximum(max_score, earlier.max_score)
    weights = _exp_of_difference(scores, max_score)
    normalizer = weights.sum(dim=1)
    if x.dtype == torch.float16:
        # Sums over positions may exceed the range of fp16; means do not.
        weights = weights / normalizer[:, None]
    weights = apply_keep_mask_(weights.to(x.dtype), mask)
    weight_sum = normalizer if mask is None else weights.sum(dim=1, dtype=normalizer.dtype)
    features = _transposed_product(weights, x).to(scores.dtype)
    if x.dtype == torch.float16:
        features = features * normalizer[..., None]
        weight_sum = weight_sum if mask is None else weight_sum * normalizer
    state = OnlineSoftmaxState(max_score, normalizer, weight_sum, features)
    if earlier is not None:
        state.merge(earlier)
    return state


def _attend(
    visual: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor | None,
    padding_bias: Tensor | None,
    options: _Options,
    *,
    output: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The forward pass. ``output``: what the result of text-to-image attention is added to; None:
    ``visual`` itself, in place.
    """
    output = visual if output is None else output
    sizes = {"num_rows": visual.shape[1], "block_rows": _block_size(visual, key)}
    state = None
    if padding_bias is not None and _is_eager_on_cpu(visual) and not padding_bias.any():
        padding_bias = None  # one pass over the scores less
    with torch.autocast(visual.device.type, enabled=False):
        score = _product(key, key_bias, **sizes)
        if value is not None:
            add_values = _product_adder(value, **sizes)
        for index, block in enumerate(_blocks(visual, key)):
            x = visual[:, block].to(key.dtype)
            scores = _clamped(score(x))
            # First, as text-to-image attention overwrites scores and positions.
            mask = options.keep_mask(scores, index, image_to_text=True)
            state = _attend_to_positions(scores, x, mask, state)
            if value is not None:
                mask = options.keep_mask(scores, index, image_to_text=False)
                weights = _softmax_over_tokens(
                    scores, padding_bias, options.num_heads, in_place=not is_exporting_onnx()
                )
                weights = apply_keep_mask_(weights.to(value.dtype), mask)
                if is_exporting_onnx():  # one block, and no writing into views
                    output = output + weights @ value
                else:
                    add_values(output[:, block], weights)
    assert state is not None, "there are no positions"
    return output, *state.result()


def _attend_per_image(
    visual: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor | None,
    padding_bias: Tensor | None,
    options: _Options,
) -> tuple[Tensor, list[Tensor]]:
    """:func:`_attend` image by image, in place: keys and values are packed for one image each."""
    contexts = []
    for i in range(len(visual)):
        _, *context = _attend(
            visual[i : i + 1],
            key[i : i + 1],
            key_bias[i : i + 1],
            None if value is None else value[i : i + 1],
            None if padding_bias is None else padding_bias[i : i + 1],
            options,
        )
        contexts.append(context)
    return visual, [torch.cat(parts) for parts in zip(*contexts, strict=True)]


def _is_eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not (is_tracing() or torch.compiler.is_compiling())


def _has_linear_form(weight: Tensor) -> bool:
    """Whether products by (N, I, O) weights are those of a linear layer that may be packed."""
    return _is_eager_on_cpu(weight) and len(weight) == 1


def _product(
    weight: Tensor, bias: Tensor, *, num_rows: int, block_rows: int
) -> Callable[[Tensor], Tensor]:
    """Multiply (N, B, I) inputs of each image by ``weight`` and add ``bias``.

    Args:
        weight: (N, I, O).
        bias: (N, 1, O).
        num_rows, block_rows: as of :func:`~glipv2_d2.layers.packed_linear.prepared_linear`.
    """
    if _has_linear_form(weight):
        return prepared_linear(
            weight[0].t(), bias.flatten(), num_rows=num_rows, block_rows=block_rows
        )
    return lambda x: torch.baddbmm(bias, x, weight)


def _product_adder(
    weight: Tensor, *, num_rows: int, block_rows: int
) -> Callable[[Tensor, Tensor], None]:
    """``add(total, x)``, which adds x @ weight to ``total`` in place; arguments as above."""
    if not _has_linear_form(weight):
        return partial(_add_product, b=weight)
    multiply = prepared_linear(weight[0].t(), None, num_rows=num_rows, block_rows=block_rows)

    def add(total: Tensor, x: Tensor) -> None:
        total.add_(multiply(x))

    return add


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to ``total`` in place. Under autocast only the product is rounded."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(a @ b)


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """(N, B, M), (N, B, C) -> (N, M, C), a^T b of each image.

    On a CPU image by image: a batched product would first copy the transposed matrix.
    """
    if a.device.type != "cpu" or is_tracing():
        return a.transpose(1, 2) @ b
    product = a.new_empty(len(a), a.shape[2], b.shape[2])
    for of_image, left, right in zip(product, a, b, strict=True):
        torch.mm(left.t(), right, out=of_image)
    return product


# A compiler would break its graph in many places of the backward pass.
@torch.compiler.disable
def _attend_with_gradients(*args: Any) -> tuple[Tensor | None, ...]:
    return _BlockwiseAttention.apply(*args)


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        visual: Tensor,
        key: Tensor,
        key_bias: Tensor,
        value: Tensor | None,
        padding_bias: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor | None, ...]:
        output = visual.clone() if value is not None else None
        updated, features, weight_sum, logsumexp = _attend(
            visual, key, key_bias, value, padding_bias, options, output=output
        )
        updated = updated if value is not None else None
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            visual, key, key_bias, value, padding_bias, features, weight_sum, logsumexp
        )
        return updated, features, weight_sum, logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        backward = _Backward(ctx.options, *ctx.saved_tensors, *gradients)
        for index, block in enumerate(backward.blocks()):
            backward.add_block(index, block, needs_visual_grad=ctx.needs_input_grad[0])
        visual, key, key_bias, value = backward.gradients()
        return visual, key, key_bias, value, None, None


class _Backward:
    """Gradients of the inputs, accumulated over the blocks. ``d_x`` is the gradient of ``x``."""

    def __init__(
        self,
        options: _Options,
        visual: Tensor,
        key: Tensor,
        key_bias: Tensor,
        value: Tensor | None,
        padding_bias: Tensor | None,
        features: Tensor,
        weight_sum: Tensor,
        logsumexp: Tensor,
        d_updated: Tensor | None,
        d_features: Tensor | None,
        d_weight_sum: Tensor | None,
        d_logsumexp: Tensor | None,
    ) -> None:
        self.options = options
        self.visual, self.key, self.key_bias = visual, key, key_bias
        self.value, self.padding_bias, self.logsumexp = value, padding_bias, logsumexp
        # Transposed copies are made here, not once per block.
        self.key_t = key.transpose(1, 2).contiguous()
        self.value_t = None if value is None else value.transpose(1, 2).contiguous()
        dtype = _score_dtype(key.dtype)
        self.d_updated = d_updated
        self.d_visual = torch.zeros_like(visual) if d_updated is None else d_updated.clone()
        self.d_key = torch.zeros_like(key, dtype=dtype)
        self.d_key_bias = torch.zeros_like(key_bias, dtype=dtype)
        self.d_value = None if value is None else torch.zeros_like(value, dtype=dtype)
        d_features = torch.zeros_like(features) if d_features is None else d_features
        d_weight_sum = torch.zeros_like(weight_sum) if d_weight_sum is None else d_weight_sum
        self.d_features = d_features.to(key.dtype)
        self.d_weight_sum = d_weight_sum[:, None].to(key.dtype)
        self.d_features_t = self.d_features.transpose(1, 2).contiguous()
        # The weighted mean of the weights' gradients, which softmax subtracts from each.
        mean = (features * d_features).sum(dim=-1) + weight_sum * d_weight_sum
        self.mean_gradient = (mean if d_logsumexp is None else mean - d_logsumexp)[:, None]

    def blocks(self) -> Iterator[slice]:
        return _blocks(self.visual, self.key)

    def add_block(self, index: int, block: slice, *, needs_visual_grad: bool) -> None:
        """Add the contribution of a block of positions."""
        x = self.visual[:, block].to(self.key.dtype)
        d_visual = self.d_visual[:, block]
        scores = _clamped(torch.baddbmm(self.key_bias, x, self.key))
        mask = self.options.keep_mask(scores, index, image_to_text=True)
        d_scores = self._image_to_text(scores, x, mask, d_visual if needs_visual_grad else None)
        if self.value is not None and self.d_updated is not None:
            mask = self.options.keep_mask(scores, index, image_to_text=False)
            d_scores = self._text_to_image(scores, self.d_updated[:, block], mask).add_(d_scores)
        # Clamped scores have no gradient.
        d_scores = torch.ops.aten.hardtanh_backward(d_scores, scores, -MAX_SCORE, MAX_SCORE)
        self.d_key_bias += d_scores.sum(dim=1, keepdim=True)
        d_scores = d_scores.to(self.key.dtype)
        self.d_key += _transposed_product(x, d_scores)
        if needs_visual_grad:
            _add_product(d_visual, d_scores, self.key_t)

    def _image_to_text(
        self, scores: Tensor, x: Tensor, mask: Tensor | None, d_visual: Tensor | None
    ) -> Tensor:
        """Gradient of the scores through image-to-text attention; adds to ``d_visual``."""
        weights = _exp_of_difference(scores, self.logsumexp[:, None])
        if d_visual is not None:
            kept = apply_keep_mask_(weights.to(x.dtype, copy=mask is not None), mask)
            _add_product(d_visual, kept, self.d_features)
        d_weights = torch.baddbmm(self.d_weight_sum, x, self.d_features_t)
        d_weights = apply_keep_mask_(d_weights, mask)
        return d_weights.to(scores.dtype).sub_(self.mean_gradient).mul_(weights)

    def _text_to_image(self, scores: Tensor, d_updated: Tensor, mask: Tensor | None) -> Tensor:
        """Gradient of the scores through text-to-image attention; adds to ``d_value``."""
        assert self.value_t is not None
        assert self.d_value is not None
        weights = _softmax_over_tokens(
            scores, self.padding_bias, self.options.num_heads, in_place=False
        )
        d_updated = d_updated.to(self.value_t.dtype)
        kept = apply_keep_mask_(weights.to(d_updated.dtype, copy=mask is not None), mask)
        self.d_value += _transposed_product(kept, d_updated)
        d_weights = apply_keep_mask_(d_updated @ self.value_t, mask).to(scores.dtype)
        heads = (self.options.num_heads, -1)
        return torch.ops.aten._softmax_backward_data(
            d_weights.unflatten(2, heads),
            weights.unflatten(2, heads),
            -1,
            scores.dtype,
        ).flatten(2)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of visual, key, key_bias and value."""
        return (
            self.d_visual,
            self.d_key.to(self.key.dtype),
            self.d_key_bias.to(self.key_bias.dtype),
            None if self.d_value is None else self.d_value.to(self.key.dtype),
        )
