from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from torch import Tensor
from transformers import BertModel

from glipv2_d2 import add_glipv2_config
from glipv2_d2.modeling.language import PhraseLanguageBackbone, build_language_backbone
from glipv2_d2.modeling.language import phrase as phrase_module
from glipv2_d2.structures import Prompt, TokenBatch

Tokenize = Callable[..., TokenBatch]


@pytest.fixture
def backbone(bert: BertModel) -> PhraseLanguageBackbone:
    return PhraseLanguageBackbone(bert=bert, freeze=True)


def label_embeddings(backbone: PhraseLanguageBackbone, tokens: TokenBatch) -> dict[str, Tensor]:
    """The embedding of each label of the first prompt, which all of its tokens share."""
    hidden = backbone(tokens).hidden[0]
    embeddings = {}
    for text, is_token in zip(tokens.prompts[0].phrases, tokens.positive_maps[0], strict=True):
        rows = hidden[is_token]
        assert torch.equal(rows, rows[:1].expand_as(rows))
        embeddings[text] = rows[0]
    return embeddings


def count_encoded(backbone: PhraseLanguageBackbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of the batch sizes that the BERT encodes, filled as it runs."""
    counts: list[int] = []
    encode = backbone.encode

    def counting(input_ids: Tensor, mask: Tensor) -> Tensor:
        counts.append(len(input_ids))
        return encode(input_ids, mask)

    monkeypatch.setattr(backbone, "encode", counting)
    return counts


def test_build_from_config(bert_directory: Path) -> None:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.PROMPT.MAX_TOKENS = 40
    cfg.MODEL.LANGUAGE_BACKBONE.NAME = "PhraseLanguageBackbone"
    cfg.MODEL.LANGUAGE_BACKBONE.MODEL = str(bert_directory)
    cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS = str(bert_directory)
    cfg.MODEL.LANGUAGE_BACKBONE.FREEZE = True
    backbone = build_language_backbone(cfg)
    assert isinstance(backbone, PhraseLanguageBackbone)
    assert backbone.width == 16
    assert backbone.checkpoint_excluded == ("bert.",)


def test_a_label_is_pooled_from_its_words_alone(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    vectors = label_embeddings(backbone, tokenize("red car . sea lion"))
    for text, vector in vectors.items():
        alone = tokenize(text)
        with torch.no_grad():
            pooled = backbone.bert(input_ids=alone.input_ids).last_hidden_state[0].mean(dim=0)
        expected = pooled / pooled.norm() * math.sqrt(16)
        torch.testing.assert_close(vector, expected, atol=1e-6, rtol=0)


def test_embeddings_have_unit_variance(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    vector = label_embeddings(backbone, tokenize("red car"))["red car"]
    assert vector.square().mean().item() == pytest.approx(1.0, abs=1e-5)


def test_a_label_is_independent_of_other_labels(bert: BertModel, tokenize: Tokenize) -> None:
    texts = ["red car . sea lion . dog", "dog . red car", "the cat on the car . red car . dog"]
    vectors = [
        label_embeddings(PhraseLanguageBackbone(bert=bert, freeze=True), tokenize(text))
        for text in texts
    ]
    for other in vectors[1:]:
        for text in ("red car", "dog"):
            torch.testing.assert_close(other[text], vectors[0][text], atol=1e-6, rtol=0)


def test_separators_and_special_tokens_are_zero(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    tokens = tokenize("red car . dog")
    outside = ~tokens.positive_maps[0].any(dim=0)
    assert outside.sum() == 3
    assert (backbone(tokens).hidden[0, outside] == 0).all()


def test_words_outside_the_labels_are_encoded_in_context(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    tokens = tokenize("the cat on the red car", labels=[["cat", "red car"]])
    hidden = backbone(tokens).hidden[0]
    with torch.no_grad():
        context = backbone.bert(input_ids=tokens.input_ids).last_hidden_state[0]
    context = context / context.norm(dim=1, keepdim=True) * math.sqrt(16)
    outside = ~tokens.positive_maps[0].any(dim=0)
    torch.testing.assert_close(hidden[outside], context[outside], atol=1e-6, rtol=0)


def test_labels_of_a_caption_are_encoded_separately(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    caption = tokenize("the cat on the red car", labels=[["cat", "red car"]])
    in_caption = label_embeddings(backbone, caption)
    alone = label_embeddings(backbone, tokenize("red car . cat"))
    for text in ("cat", "red car"):
        torch.testing.assert_close(in_caption[text], alone[text], atol=1e-6, rtol=0)


def test_a_caption_does_not_affect_other_prompts(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    both = tokenize("red car . dog", "a cat on the car", labels=[["red car", "dog"], ["cat"]])
    hidden = backbone(both).hidden[0, :6]
    torch.testing.assert_close(hidden, backbone(tokenize("red car . dog")).hidden[0])


def test_a_token_of_two_labels_is_their_mean(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    hidden = backbone(tokenize("red car", labels=[["red car", "car"]])).hidden[0]
    alone = label_embeddings(backbone, tokenize("red car . car"))
    torch.testing.assert_close(hidden[1], alone["red car"], atol=1e-6, rtol=0)
    torch.testing.assert_close(hidden[2], (alone["red car"] + alone["car"]) / 2, atol=1e-6, rtol=0)


def test_a_prompt_without_labels_is_encoded_in_context(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    hidden = backbone(tokenize("a cat", labels=[[]])).hidden
    torch.testing.assert_close(hidden.square().mean(dim=2), torch.ones(1, 4), atol=1e-5, rtol=0)


def test_a_label_without_tokens_is_allowed(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    tokens = tokenize("red car . dog")
    tokens.positive_maps[0][1] = False
    assert (backbone(tokens).hidden[0, 4] == 0).all()


def test_a_frozen_encoder_encodes_each_phrase_once_in_training(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone.train()
    encoded = count_encoded(backbone, monkeypatch)
    backbone(tokenize("red car . dog", "dog . cat"))
    backbone(tokenize("cat . red car", "dog"))
    assert encoded == [3]


def test_new_weights_take_effect_immediately(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize
) -> None:
    backbone(tokenize("dog"))
    torch.manual_seed(1)
    backbone.load_state_dict({k: torch.randn_like(v) for k, v in backbone.state_dict().items()})
    fresh = PhraseLanguageBackbone(bert=backbone.bert, freeze=True)
    assert torch.equal(backbone(tokenize("dog")).hidden, fresh(tokenize("dog")).hidden)


def test_cached_embeddings_do_not_depend_on_autocast(bert: BertModel, tokenize: Tokenize) -> None:
    first = PhraseLanguageBackbone(bert=bert, freeze=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first(tokenize("dog"))
    second = PhraseLanguageBackbone(bert=bert, freeze=True)
    assert torch.equal(first(tokenize("dog")).hidden, second(tokenize("dog")).hidden)


def test_a_trainable_encoder_gets_gradients_and_is_not_cached(
    bert: BertModel, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = PhraseLanguageBackbone(bert=bert, freeze=False).train()
    encoded = count_encoded(backbone, monkeypatch)
    for _ in range(2):
        (backbone(tokenize("red car . dog . red car")).hidden * torch.arange(16)).sum().backward()
    assert encoded == [2, 2]
    assert all(p.grad is not None for p in bert.encoder.parameters())


def test_long_lists_are_encoded_in_batches(
    backbone: PhraseLanguageBackbone, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = backbone(tokenize("cat . dog . car")).hidden
    monkeypatch.setattr(phrase_module, "_PHRASES_PER_BATCH", 2)
    batched = PhraseLanguageBackbone(bert=backbone.bert, freeze=True)
    encoded = count_encoded(batched, monkeypatch)
    torch.testing.assert_close(batched(tokenize("cat . dog . car")).hidden, whole)
    assert encoded == [2, 1]


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("cat. dog", [[(0, 3)], [(5, 8)]], False),
        ("dog. cat", [[(5, 8)], [(0, 3)]], False),
        ("red car", [[(0, 7)], [(4, 7)]], False),
        ("a cat", [[(2, 5)]], True),
        ("cat there", [[(0, 3)]], True),
        ("cat, 2 dogs", [[(0, 3)], [(7, 11)]], True),
        ("!?", [], False),
    ],
)
def test_words_outside_labels_have_letters_or_digits(
    text: str, spans: list[list[tuple[int, int]]], expected: bool
) -> None:
    prompt = Prompt(text, tuple(tuple(s) for s in spans), tuple(range(len(spans))))
    assert phrase_module.has_words_outside_labels(prompt) is expected
