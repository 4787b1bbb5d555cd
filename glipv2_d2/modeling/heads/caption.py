"""Images described: the words so far, which have read the image, tell the next one.

N: images. R: captions that are written side by side. T: tokens. D: width of the words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.generation.beam_search import GenerationConfig, beam_search, check_beam_size
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.heads.lm_head import LMPredictionHead, build_word_decoder
from glipv2_d2.modeling.losses.words import mean_over_words
from glipv2_d2.structures import Regions, TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer

CAPTION_HEAD_REGISTRY = Registry("CAPTION_HEAD")
CAPTION_HEAD_REGISTRY.__doc__ = """
Caption heads: ``obj(cfg, tokenizer, language_backbone)`` gives a module that is called as
:class:`CaptionHead` is.
"""


@CAPTION_HEAD_REGISTRY.register()
class CaptionHead(LMPredictionHead):
    """The head of masked words, on words that have read what is left of them and the image."""

    @configurable
    def __init__(
        self,
        *,
        language_dim: int,
        decoder: nn.Module,
        tokenizer: Tokenizer,
        decoding: GenerationConfig,
        weight: float,
    ) -> None:
        """
        Args:
            language_dim: D.
            decoder: (..., D) -> (..., vocabulary) logits.
            decoding: how captions are written, where nothing else is asked for.
            weight: factor of the loss.

        Raises:
            ValueError: captions would be longer than the language backbone reads.
        """
        super().__init__(language_dim=language_dim, decoder=decoder)
        self.tokenizer = tokenizer
        self.decoding = decoding
        self.weight = weight
        self.check(decoding)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
    ) -> dict[str, Any]:
        settings = cfg.MODEL.CAPTION
        check_beam_size(settings.BEAM_SIZE, language_backbone.vocab_size)
        return {
            "language_dim": language_backbone.width,
            "decoder": build_word_decoder(
                settings.DECODER, language_backbone, key="MODEL.CAPTION.DECODER"
            ),
            "tokenizer": tokenizer,
            "decoding": GenerationConfig(
                beam_size=settings.BEAM_SIZE,
                min_length=settings.MIN_LENGTH,
                max_length=settings.MAX_LENGTH,
                length_penalty=settings.LENGTH_PENALTY,
                prefix=settings.PREFIX,
            ),
            "weight": settings.WEIGHT,
        }

    def check(self, decoding: GenerationConfig) -> None:
        """Raise a ValueError where captions may get longer than a prompt."""
        room = self.tokenizer.max_tokens - self.tokenizer.num_special_tokens
        if decoding.max_length > room:
            raise ValueError(
                f"captions of up to {decoding.max_length} tokens (MODEL.CAPTION.MAX_LENGTH) are "
                f"longer than the {room} that MODEL.PROMPT.MAX_TOKENS has room for: lower the first"
            )

    def forward(
        self, language: TextFeatures, tokens: TokenBatch, regions: Regions | None = None
    ) -> dict[str, Tensor]:
        """``loss_caption`` of captions as people wrote them (teacher forcing), in float32.

        Every word and the end are guessed from what is left of them.

        Args:
            language: fused, causal.
            tokens: the captions.
            regions: of each caption's image; None: the model finds none.
        """
        with torch.autocast(language.hidden.device.type, enabled=False):
            log_probs = self.next_words(full_precision(language.hidden), tokens, regions)
        return {"loss_caption": self.weight * mean_over_words(-log_probs)}

    def next_words(
        self,
        hidden: Tensor,
        tokens: TokenBatch,
        regions: Regions | None,  # noqa: ARG002 - for heads that write what regions are called
    ) -> Tensor:
        """(K,) log-probabilities of the words that follow others, in the order of the texts."""
        has_next = tokens.mask[:, 1:]
        logits = self.predict(hidden[:, :-1][has_next])
        return -F.cross_entropy(logits, tokens.input_ids[:, 1:][has_next], reduction="none")

    def log_probs(
        self,
        hidden: Tensor,
        written: Tensor,  # noqa: ARG002 - as above
        regions: Regions | None,  # noqa: ARG002 - as above
    ) -> Tensor:
        """(R, vocabulary) of the word that follows R texts.

        Args:
            hidden: (R, D) of their last words.
            written: (R, P) ids of all of their words.
            regions: of each text's image; None: the model finds none.
        """
        return self.predict(hidden).log_softmax(dim=-1)

    @torch.no_grad()
    def describe(
        self, reader: CaptionReader, decoding: GenerationConfig | None = None
    ) -> list[str]:
        """A caption per image of a reader that has read nothing yet.

        Args:
            decoding: default: that of the config.

        Raises:
            ValueError: a caption of these lengths, beams or prefix cannot be written.
        """
        decoding = decoding or self.decoding
        self.check(decoding)

        def next_log_probs(input_ids: Tensor) -> Tensor:
            last = full_precision(reader.read(input_ids)[:, -1])
            with torch.autocast(last.device.type, enabled=False):
                return self.log_probs(last, reader.written, reader.regions)

        written = beam_search(
            next_log_probs,
            reader.reorder,
            begin=[self.tokenizer.begin_id, *self._prefix(decoding)],
            num_texts=reader.num_images,
            end_id=self.tokenizer.end_id,
            forbidden_ids=self.tokenizer.special_ids,
            decoding=decoding,
            device=reader.device,
        )
        return [self.tokenizer.text_of(ids) for ids in written]

    def _prefix(self, decoding: GenerationConfig) -> list[int]:
        (prefix,) = self.tokenizer.pieces([decoding.prefix])
        if not set(prefix).isdisjoint(self.tokenizer.special_ids):
            raise ValueError(
                f"the prefix {decoding.prefix!r} of captions has what is no word to the "
                "tokenizer: write other words (MODEL.CAPTION.PREFIX)"
            )
        return prefix


class CaptionReader:
    """Reads captions of some images from left to right, and keeps what it has read.

    A further token costs what one token costs, and the images are looked at once: they do not read
    the words.
    """

    def __init__(
        self,
        read_words: Callable[..., tuple[Tensor, list[KVCache]]],
        fused_head: Any,
        features: dict[str, Tensor],
        *,
        region_reader: Any = None,
        regions: Regions | None = None,
    ) -> None:
        """
        Args:
            read_words: ``read_on`` of the language backbone.
            fused_head: one whose words read the image.
            features: of N images, before fusion.
            region_reader: lets the words read the images' ``regions``, too; None: they do not.
        """
        self.read_words = read_words
        self.fused_head = fused_head
        self.looks = fused_head.look(features)
        self.num_images = len(self.looks[0])
        self.device = self.looks[0].device
        self.region_reader = region_reader
        self.regions = regions
        """Of the image of each caption; before any is begun, of each image."""
        self.written = torch.zeros(0, 0, dtype=torch.int64, device=self.device)
        """(R, P) ids of what was read of each caption."""
        self._words: list[KVCache] | None = None
        self._fused: list[KVCache] | None = None
        self._looks_at_regions: list[KVCache] | None = None
        if region_reader is not None:
            self._looks_at_regions = region_reader.look(regions)

    def read(self, input_ids: Tensor) -> Tensor:
        """(R, T) further tokens of R captions, as many of each image -> (R, T, D), fused."""
        if self._fused is None:
            self._begin(len(input_ids) // self.num_images)
        self.written = torch.cat([self.written, input_ids], dim=1)
        hidden, self._words = self.read_words(input_ids, self._words)
        hidden, self._fused = self.fused_head.read_on(self.looks, hidden, self._fused)
        if self._looks_at_regions is not None:
            hidden, self._looks_at_regions = self.region_reader.read_on(
                hidden, self._looks_at_regions
            )
        return hidden

    def reorder(self, rows: Tensor) -> None:
        """Go on with some of the captions, any of them several times; those of an image in a row.

        Args:
            rows: (R',) of the captions read so far.
        """
        assert self._words is not None and self._fused is not None
        self._words = [past.rows(rows) for past in self._words]
        self._fused = [past.rows(rows) for past in self._fused]
        self.written = self.written[rows]
        self._reorder_regions(rows)

    def _begin(self, texts_per_image: int) -> None:
        images = torch.arange(self.num_images, device=self.device)
        rows = images.repeat_interleave(texts_per_image)
        self.written = self.written.new_zeros(len(rows), 0)
        self._reorder_regions(rows)

    def _reorder_regions(self, rows: Tensor) -> None:
        if self._looks_at_regions is not None:
            self._looks_at_regions = [past.rows(rows) for past in self._looks_at_regions]
        if self.regions is not None:
            self.regions = self.regions.images(rows.tolist())


def build_caption_head(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
) -> CaptionHead | None:
    """The head of ``cfg.MODEL.CAPTION``; None where its weight is 0."""
    if cfg.MODEL.CAPTION.WEIGHT == 0:
        return None
    return CAPTION_HEAD_REGISTRY.get(cfg.MODEL.CAPTION.NAME)(cfg, tokenizer, language_backbone)
