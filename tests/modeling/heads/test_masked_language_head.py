from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Instances
from helpers.models import tiny_model, training_input
from helpers.queries import fused_features
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.heads.lm_head import TiedDecoder, build_token_decoder
from glipv2_d2.modeling.heads.masked_language import (
    NO_TARGET,
    MaskedLanguageHead,
    predictable_words,
)
from glipv2_d2.structures import DenseTargets, TextFeatures, TokenBatch
from glipv2_d2.text.prompts import caption_prompt, class_prompt
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_d2.text.word_masking import WordMasker

MASK = 103
VOCAB = 20


@pytest.fixture
def tokens() -> TokenBatch:
    # [CLS] cat . traffic light . dog [SEP] and [CLS] a cat sits [SEP]
    names = class_prompt(["cat", "traffic light", "dog"], classes=[5, 6, 7])
    return Tokenizer()([names, caption_prompt("a cat sits", [[(0, 5)]])])


@pytest.fixture
def gt_instances() -> list[Instances]:
    return [Instances((8, 8), gt_classes=torch.tensor(classes)) for classes in ([6, 6], [0])]


def head(masker: Callable | None = None) -> MaskedLanguageHead:
    torch.manual_seed(0)
    built = MaskedLanguageHead(
        language_dim=6,
        masker=WordMasker(mask_token_id=MASK, vocab_size=VOCAB, prob=0.15),
        decoder=nn.Linear(6, VOCAB),
        weight=1.0,
    )
    if masker is not None:
        built.masker = masker
    return built


def mask_all(input_ids: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor]:
    return input_ids.masked_fill(is_word, MASK), is_word


def mask_none(input_ids: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor]:
    return input_ids, torch.zeros_like(is_word)


def make_text(tokens: TokenBatch, dtype: torch.dtype = torch.float32) -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*tokens.mask.shape, 6, generator=generator).to(dtype)
    return TextFeatures(hidden.requires_grad_(), tokens.mask)


def mlm_loss(
    built: MaskedLanguageHead, text: TextFeatures, tokens: TokenBatch, targets: Tensor
) -> Tensor:
    fused = fused_features(text=text, tokens=replace(tokens, mlm_targets=targets))
    return built.losses(fused, DenseTargets(targets, targets, targets))["loss_mlm"]


def test_class_names_in_the_image_and_all_words_of_captions_are_predictable(
    tokens: TokenBatch, gt_instances: list[Instances]
) -> None:
    is_predictable = predictable_words(tokens, gt_instances)
    assert is_predictable[0].nonzero().squeeze(1).tolist() == [3, 4]
    assert is_predictable[1].nonzero().squeeze(1).tolist() == [1, 2, 3]


def test_every_word_may_be_masked_and_special_tokens_never(
    tokens: TokenBatch, gt_instances: list[Instances]
) -> None:
    masked_ids, _ = head(mask_all).mask(tokens, gt_instances)
    assert torch.equal(masked_ids == MASK, tokens.is_word)
    assert torch.equal(masked_ids[~tokens.is_word], tokens.input_ids[~tokens.is_word])


def test_targets_are_the_original_tokens(tokens: TokenBatch, gt_instances: list[Instances]) -> None:
    _, targets = head(mask_all).mask(tokens, gt_instances)
    is_predictable = predictable_words(tokens, gt_instances)
    assert torch.equal(targets[is_predictable], tokens.input_ids[is_predictable])
    assert set(targets[~is_predictable].tolist()) == {NO_TARGET}


def test_the_loss_is_the_mean_cross_entropy_of_the_predictable_words(tokens: TokenBatch) -> None:
    targets = torch.full_like(tokens.input_ids, NO_TARGET)
    targets[0, 3], targets[1, 1] = 11, 12
    text, built = make_text(tokens), head()
    loss = mlm_loss(built, text, tokens, targets)
    logits = built(text.hidden)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
    torch.testing.assert_close(loss, expected)


def test_without_masked_tokens_the_loss_is_0_and_connected_to_every_weight(
    tokens: TokenBatch, gt_instances: list[Instances]
) -> None:
    built, text = head(mask_none), make_text(tokens)
    _, targets = built.mask(tokens, gt_instances)
    loss = mlm_loss(built, text, tokens, targets)
    loss.backward()
    assert loss == 0
    assert not text.hidden.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in built.parameters())


def test_half_precision_text_gives_a_float32_loss(tokens: TokenBatch) -> None:
    targets = tokens.input_ids.where(tokens.is_word, NO_TARGET) % VOCAB
    targets = targets.masked_fill(~tokens.is_word, NO_TARGET)
    half = make_text(tokens, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mlm_loss(head(), half, tokens, targets)
    exact = TextFeatures(half.hidden.float(), tokens.mask)
    torch.testing.assert_close(loss, mlm_loss(head(), exact, tokens, targets), rtol=0, atol=0)


def test_a_tied_decoder_is_a_product_with_the_embeddings_plus_a_bias() -> None:
    embeddings = nn.Embedding(5, 6)
    decoder = TiedDecoder(embeddings)
    nn.init.normal_(decoder.bias)
    hidden = torch.randn(2, 6)
    torch.testing.assert_close(decoder(hidden), hidden @ embeddings.weight.T + decoder.bias)


def test_a_tied_decoder_shares_the_embeddings_and_does_not_save_them() -> None:
    embeddings = nn.Embedding(5, 6)
    decoder = TiedDecoder(embeddings)
    hidden = torch.randn(2, 6)
    before = decoder(hidden)
    with torch.no_grad():
        embeddings.weight.mul_(2)
    torch.testing.assert_close(decoder(hidden), 2 * before)
    assert list(decoder.state_dict()) == ["bias"]


def test_an_unknown_decoder_is_an_error() -> None:
    with pytest.raises(ValueError, match="MODEL.MLM.DECODER is 'mine'"):
        build_token_decoder("mine", None, key="MODEL.MLM.DECODER")


def test_a_kept_head_is_frozen_without_a_loss_and_stays_in_checkpoints() -> None:
    model = tiny_model("MODEL.MLM.KEEP_HEAD", True).train()
    head = model.loss_heads["masked_language"]
    assert not any(p.requires_grad for p in head.parameters())
    x = training_input([[4, 4, 40, 40]], [0], classes=["cat"])
    assert set(model([x])) == {"loss_token", "loss_box", "loss_centerness"}
    trained = tiny_model("MODEL.MLM.WEIGHT", 1.0).loss_heads["masked_language"]
    assert head.state_dict().keys() == trained.state_dict().keys()
