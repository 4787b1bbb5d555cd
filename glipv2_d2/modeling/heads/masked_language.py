"""Masked words and the head that guesses them from the fused text: L_mlm (training only).

N: images and their prompts. T: tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.lm_head import LMPredictionHead, build_word_decoder
from glipv2_d2.modeling.losses.words import word_loss
from glipv2_d2.structures import TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_d2.text.word_masking import WordMasker

# Where no word has to be guessed.
NO_TARGET = -100


class MaskedLanguageHead(LMPredictionHead):
    """BERT's prediction head on words that have read the image (GLIP spec 14).

    Unlike in the reference, the special tokens are never masked and nothing is at evaluation. Nor
    are words of questions (our choice): without them the answer would be another.
    """

    @configurable
    def __init__(
        self, *, language_dim: int, masker: WordMasker, decoder: nn.Module, weight: float
    ) -> None:
        """
        Args:
            language_dim: D, width of the fused text.
            masker: hides the words.
            decoder: (M, D) -> (M, vocabulary) logits.
            weight: factor of the loss.
        """
        super().__init__(language_dim=language_dim, decoder=decoder)
        self.masker = masker
        self.weight = weight

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
    ) -> dict[str, Any]:
        return {
            "language_dim": language_backbone.width,
            "masker": WordMasker(
                mask_token_id=tokenizer.mask_token_id,
                vocab_size=language_backbone.vocab_size,
                prob=cfg.MODEL.MLM.PROB,
            ),
            "decoder": build_word_decoder(
                cfg.MODEL.MLM.DECODER, language_backbone, key="MODEL.MLM.DECODER"
            ),
            "weight": cfg.MODEL.MLM.WEIGHT,
        }

    @torch.no_grad()
    def mask(
        self, tokens: TokenBatch, gt_instances: Sequence[Instances]
    ) -> tuple[TokenBatch, Tensor]:
        """Hide some words of training prompts.

        Any word may be hidden, whether or not it counts: were only names of what is in the image,
        a [MASK] would tell that it is there.

        Returns:
            the tokens to read instead, and the (N, T) ids to guess, NO_TARGET elsewhere.
        """
        is_question = [prompt.is_question for prompt in tokens.prompts]
        may_hide = tokens.is_word & ~tokens.mask.new_tensor(is_question)[:, None]
        hidden_ids, is_chosen = self.masker(tokens.input_ids, may_hide)
        counts = is_chosen & counted_words(tokens, gt_instances)
        targets = tokens.input_ids.masked_fill(~counts, NO_TARGET)
        return replace(tokens, input_ids=hidden_ids), targets

    def forward(self, language: TextFeatures, targets: Tensor) -> dict[str, Tensor]:
        """``loss_mlm`` of the fused text, in float32 also under autocast.

        Args:
            targets: as :meth:`mask` gives them.
        """
        is_target = targets != NO_TARGET
        with torch.autocast(language.hidden.device.type, enabled=False):
            # Only these: logits of all tokens would be the largest tensor of the model.
            logits = self.predict(full_precision(language.hidden[is_target]))
            loss = word_loss(logits, targets[is_target])
        return {"loss_mlm": self.weight * loss}


def build_masked_language_head(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
) -> MaskedLanguageHead | None:
    """The head of ``cfg.MODEL.MLM``; None where its weight is 0.

    Args:
        language_backbone: says the width of its features and the size of its vocabulary; one with
            ``word_embeddings`` can lend them.
    """
    if cfg.MODEL.MLM.WEIGHT == 0:
        return None
    return MaskedLanguageHead(cfg, tokenizer, language_backbone)


def counted_words(tokens: TokenBatch, gt_instances: Sequence[Instances]) -> Tensor:
    """The words whose guess counts: of a caption all, of class names those in the image.

    A name that is not in the image could only be guessed from the other names.

    Args:
        gt_instances: per image, with ``gt_classes``, classes of its prompt.

    Returns:
        (N, T) bool.
    """
    counted = tokens.is_word
    for i, (prompt, instances) in enumerate(zip(tokens.prompts, gt_instances, strict=True)):
        if prompt.is_class_list:
            classes = instances.gt_classes.new_tensor(prompt.classes)
            is_present = torch.isin(classes, instances.gt_classes)
            counted[i] &= tokens.positive_maps[i][is_present].any(dim=0)
    return counted
