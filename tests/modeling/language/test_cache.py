from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from glipv2_d2.modeling.language import BertLanguageBackbone, LanguageCache
from glipv2_d2.modeling.language.cache import PhraseCache, PhraseIds
from glipv2_d2.structures import LanguageFeatures, TokenBatch

Ask = Callable[..., TokenBatch]


class CountingBackbone(BertLanguageBackbone):
    """Remembers how many prompts it was asked."""

    asked = 0

    def forward(self, tokens: TokenBatch) -> LanguageFeatures:
        self.asked += len(tokens)
        return super().forward(tokens)


@pytest.fixture
def backbone(bert: BertModel) -> CountingBackbone:
    return CountingBackbone(bert=bert, freeze=False).eval()


def assert_same_features(a: LanguageFeatures, b: LanguageFeatures) -> None:
    assert torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.hidden[a.mask], b.hidden[b.mask], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_known_prompt_is_not_asked_again(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(4)
    first = cache(backbone, ask("a cat"))
    second = cache(backbone, ask("a cat"))
    assert backbone.asked == 1
    assert torch.equal(first.hidden, second.hidden)


@torch.no_grad()
def test_a_batch_of_different_lengths_equals_the_uncached_one(
    backbone: CountingBackbone, ask: Ask
) -> None:
    cache = LanguageCache(4)
    cache(backbone, ask("dog"))
    tokens = ask("a cat", "the red car . sea lion", "dog")
    assert_same_features(cache(backbone, tokens), backbone(tokens))


@torch.no_grad()
def test_only_the_unknown_prompts_of_a_batch_are_asked(
    backbone: CountingBackbone, ask: Ask
) -> None:
    cache = LanguageCache(4)
    cache(backbone, ask("the red car . dog"))
    backbone.asked = 0
    cache(backbone, ask("a cat", "the red car . dog", "a cat"))
    assert backbone.asked == 1


@torch.no_grad()
def test_padding_is_zero(backbone: CountingBackbone, ask: Ask) -> None:
    features = LanguageCache(4)(backbone, ask("a cat", "the red car . dog"))
    assert (features.hidden[~features.mask] == 0).all()


@torch.no_grad()
def test_the_same_words_with_other_labels_are_another_prompt(
    backbone: CountingBackbone, ask: Ask
) -> None:
    cache = LanguageCache(4)
    cache(backbone, ask("red car", labels=[["red car"]]))
    cache(backbone, ask("red car", labels=[["red", "car"]]))
    assert backbone.asked == 2


@torch.no_grad()
def test_a_weight_update_forgets_everything(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(4)
    before = cache(backbone, ask("a cat"))
    backbone.bert.embeddings.LayerNorm.weight.mul_(2)
    after = cache(backbone, ask("a cat"))
    assert not torch.allclose(before.hidden, after.hidden)
    assert_same_features(after, backbone(ask("a cat")))


@torch.no_grad()
def test_loading_weights_forgets_everything(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(4)
    cache(backbone, ask("a cat"))
    backbone.load_state_dict({k: v + 1 for k, v in backbone.state_dict().items()})
    assert_same_features(cache(backbone, ask("a cat")), backbone(ask("a cat")))


@torch.no_grad()
def test_another_precision_is_computed_anew(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache(backbone, ask("a cat"))
    assert_same_features(cache(backbone, ask("a cat")), backbone(ask("a cat")))


def test_training_passes_through_and_forgets(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(4)
    with torch.no_grad():
        cache(backbone, ask("a cat"))
        cache(backbone.train(), ask("a cat"))
    assert backbone.asked == 2
    assert len(cache) == 0


def test_with_gradients_it_passes_through(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(4)
    assert cache(backbone, ask("a cat")).hidden.requires_grad
    assert len(cache) == 0


def test_features_of_inference_mode_serve_no_grad_mode(
    backbone: CountingBackbone, ask: Ask
) -> None:
    cache = LanguageCache(4)
    with torch.inference_mode():
        first = cache(backbone, ask("a cat")).hidden.clone()
    with torch.no_grad():
        second = cache(backbone, ask("a cat")).hidden
    assert backbone.asked == 1
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_least_recently_used_prompt_goes_first(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(2)
    for text in ("a cat", "dog", "a cat", "car"):
        cache(backbone, ask(text))
    backbone.asked = 0
    cache(backbone, ask("a cat"))
    assert backbone.asked == 0
    cache(backbone, ask("dog"))
    assert backbone.asked == 1


@torch.no_grad()
def test_a_batch_larger_than_the_cache_is_answered_whole(
    backbone: CountingBackbone, ask: Ask
) -> None:
    cache = LanguageCache(1)
    tokens = ask("a cat", "dog", "the red car")
    assert_same_features(cache(backbone, tokens), backbone(tokens))
    assert len(cache) == 1


@torch.no_grad()
def test_size_zero_keeps_nothing(backbone: CountingBackbone, ask: Ask) -> None:
    cache = LanguageCache(0)
    cache(backbone, ask("a cat"))
    cache(backbone, ask("a cat"))
    assert backbone.asked == 2


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        LanguageCache(-1)


class Encoder:
    """A phrase's vector is (sum, length) of its ids; remembers what it encoded."""

    def __init__(self) -> None:
        self.encoded: list[PhraseIds] = []

    def __call__(self, phrases: list[PhraseIds]) -> Tensor:
        self.encoded += phrases
        return torch.tensor([[sum(phrase), len(phrase)] for phrase in phrases]).float()


def test_each_phrase_is_encoded_once_and_answers_keep_their_order() -> None:
    cache, encode = PhraseCache(8), Encoder()
    cache([(1,), (2, 3)], encode, version=0)
    answers = cache([(2, 3), (4,), (1,), (2, 3)], encode, version=0)
    assert encode.encoded == [(1,), (2, 3), (4,)]
    assert answers.tolist() == [[5, 2], [4, 1], [1, 1], [5, 2]]


def test_a_full_phrase_cache_drops_what_is_not_in_use() -> None:
    cache, encode = PhraseCache(2), Encoder()
    cache([(1,), (2,)], encode, version=0)
    assert cache([(1,), (3,)], encode, version=0).tolist() == [[1, 1], [3, 1]]
    encode.encoded.clear()
    cache([(1,), (3,)], encode, version=0)
    assert encode.encoded == []
    assert len(cache) == 2


def test_more_phrases_than_the_phrase_cache_holds_are_answered_whole() -> None:
    cache = PhraseCache(2)
    answers = cache([(1,), (2,), (3,), (1,)], Encoder(), version=0)
    assert answers.tolist() == [[1, 1], [2, 1], [3, 1], [1, 1]]


def test_a_new_version_empties_the_phrase_cache() -> None:
    cache, encode = PhraseCache(8), Encoder()
    cache([(1,)], encode, version=0)
    cache([(1,)], encode, version=1)
    assert encode.encoded == [(1,), (1,)]


def test_phrases_first_asked_in_inference_mode_do_not_block_training() -> None:
    cache, encode = PhraseCache(8), Encoder()
    with torch.inference_mode():
        cache([(1,)], encode, version=0)
    weight = torch.ones(2, requires_grad=True)
    (cache([(1,), (2,)], encode, version=0) * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3, 2]
