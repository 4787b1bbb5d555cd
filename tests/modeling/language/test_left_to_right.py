"""Texts read from left to right by an encoder that otherwise reads both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from glipv2_d2.engine.policies import PromptedLanguageBackbone
from glipv2_d2.modeling.language import BertLanguageBackbone, LanguageCache, PhraseLanguageBackbone
from glipv2_d2.modeling.language.left_to_right import read_left_to_right
from glipv2_d2.structures import TokenBatch

Ask = Callable[..., TokenBatch]
TEXT = "the red car on the sea"


def prompted(bert: BertModel, freeze: bool) -> PromptedLanguageBackbone:
    inner = BertLanguageBackbone(bert=bert, freeze=freeze)
    backbone = PromptedLanguageBackbone(inner=inner, num_rows=5)
    torch.nn.init.normal_(backbone.table)
    return backbone


BACKBONES = {
    "bert": BertLanguageBackbone,
    "phrase": PhraseLanguageBackbone,
    "prompted": lambda bert, freeze: prompted(bert, freeze),
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest, bert: BertModel) -> torch.nn.Module:
    return BACKBONES[request.param](bert=bert, freeze=False).eval()


def causal(tokens: TokenBatch) -> TokenBatch:
    return replace(tokens, causal=True)


def test_it_reads_as_a_decoder_of_transformers_does(bert: BertModel, ask: Ask) -> None:
    decoder = BertModel(
        BertConfig(**{**bert.config.to_dict(), "is_decoder": True}), add_pooling_layer=False
    ).eval()
    decoder.load_state_dict(bert.state_dict())
    tokens = ask(TEXT, "a cat")
    expected = decoder(input_ids=tokens.input_ids, attention_mask=tokens.mask.long())
    ours, _ = read_left_to_right(bert.eval(), tokens.input_ids)
    torch.testing.assert_close(
        ours[tokens.mask], expected.last_hidden_state[tokens.mask], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("pieces", [(1,) * 8, (3, 5), (4, 1, 1, 2)])
def test_reading_in_pieces_equals_reading_at_once(
    backbone: torch.nn.Module, ask: Ask, pieces: tuple[int, ...]
) -> None:
    tokens = causal(ask(TEXT))
    whole = backbone(tokens).hidden
    past, parts = None, []
    for ids in tokens.input_ids.split(pieces, dim=1):
        hidden, past = backbone.read_on(ids, past)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_later_word_changes_nothing_before_it(backbone: torch.nn.Module, ask: Ask) -> None:
    one, other = (backbone(causal(ask(f"a red {word} . lion"))).hidden for word in ("cat", "dog"))
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_padding_changes_nothing(backbone: torch.nn.Module, ask: Ask) -> None:
    alone = backbone(causal(ask("a cat"))).hidden
    padded = backbone(causal(ask("a cat", TEXT))).hidden[:1, :4]
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-5)


def test_the_features_say_how_they_were_read(backbone: torch.nn.Module, ask: Ask) -> None:
    assert backbone(causal(ask("a cat"))).causal
    assert not backbone(ask("a cat")).causal


def test_the_cache_tells_both_ways_of_reading_apart(bert: BertModel, ask: Ask) -> None:
    backbone, cache = BertLanguageBackbone(bert=bert, freeze=True), LanguageCache(8)
    tokens = ask("a red cat")
    with torch.no_grad():
        both_ways, left_to_right = cache(backbone, tokens), cache(backbone, causal(tokens))
        assert not torch.allclose(both_ways.hidden, left_to_right.hidden)
        torch.testing.assert_close(left_to_right.hidden, backbone(causal(tokens)).hidden)
    assert left_to_right.causal and not both_ways.causal


def test_training_reaches_every_weight_but_positions_and_words_that_are_not_there(
    bert: BertModel, ask: Ask
) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=False).train()
    backbone(causal(ask(TEXT))).hidden.square().sum().backward()
    # What all words have in common is no matter to the softmax.
    still = {n for n, p in bert.named_parameters() if not p.grad.any() and "key.bias" not in n}
    assert still == set()


def test_a_question_is_read_as_a_whole_whatever_is_to_be_found_in_it(
    bert: BertModel, ask: Ask
) -> None:
    backbone = PhraseLanguageBackbone(bert=bert, freeze=True)

    def hidden(labels: list[str]) -> torch.Tensor:
        tokens = ask("a red cat on the sea", labels=[labels])
        question = replace(tokens.prompts[0], is_question=True)
        return backbone(replace(tokens, prompts=(question,))).hidden

    torch.testing.assert_close(hidden(["red cat", "sea"]), hidden([]))


def test_nouns_of_a_question_are_read_alone(bert: BertModel, ask: Ask) -> None:
    backbone = PhraseLanguageBackbone(bert=bert, freeze=True)
    tokens = ask("a red cat on the sea", labels=[["red cat"]])
    question = replace(tokens.prompts[0], is_question=True, nouns=tokens.prompts[0].spans[0])
    named = replace(tokens, prompts=(question,), noun_maps=tokens.positive_maps)
    plain = replace(named, prompts=(replace(question, nouns=()),), noun_maps=tokens.noun_maps)
    is_noun = tokens.positive_maps[0][0]
    hidden = backbone(named).hidden[0]
    torch.testing.assert_close(hidden[~is_noun], backbone(plain).hidden[0, ~is_noun])
    torch.testing.assert_close(hidden[is_noun], backbone(tokens).hidden[0, is_noun])
