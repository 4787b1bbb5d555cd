"""Autoregressive decoding of captions with key-value caches.

N: images. R: captions that are decoded in parallel, the same number per image, those of an image
in a row. T: new tokens, P: all tokens so far. D: width of the text features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.fusion import FusedHead
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language import LanguageBackbone


@dataclass(frozen=True)
class DecoderOutput:
    """The state after a decoding step.

    Attributes:
        hidden: (R, D) features of the last token of each caption, at least float32.
        input_ids: (R, P) int64, all tokens of each caption so far.
    """

    hidden: Tensor
    input_ids: Tensor


class CaptionDecoder:
    """Decodes captions of N images from left to right.

    A step costs as much as its new tokens: keys and values of earlier tokens are cached, and the
    images, which attend to no token of a caption, are projected once.
    """

    def __init__(
        self,
        language_backbone: LanguageBackbone,
        fused_head: FusedHead,
        features: dict[str, Tensor],
    ) -> None:
        """
        Args:
            fused_head: a head that fuses text.
            features: name -> (N, C, H_i, W_i), before fusion.
        """
        self.language_backbone = language_backbone
        self.fused_head = fused_head
        self.visual = fused_head.project_visual(features)
        self.num_images = len(self.visual[0])
        self.device = self.visual[0].device
        self.input_ids = torch.zeros(0, 0, dtype=torch.int64, device=self.device)
        """(R, P) tokens of the captions so far."""
        self._text_cache: list[KVCache] | None = None
        self._fusion_cache: list[KVCache] | None = None

    def decode(self, input_ids: Tensor) -> DecoderOutput:
        """Append (R, T) tokens to the captions."""
        if self._fusion_cache is None:
            self.begin(captions_per_image=len(input_ids) // self.num_images)
        self.input_ids = torch.cat([self.input_ids, input_ids], dim=1)
        hidden, self._text_cache = self.language_backbone.decode_step(input_ids, self._text_cache)
        hidden, self._fusion_cache = self.fused_head.decode_step(
            self.visual, hidden, self._fusion_cache
        )
        hidden = self.attend_to_context(hidden)
        return self.output(full_precision(hidden[:, -1]))

    def begin(self, captions_per_image: int) -> None:
        """Start the same number of empty captions per image."""
        rows = torch.arange(self.num_images, device=self.device)
        self.reorder_context(rows.repeat_interleave(captions_per_image))
        self.input_ids = self.input_ids.new_zeros(self.num_images * captions_per_image, 0)

    def attend_to_context(self, hidden: Tensor) -> Tensor:
        """(R, T, D) fused tokens -> the same after they attended to further context; here none."""
        return hidden

    def output(self, hidden: Tensor) -> DecoderOutput:
        """The output of a step, with what a caption head needs of the context."""
        return DecoderOutput(hidden, self.input_ids)

    def reorder(self, rows: Tensor) -> None:
        """Continue with some of the captions, in any order and any number of times.

        Args:
            rows: (R',) indices of captions; those of an image in a row.
        """
        assert self._text_cache is not None and self._fusion_cache is not None
        self._text_cache = [cache.rows(rows) for cache in self._text_cache]
        self._fusion_cache = [cache.rows(rows) for cache in self._fusion_cache]
        self.input_ids = self.input_ids[rows]
        self.reorder_context(rows)

    def reorder_context(self, rows: Tensor) -> None:
        """Reorder further context of the captions with them; here none."""
