"""L_mlm: tokens are masked before the text encoder and predicted after fusion (training only).

N: images and their prompts. T: tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.base import LossHead
from glipv2_d2.modeling.heads.lm_head import LMPredictionHead, build_token_decoder
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.losses.language_modeling import token_prediction_loss
from glipv2_d2.structures import (
    DenseTargets,
    FusedFeatures,
    Query,
    TokenBatch,
    gt_instances_of,
)
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_d2.text.word_masking import WordMasker

# Label of tokens that are not predicted.
NO_TARGET = -100


class MaskedLanguageHead(LossHead, LMPredictionHead, Configurable):
    """BERT's prediction head on fused text (glip_reference.md 14).

    Unlike in the reference, special tokens are never masked, and nothing is masked at evaluation.
    Questions are not masked (our choice): a masked question has another answer.
    """

    config_keys: ClassVar[dict[str, str]] = {"prob": "MODEL.MLM.PROB"}

    @configurable
    def __init__(
        self, *, language_dim: int, masker: WordMasker, decoder: nn.Module, weight: float
    ) -> None:
        """
        Args:
            language_dim: D, width of the fused text.
            masker: masks tokens.
            decoder: (M, D) -> (M, vocabulary) logits.
            weight: factor of the loss.
        """
        super().__init__(language_dim=language_dim, decoder=decoder)
        self.masker = masker
        self.weight = weight

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
    ) -> dict[str, Any]:
        return {
            "language_dim": language_backbone.width,
            "masker": WordMasker(
                mask_token_id=tokenizer.mask_token_id,
                vocab_size=language_backbone.vocab_size,
                prob=cfg.MODEL.MLM.PROB,
            ),
            "decoder": build_token_decoder(
                cfg.MODEL.MLM.DECODER, language_backbone, key="MODEL.MLM.DECODER"
            ),
            "weight": cfg.MODEL.MLM.WEIGHT,
        }

    def corrupt_tokens(self, tokens: TokenBatch, queries: Sequence[Query]) -> TokenBatch:
        """Tokens with some of their words masked, and the ids to predict in ``mlm_targets``."""
        input_ids, targets = self.mask(tokens, gt_instances_of(queries))
        return replace(tokens, input_ids=input_ids, mlm_targets=targets)

    @torch.no_grad()
    def mask(self, tokens: TokenBatch, gt_instances: Sequence[Instances]) -> tuple[Tensor, Tensor]:
        """Mask words of training prompts.

        Every word may be masked, also where its prediction does not count: if only names of present
        objects were masked, [MASK] would reveal that the object is present.

        Returns:
            (N, T) ids with masked words, and (N, T) ids to predict, NO_TARGET elsewhere.
        """
        is_question = [prompt.is_question for prompt in tokens.prompts]
        may_mask = tokens.is_word & ~tokens.mask.new_tensor(is_question)[:, None]
        masked_ids, is_chosen = self.masker(tokens.input_ids, may_mask)
        counts = is_chosen & predictable_words(tokens, gt_instances)
        return masked_ids, tokens.input_ids.masked_fill(~counts, NO_TARGET)

    def losses(
        self,
        fused: FusedFeatures,
        targets: DenseTargets,  # noqa: ARG002 - the interface of loss heads
    ) -> dict[str, Tensor]:
        """``loss_mlm`` of the fused text, in float32 also under autocast."""
        ids = fused.tokens.mlm_targets
        assert ids is not None, "the tokens come from corrupt_tokens"
        hidden = fused.fused_text.hidden
        is_target = ids != NO_TARGET
        with torch.autocast(hidden.device.type, enabled=False):
            # Only these: logits of all tokens would be the largest tensor of the model.
            logits = self(full_precision(hidden[is_target]))
            loss = token_prediction_loss(logits, ids[is_target])
        return {"loss_mlm": self.weight * loss}


class KeptMaskedLanguageHead(LossHead, LMPredictionHead):
    """The head of an earlier training phase, frozen and without a loss, for later captions."""

    def __init__(self, *, language_dim: int, decoder: nn.Module) -> None:
        """Arguments as of :class:`MaskedLanguageHead`."""
        super().__init__(language_dim=language_dim, decoder=decoder)
        self.requires_grad_(False)

    def losses(
        self,
        fused: FusedFeatures,  # noqa: ARG002 - the interface of loss heads
        targets: DenseTargets,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """No loss."""
        return {}


def build_masked_language_head(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
) -> LossHead | None:
    """The head of ``cfg.MODEL.MLM``; None where its weight is 0 and it is not kept."""
    if cfg.MODEL.MLM.WEIGHT > 0:
        return MaskedLanguageHead(cfg, tokenizer, language_backbone)
    if not cfg.MODEL.MLM.KEEP_HEAD:
        return None
    decoder = build_token_decoder(cfg.MODEL.MLM.DECODER, language_backbone, key="MODEL.MLM.DECODER")
    return KeptMaskedLanguageHead(language_dim=language_backbone.width, decoder=decoder)


def predictable_words(tokens: TokenBatch, gt_instances: Sequence[Instances]) -> Tensor:
    """The words whose prediction counts: all of a caption, and class names that are in the image.

    The name of an absent class could only be predicted from the other names.

    Args:
        gt_instances: per image, with ``gt_classes``, classes of its prompt.

    Returns:
        (N, T) bool.
    """
    counts = tokens.is_word
    for i, (prompt, instances) in enumerate(zip(tokens.prompts, gt_instances, strict=True)):
        if prompt.is_class_list:
            classes = instances.gt_classes.new_tensor(prompt.classes)
            is_present = torch.isin(classes, instances.gt_classes)
            counts[i] &= tokens.positive_maps[i][is_present].any(dim=0)
    return counts
