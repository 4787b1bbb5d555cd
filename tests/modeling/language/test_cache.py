from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel

from glipv2_d2.modeling.language import BertLanguageBackbone, LanguageCache
from glipv2_d2.modeling.language.cache import PhraseCache, PhraseIds
from glipv2_d2.modeling.language.phrase import PhraseLanguageBackbone
from glipv2_d2.structures import TextFeatures, TokenBatch

Tokenize = Callable[..., TokenBatch]
CPU = torch.device("cpu")


class CountingBackbone(BertLanguageBackbone):
    """Counts the prompts that it encodes."""

    num_encoded = 0

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        self.num_encoded += len(tokens)
        return super().forward(tokens)


@pytest.fixture
def backbone(bert: BertModel) -> CountingBackbone:
    return CountingBackbone(bert=bert, freeze=False).eval()


def assert_same_features(a: TextFeatures, b: TextFeatures) -> None:
    assert torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.hidden[a.mask], b.hidden[b.mask], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_cached_prompt_is_not_encoded_again(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(4)
    first = cache(backbone, tokenize("a cat"))
    second = cache(backbone, tokenize("a cat"))
    assert backbone.num_encoded == 1
    assert torch.equal(first.hidden, second.hidden)


@torch.no_grad()
def test_a_batch_of_different_lengths_equals_the_uncached_one(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(4)
    cache(backbone, tokenize("dog"))
    tokens = tokenize("a cat", "the red car . sea lion", "dog")
    assert_same_features(cache(backbone, tokens), backbone(tokens))


@torch.no_grad()
def test_only_missing_prompts_of_a_batch_are_encoded(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(4)
    cache(backbone, tokenize("the red car . dog"))
    backbone.num_encoded = 0
    cache(backbone, tokenize("a cat", "the red car . dog", "a cat"))
    assert backbone.num_encoded == 1


@torch.no_grad()
def test_padding_is_zero(backbone: CountingBackbone, tokenize: Tokenize) -> None:
    features = LanguageCache(4)(backbone, tokenize("a cat", "the red car . dog"))
    assert (features.hidden[~features.mask] == 0).all()


@torch.no_grad()
def test_other_labels_make_another_prompt(backbone: CountingBackbone, tokenize: Tokenize) -> None:
    cache = LanguageCache(4)
    cache(backbone, tokenize("red car", labels=[["red car"]]))
    cache(backbone, tokenize("red car", labels=[["red", "car"]]))
    assert backbone.num_encoded == 2


def scaled_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value * 1.5 for name, value in module.state_dict().items()}


def change_in_place(module: nn.Module) -> None:
    for p in module.parameters():
        p.mul_(1.5)


def change_through_data(module: nn.Module) -> None:
    for p in module.parameters():
        p.data.mul_(1.5)


def change_one_number(module: nn.Module) -> None:
    module.bert.embeddings.word_embeddings.weight[5, 3] += 1


def move_to_other_memory(module: nn.Module) -> None:
    for p in module.parameters():
        p.data = p.data * 1.5


def step_of(name: str, **options: bool) -> Callable[[nn.Module], None]:
    """A step of one of torch's optimizers."""

    def step(module: nn.Module) -> None:
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        getattr(torch.optim, name)(module.parameters(), lr=0.1, **options).step()

    return step


# The ways in which weights are changed.
CHANGES = {
    "load": lambda module: module.load_state_dict(scaled_state(module)),
    "load by assignment": lambda module: module.load_state_dict(scaled_state(module), assign=True),
    "in place": change_in_place,
    "through .data": change_through_data,
    "one number": change_one_number,
    "other memory": move_to_other_memory,
    "double precision": lambda module: module.double(),
    "half precision and back": lambda module: module.bfloat16().float(),
    "SGD": step_of("SGD"),
    "fused SGD": step_of("SGD", fused=True),
    "AdamW": step_of("AdamW"),
    "AdamW for each": step_of("AdamW", foreach=True),
    "fused AdamW": step_of("AdamW", fused=True),
}


@pytest.mark.parametrize("how", CHANGES)
@torch.no_grad()
def test_new_weights_invalidate_cached_features(
    backbone: CountingBackbone, tokenize: Tokenize, how: str
) -> None:
    cache = LanguageCache(4)
    before = cache(backbone, tokenize("a cat"))
    CHANGES[how](backbone)
    after = cache(backbone, tokenize("a cat"))
    assert not torch.equal(before.hidden, after.hidden)
    assert torch.equal(after.hidden, backbone(tokenize("a cat")).hidden)


@pytest.mark.parametrize("how", CHANGES)
@torch.no_grad()
def test_new_weights_invalidate_cached_phrases(
    bert: BertModel, tokenize: Tokenize, how: str
) -> None:
    phrases = PhraseLanguageBackbone(bert=bert, freeze=True)
    before = phrases(tokenize("a cat")).hidden
    CHANGES[how](phrases)
    after = phrases(tokenize("a cat")).hidden
    assert not torch.equal(before, after)
    fresh = PhraseLanguageBackbone(bert=phrases.bert, freeze=True)
    assert torch.equal(after, fresh(tokenize("a cat")).hidden)


@torch.inference_mode()
def test_changes_of_inference_mode_weights_are_detected(
    bert: BertModel, tokenize: Tokenize
) -> None:
    backbone = CountingBackbone(bert=BertModel(bert.config, add_pooling_layer=False), freeze=False)
    cache = LanguageCache(4)
    cache(backbone.eval(), tokenize("a cat"))
    cache(backbone, tokenize("a cat"))
    assert backbone.num_encoded == 1
    change_in_place(backbone)
    assert torch.equal(
        cache(backbone, tokenize("a cat")).hidden, backbone(tokenize("a cat")).hidden
    )


@torch.no_grad()
def test_clear_after_an_undetectable_change(backbone: CountingBackbone, tokenize: Tokenize) -> None:
    cache = LanguageCache(4)
    cache(backbone, tokenize("a cat"))
    backbone.bert.embeddings.word_embeddings.weight.data[5, 3] += 1
    cache.clear()
    assert torch.equal(
        cache(backbone, tokenize("a cat")).hidden, backbone(tokenize("a cat")).hidden
    )


@torch.no_grad()
def test_another_text_with_the_same_tokens_is_another_prompt(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    """A symbol and a letter may both become [UNK], but only the letter makes a word."""
    cache = LanguageCache(4)
    tokens = tokenize("a cat")
    other = replace(tokens, prompts=(replace(tokens.prompts[0], text="a\u2603cat"),))
    cache(backbone, tokens)
    cache(backbone, other)
    assert backbone.num_encoded == 2


@torch.no_grad()
def test_features_are_right_with_many_threads(
    backbone: CountingBackbone, tokenize: Tokenize, eager_switching: None
) -> None:
    cache = LanguageCache(2)
    texts = ["a cat", "dog", "the red car", "sea lion . dog", "red cat . sea"]
    expected = {text: backbone(tokenize(text)) for text in texts}

    def is_right(turn: int) -> bool:
        with torch.no_grad():
            text = texts[turn % len(texts)]
            return torch.equal(cache(backbone, tokenize(text)).hidden, expected[text].hidden)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, range(400)))
    assert len(cache) <= 2


@torch.no_grad()
def test_features_of_another_precision_are_not_reused(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache(backbone, tokenize("a cat"))
    assert_same_features(cache(backbone, tokenize("a cat")), backbone(tokenize("a cat")))


def test_training_bypasses_and_empties_the_cache(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(4)
    with torch.no_grad():
        cache(backbone, tokenize("a cat"))
        cache(backbone.train(), tokenize("a cat"))
    assert backbone.num_encoded == 2
    assert len(cache) == 0


def test_gradients_bypass_the_cache(backbone: CountingBackbone, tokenize: Tokenize) -> None:
    cache = LanguageCache(4)
    assert cache(backbone, tokenize("a cat")).hidden.requires_grad
    assert len(cache) == 0


def test_features_of_inference_mode_are_reused_under_no_grad(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(4)
    with torch.inference_mode():
        first = cache(backbone, tokenize("a cat")).hidden.clone()
    with torch.no_grad():
        second = cache(backbone, tokenize("a cat")).hidden
    assert backbone.num_encoded == 1
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_least_recently_used_prompt_is_evicted(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(2)
    for text in ("a cat", "dog", "a cat", "car"):
        cache(backbone, tokenize(text))
    backbone.num_encoded = 0
    cache(backbone, tokenize("a cat"))
    assert backbone.num_encoded == 0
    cache(backbone, tokenize("dog"))
    assert backbone.num_encoded == 1


@torch.no_grad()
def test_a_batch_larger_than_the_cache_is_complete(
    backbone: CountingBackbone, tokenize: Tokenize
) -> None:
    cache = LanguageCache(1)
    tokens = tokenize("a cat", "dog", "the red car")
    assert_same_features(cache(backbone, tokens), backbone(tokens))
    assert len(cache) == 1


@torch.no_grad()
def test_size_zero_disables_the_cache(backbone: CountingBackbone, tokenize: Tokenize) -> None:
    cache = LanguageCache(0)
    cache(backbone, tokenize("a cat"))
    cache(backbone, tokenize("a cat"))
    assert backbone.num_encoded == 2


def test_a_negative_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="-1"):
        LanguageCache(-1)


class Encoder:
    """Embeds a phrase as (sum, length) of its ids, and records the phrases it encoded."""

    def __init__(self) -> None:
        self.encoded: list[PhraseIds] = []

    def __call__(self, phrases: list[PhraseIds]) -> Tensor:
        self.encoded += phrases
        return torch.tensor([[sum(phrase), len(phrase)] for phrase in phrases]).float()


def test_each_phrase_is_encoded_once_and_order_is_kept() -> None:
    cache, encode = PhraseCache(8), Encoder()
    cache([(1,), (2, 3)], encode, version=0, device=CPU)
    embeddings = cache([(2, 3), (4,), (1,), (2, 3)], encode, version=0, device=CPU)
    assert encode.encoded == [(1,), (2, 3), (4,)]
    assert embeddings.tolist() == [[5, 2], [4, 1], [1, 1], [5, 2]]


def test_a_full_phrase_cache_evicts_unused_phrases() -> None:
    cache, encode = PhraseCache(2), Encoder()
    cache([(1,), (2,)], encode, version=0, device=CPU)
    assert cache([(1,), (3,)], encode, version=0, device=CPU).tolist() == [[1, 1], [3, 1]]
    encode.encoded.clear()
    cache([(1,), (3,)], encode, version=0, device=CPU)
    assert encode.encoded == []
    assert len(cache) == 2


def test_more_phrases_than_the_phrase_cache_holds() -> None:
    cache = PhraseCache(2)
    embeddings = cache([(1,), (2,), (3,), (1,)], Encoder(), version=0, device=CPU)
    assert embeddings.tolist() == [[1, 1], [2, 1], [3, 1], [1, 1]]


def test_a_new_version_empties_the_phrase_cache() -> None:
    cache, encode = PhraseCache(8), Encoder()
    cache([(1,)], encode, version=0, device=CPU)
    cache([(1,)], encode, version=1, device=CPU)
    assert encode.encoded == [(1,), (1,)]


def test_phrases_cached_in_inference_mode_can_be_trained_with() -> None:
    cache, encode = PhraseCache(8), Encoder()
    with torch.inference_mode():
        cache([(1,)], encode, version=0, device=CPU)
    weight = torch.ones(2, requires_grad=True)
    (cache([(1,), (2,)], encode, version=0, device=CPU) * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3, 2]


def test_phrases_are_right_with_many_threads(eager_switching: None) -> None:
    cache = PhraseCache(3)

    def is_right(turn: int) -> bool:
        phrases = [(turn % 5,), (turn % 3, turn % 7), (turn % 5,)]
        embeddings = cache(phrases, Encoder(), version=0, device=CPU)
        return embeddings.tolist() == [[sum(phrase), len(phrase)] for phrase in phrases]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, range(2000)))
    assert len(cache) <= 3
