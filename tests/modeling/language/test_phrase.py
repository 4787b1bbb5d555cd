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

Ask = Callable[..., TokenBatch]


@pytest.fixture
def backbone(bert: BertModel) -> PhraseLanguageBackbone:
    return PhraseLanguageBackbone(bert=bert, freeze=True)


def label_vectors(backbone: PhraseLanguageBackbone, tokens: TokenBatch) -> dict[str, Tensor]:
    """The vector of each label of the first prompt, which all of its tokens have to share."""
    hidden = backbone(tokens).hidden[0]
    vectors = {}
    for text, is_token in zip(tokens.prompts[0].phrases, tokens.positive_maps[0], strict=True):
        rows = hidden[is_token]
        assert torch.equal(rows, rows[:1].expand_as(rows))
        vectors[text] = rows[0]
    return vectors


def count_encoded(backbone: PhraseLanguageBackbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of sequences of each run of the BERT."""
    counts: list[int] = []
    encode = backbone.encode

    def counting(input_ids: Tensor, mask: Tensor) -> Tensor:
        counts.append(len(input_ids))
        return encode(input_ids, mask)

    monkeypatch.setattr(backbone, "encode", counting)
    return counts


def test_the_config_builds_it(bert_directory: Path) -> None:
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


def test_a_label_is_the_pooled_bert_of_its_words_alone(
    backbone: PhraseLanguageBackbone, ask: Ask
) -> None:
    vectors = label_vectors(backbone, ask("red car . sea lion"))
    for text, vector in vectors.items():
        alone = ask(text)
        with torch.no_grad():
            pooled = backbone.bert(input_ids=alone.input_ids).last_hidden_state[0].mean(dim=0)
        expected = pooled / pooled.norm() * math.sqrt(16)
        torch.testing.assert_close(vector, expected, atol=1e-6, rtol=0)


def test_entries_of_a_label_average_a_square_of_one(
    backbone: PhraseLanguageBackbone, ask: Ask
) -> None:
    vector = label_vectors(backbone, ask("red car"))["red car"]
    assert vector.square().mean().item() == pytest.approx(1.0, abs=1e-5)


def test_a_label_does_not_depend_on_the_others_or_their_order(bert: BertModel, ask: Ask) -> None:
    asked = ["red car . sea lion . dog", "dog . red car", "the cat on the car . red car . dog"]
    vectors = [
        label_vectors(PhraseLanguageBackbone(bert=bert, freeze=True), ask(text)) for text in asked
    ]
    for other in vectors[1:]:
        for text in ("red car", "dog"):
            torch.testing.assert_close(other[text], vectors[0][text], atol=1e-6, rtol=0)


def test_separators_and_special_tokens_are_zero(backbone: PhraseLanguageBackbone, ask: Ask) -> None:
    tokens = ask("red car . dog")
    outside = ~tokens.positive_maps[0].any(dim=0)
    assert outside.sum() == 3
    assert (backbone(tokens).hidden[0, outside] == 0).all()


def test_words_outside_the_labels_are_read_in_their_context(
    backbone: PhraseLanguageBackbone, ask: Ask
) -> None:
    tokens = ask("the cat on the red car", labels=[["cat", "red car"]])
    hidden = backbone(tokens).hidden[0]
    with torch.no_grad():
        context = backbone.bert(input_ids=tokens.input_ids).last_hidden_state[0]
    context = context / context.norm(dim=1, keepdim=True) * math.sqrt(16)
    outside = ~tokens.positive_maps[0].any(dim=0)
    torch.testing.assert_close(hidden[outside], context[outside], atol=1e-6, rtol=0)


def test_labels_of_a_caption_are_still_read_alone(
    backbone: PhraseLanguageBackbone, ask: Ask
) -> None:
    caption = ask("the cat on the red car", labels=[["cat", "red car"]])
    in_caption = label_vectors(backbone, caption)
    alone = label_vectors(backbone, ask("red car . cat"))
    for text in ("cat", "red car"):
        torch.testing.assert_close(in_caption[text], alone[text], atol=1e-6, rtol=0)


def test_a_caption_does_not_change_the_other_prompts_of_its_batch(
    backbone: PhraseLanguageBackbone, ask: Ask
) -> None:
    both = ask("red car . dog", "a cat on the car", labels=[["red car", "dog"], ["cat"]])
    hidden = backbone(both).hidden[0, :6]
    torch.testing.assert_close(hidden, backbone(ask("red car . dog")).hidden[0])


def test_a_token_of_two_labels_gets_their_mean(backbone: PhraseLanguageBackbone, ask: Ask) -> None:
    hidden = backbone(ask("red car", labels=[["red car", "car"]])).hidden[0]
    alone = label_vectors(backbone, ask("red car . car"))
    torch.testing.assert_close(hidden[1], alone["red car"], atol=1e-6, rtol=0)
    torch.testing.assert_close(hidden[2], (alone["red car"] + alone["car"]) / 2, atol=1e-6, rtol=0)


def test_a_prompt_without_labels_is_all_context(backbone: PhraseLanguageBackbone, ask: Ask) -> None:
    hidden = backbone(ask("a cat", labels=[[]])).hidden
    torch.testing.assert_close(hidden.square().mean(dim=2), torch.ones(1, 4), atol=1e-5, rtol=0)


def test_a_label_without_tokens_is_no_error(backbone: PhraseLanguageBackbone, ask: Ask) -> None:
    tokens = ask("red car . dog")
    tokens.positive_maps[0][1] = False
    assert (backbone(tokens).hidden[0, 4] == 0).all()


def test_frozen_phrases_are_encoded_once_also_in_training(
    backbone: PhraseLanguageBackbone, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone.train()
    encoded = count_encoded(backbone, monkeypatch)
    backbone(ask("red car . dog", "dog . cat"))
    backbone(ask("cat . red car", "dog"))
    assert encoded == [3]


def test_new_weights_are_used_at_once(backbone: PhraseLanguageBackbone, ask: Ask) -> None:
    backbone(ask("dog"))
    torch.manual_seed(1)
    backbone.load_state_dict({k: torch.randn_like(v) for k, v in backbone.state_dict().items()})
    fresh = PhraseLanguageBackbone(bert=backbone.bert, freeze=True)
    assert torch.equal(backbone(ask("dog")).hidden, fresh(ask("dog")).hidden)


def test_what_is_kept_does_not_depend_on_the_precision_that_asked_first(
    bert: BertModel, ask: Ask
) -> None:
    first = PhraseLanguageBackbone(bert=bert, freeze=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first(ask("dog"))
    second = PhraseLanguageBackbone(bert=bert, freeze=True)
    assert torch.equal(first(ask("dog")).hidden, second(ask("dog")).hidden)


def test_an_encoder_that_is_trained_gets_gradients_and_is_not_cached(
    bert: BertModel, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = PhraseLanguageBackbone(bert=bert, freeze=False).train()
    encoded = count_encoded(backbone, monkeypatch)
    for _ in range(2):
        (backbone(ask("red car . dog . red car")).hidden * torch.arange(16)).sum().backward()
    assert encoded == [2, 2]
    assert all(p.grad is not None for p in bert.encoder.parameters())


def test_long_lists_are_encoded_in_parts(
    backbone: PhraseLanguageBackbone, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = backbone(ask("cat . dog . car")).hidden
    monkeypatch.setattr(phrase_module, "_PHRASES_PER_BATCH", 2)
    in_parts = PhraseLanguageBackbone(bert=backbone.bert, freeze=True)
    encoded = count_encoded(in_parts, monkeypatch)
    torch.testing.assert_close(in_parts(ask("cat . dog . car")).hidden, whole)
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
def test_only_letters_and_digits_outside_the_labels_say_more(
    text: str, spans: list[list[tuple[int, int]]], expected: bool
) -> None:
    prompt = Prompt(text, tuple(tuple(s) for s in spans), tuple(range(len(spans))))
    assert phrase_module.says_more_than_labels(prompt) is expected
