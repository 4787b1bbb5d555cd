"""Captions: the tokens so far, which have attended to the image, predict the next one.

N: images. R: captions that are generated in parallel. T: tokens. D: width of the text features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.messages import quote
from glipv2_d2.modeling.generation.beam_search import beam_search, check_beam_size
from glipv2_d2.modeling.generation.caption_decoder import CaptionDecoder, DecoderOutput
from glipv2_d2.modeling.heads.lm_head import LMPredictionHead, build_token_decoder
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.losses.language_modeling import mean_over_tokens
from glipv2_d2.modeling.registry import build_part
from glipv2_d2.structures import GenerationConfig, TextFeatures, TokenBatch
from glipv2_d2.text.limits import check_text
from glipv2_d2.text.tokenizer import Tokenizer

CAPTION_HEAD_REGISTRY = Registry("CAPTION_HEAD")
CAPTION_HEAD_REGISTRY.__doc__ = """
Caption heads: ``obj(cfg, tokenizer, language_backbone)`` returns a :class:`CaptionHead`.
"""


@dataclass(frozen=True)
class CaptionFeatures:
    """Target captions of training with their causal features.

    Attributes:
        text: (N, T, D), fused, causal.
        tokens: the captions.
    """

    text: TextFeatures
    tokens: TokenBatch


@CAPTION_HEAD_REGISTRY.register()
class CaptionHead(LMPredictionHead, Configurable):
    """The prediction head of masked tokens, on causal text features."""

    loss_name: ClassVar[str] = "loss_caption"
    config_keys: ClassVar[dict[str, str]] = {
        "beam_size": "MODEL.CAPTION.BEAM_SIZE",
        "min_length": "MODEL.CAPTION.MIN_LENGTH",
        "max_length": "MODEL.CAPTION.MAX_LENGTH",
        "max_tokens": "MODEL.PROMPT.MAX_TOKENS",
    }

    @configurable
    def __init__(
        self,
        *,
        language_dim: int,
        decoder: nn.Module,
        tokenizer: Tokenizer,
        generation: GenerationConfig,
        weight: float,
    ) -> None:
        """
        Args:
            language_dim: D.
            decoder: (..., D) -> (..., vocabulary) logits.
            generation: the default settings.
            weight: factor of the loss.

        Raises:
            ValueError: captions exceed the token limit of the language backbone.
        """
        super().__init__(language_dim=language_dim, decoder=decoder)
        self.tokenizer = tokenizer
        self.generation = generation
        self.weight = weight
        self.check(generation)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
    ) -> dict[str, Any]:
        settings = cfg.MODEL.CAPTION
        check_beam_size(settings.BEAM_SIZE, language_backbone.vocab_size)
        return {
            "language_dim": language_backbone.width,
            "decoder": build_token_decoder(
                settings.DECODER, language_backbone, key="MODEL.CAPTION.DECODER"
            ),
            "tokenizer": tokenizer,
            "generation": GenerationConfig(
                beam_size=settings.BEAM_SIZE,
                min_length=settings.MIN_LENGTH,
                max_length=settings.MAX_LENGTH,
                length_penalty=settings.LENGTH_PENALTY,
                prefix=settings.PREFIX,
            ),
            "weight": settings.WEIGHT,
        }

    def check(self, generation: GenerationConfig) -> None:
        """Raise a ValueError if captions may exceed the token limit of a prompt."""
        max_tokens = self.tokenizer.max_tokens
        limit = max_tokens - self.tokenizer.num_special_tokens
        if generation.max_length > limit:
            raise ValueError(
                f"max_length is {generation.max_length}, but max_tokens {max_tokens} leaves room "
                f"for {limit}: lower max_length"
            )

    def losses(self, captions: CaptionFeatures) -> dict[str, Tensor]:
        """``loss_caption`` of the target captions (teacher forcing), in float32.

        Every token and the end of the caption are predicted from the tokens on their left.
        """
        with torch.autocast(captions.text.hidden.device.type, enabled=False):
            log_probs = self.target_log_probs(captions)
        return {self.loss_name: self.weight * mean_over_tokens(-log_probs)}

    def target_log_probs(self, captions: CaptionFeatures) -> Tensor:
        """(K,) log-probabilities of all tokens after the first of each caption, caption by
        caption.
        """
        tokens, hidden = captions.tokens, full_precision(captions.text.hidden)
        has_next = tokens.mask[:, 1:]
        logits = self(hidden[:, :-1][has_next])
        return -F.cross_entropy(logits, tokens.input_ids[:, 1:][has_next], reduction="none")

    def next_log_probs(self, output: DecoderOutput) -> Tensor:
        """(R, vocabulary) log-probabilities of the token after each of R partial captions."""
        return self(output.hidden).log_softmax(dim=-1)

    @torch.no_grad()
    def generate(
        self, decoder: CaptionDecoder, generation: GenerationConfig | None = None
    ) -> list[str]:
        """A caption per image of a new decoder, by beam search.

        Args:
            generation: default: that of the config.

        Raises:
            ValueError: no caption fits these lengths, beams or prefix.
        """
        generation = generation or self.generation
        self.check(generation)

        def next_log_probs(input_ids: Tensor) -> Tensor:
            output = decoder.decode(input_ids)
            with torch.autocast(output.hidden.device.type, enabled=False):
                return self.next_log_probs(output)

        sequences = beam_search(
            next_log_probs,
            decoder.reorder,
            begin=[self.tokenizer.begin_id, *self._prefix(generation)],
            batch_size=decoder.num_images,
            end_id=self.tokenizer.end_id,
            forbidden_ids=self.tokenizer.special_ids,
            generation=generation,
            device=decoder.device,
        )
        return [self.tokenizer.decode(ids) for ids in sequences]

    def _prefix(self, generation: GenerationConfig) -> list[int]:
        check_text(generation.prefix, "caption prefix")
        (prefix,) = self.tokenizer.encode([generation.prefix])
        if not set(prefix).isdisjoint(self.tokenizer.special_ids):
            raise ValueError(
                f"the caption prefix {quote(generation.prefix)} has words outside the tokenizer's "
                "vocabulary: choose other words"
            )
        return prefix


def build_caption_head(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
) -> CaptionHead | None:
    """The head of ``cfg.MODEL.CAPTION``; None where its weight is 0."""
    if cfg.MODEL.CAPTION.WEIGHT == 0:
        return None
    return build_part(
        CAPTION_HEAD_REGISTRY,
        cfg.MODEL.CAPTION.NAME,
        CaptionHead,
        "MODEL.CAPTION.NAME",
        *(cfg, tokenizer, language_backbone),
    )
