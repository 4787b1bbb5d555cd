from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.heads.lm_head import TiedDecoder, build_word_decoder
from glipv2_d2.modeling.heads.masked_language import NO_TARGET, MaskedLanguageHead, counted_words
from glipv2_d2.structures import TextFeatures, TokenBatch
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


def language(tokens: TokenBatch, dtype: torch.dtype = torch.float32) -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*tokens.mask.shape, 6, generator=generator).to(dtype)
    return TextFeatures(hidden.requires_grad_(), tokens.mask)


def test_of_names_those_in_the_image_count_and_of_captions_all(
    tokens: TokenBatch, gt_instances: list[Instances]
) -> None:
    counted = counted_words(tokens, gt_instances)
    assert counted[0].nonzero().squeeze(1).tolist() == [3, 4]
    assert counted[1].nonzero().squeeze(1).tolist() == [1, 2, 3]


def test_every_word_may_be_masked_and_special_tokens_never(
    tokens: TokenBatch, gt_instances: list[Instances]
) -> None:
    masked, _ = head(mask_all).mask(tokens, gt_instances)
    assert torch.equal(masked.input_ids == MASK, tokens.is_word)
    assert torch.equal(masked.input_ids[~tokens.is_word], tokens.input_ids[~tokens.is_word])


def test_targets_are_the_words_that_were_there(
    tokens: TokenBatch, gt_instances: list[Instances]
) -> None:
    _, targets = head(mask_all).mask(tokens, gt_instances)
    counted = counted_words(tokens, gt_instances)
    assert torch.equal(targets[counted], tokens.input_ids[counted])
    assert set(targets[~counted].tolist()) == {NO_TARGET}


def test_the_loss_is_the_mean_cross_entropy_of_the_counted_words(tokens: TokenBatch) -> None:
    targets = torch.full_like(tokens.input_ids, NO_TARGET)
    targets[0, 3], targets[1, 1] = 11, 12
    words, built = language(tokens), head()
    loss = built(words, targets)["loss_mlm"]
    logits = built.predict(words.hidden)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
    torch.testing.assert_close(loss, expected)


def test_nothing_masked_costs_nothing_and_reaches_every_weight(
    tokens: TokenBatch, gt_instances: list[Instances]
) -> None:
    built, words = head(mask_none), language(tokens)
    _, targets = built.mask(tokens, gt_instances)
    loss = built(words, targets)["loss_mlm"]
    loss.backward()
    assert loss == 0
    assert not words.hidden.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in built.parameters())


def test_half_precision_text_gives_a_float32_loss(tokens: TokenBatch) -> None:
    targets = tokens.input_ids.where(tokens.is_word, NO_TARGET) % VOCAB
    targets = targets.masked_fill(~tokens.is_word, NO_TARGET)
    half = language(tokens, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head()(half, targets)["loss_mlm"]
    exact = TextFeatures(half.hidden.float(), tokens.mask)
    torch.testing.assert_close(loss, head()(exact, targets)["loss_mlm"], rtol=0, atol=0)


def test_a_tied_decoder_gives_products_with_the_embeddings_plus_a_bias() -> None:
    embeddings = nn.Embedding(5, 6)
    decoder = TiedDecoder(embeddings)
    nn.init.normal_(decoder.bias)
    hidden = torch.randn(2, 6)
    torch.testing.assert_close(decoder(hidden), hidden @ embeddings.weight.T + decoder.bias)


def test_a_tied_decoder_follows_the_embeddings_and_has_no_weights_of_them() -> None:
    embeddings = nn.Embedding(5, 6)
    decoder = TiedDecoder(embeddings)
    hidden = torch.randn(2, 6)
    before = decoder(hidden)
    with torch.no_grad():
        embeddings.weight.mul_(2)
    torch.testing.assert_close(decoder(hidden), 2 * before)
    assert list(decoder.state_dict()) == ["bias"]


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="MODEL.MLM.DECODER is 'mine'"):
        build_word_decoder("mine", None, key="MODEL.MLM.DECODER")
