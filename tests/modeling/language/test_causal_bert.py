"""Causal encoding by a BERT, whole and step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from glipv2_d2.engine.finetune.prompt_tables import PromptedLanguageBackbone
from glipv2_d2.modeling.language import BertLanguageBackbone, LanguageCache, PhraseLanguageBackbone
from glipv2_d2.modeling.language.causal_bert import encode_causal
from glipv2_d2.structures import TokenBatch

Tokenize = Callable[..., TokenBatch]
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


def test_causal_features_equal_transformers_decoder(bert: BertModel, tokenize: Tokenize) -> None:
    decoder = BertModel(
        BertConfig(**{**bert.config.to_dict(), "is_decoder": True}), add_pooling_layer=False
    ).eval()
    decoder.load_state_dict(bert.state_dict())
    tokens = tokenize(TEXT, "a cat")
    expected = decoder(input_ids=tokens.input_ids, attention_mask=tokens.mask.long())
    ours, _ = encode_causal(bert.eval(), tokens.input_ids)
    torch.testing.assert_close(
        ours[tokens.mask], expected.last_hidden_state[tokens.mask], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("lengths", [(1,) * 8, (3, 5), (4, 1, 1, 2)])
def test_decoding_in_steps_equals_one_pass(
    backbone: torch.nn.Module, tokenize: Tokenize, lengths: tuple[int, ...]
) -> None:
    tokens = causal(tokenize(TEXT))
    whole = backbone(tokens).hidden
    cache, parts = None, []
    for ids in tokens.input_ids.split(lengths, dim=1):
        hidden, cache = backbone.decode_step(ids, cache)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_word_does_not_affect_earlier_features(
    backbone: torch.nn.Module, tokenize: Tokenize
) -> None:
    one, other = (
        backbone(causal(tokenize(f"a red {word} . lion"))).hidden for word in ("cat", "dog")
    )
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_padding_does_not_affect_features(backbone: torch.nn.Module, tokenize: Tokenize) -> None:
    alone = backbone(causal(tokenize("a cat"))).hidden
    padded = backbone(causal(tokenize("a cat", TEXT))).hidden[:1, :4]
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-5)


def test_features_are_marked_as_causal(backbone: torch.nn.Module, tokenize: Tokenize) -> None:
    assert backbone(causal(tokenize("a cat"))).causal
    assert not backbone(tokenize("a cat")).causal


def test_the_cache_distinguishes_causal_prompts(bert: BertModel, tokenize: Tokenize) -> None:
    backbone, cache = BertLanguageBackbone(bert=bert, freeze=True), LanguageCache(8)
    tokens = tokenize("a red cat")
    with torch.no_grad():
        bidirectional, causal_features = cache(backbone, tokens), cache(backbone, causal(tokens))
        assert not torch.allclose(bidirectional.hidden, causal_features.hidden)
        torch.testing.assert_close(causal_features.hidden, backbone(causal(tokens)).hidden)
    assert causal_features.causal and not bidirectional.causal


def test_every_weight_gets_a_gradient(bert: BertModel, tokenize: Tokenize) -> None:
    backbone = BertLanguageBackbone(bert=bert, freeze=False).train()
    backbone(causal(tokenize(TEXT))).hidden.square().sum().backward()
    # Softmax is invariant to the key bias.
    unused = {n for n, p in bert.named_parameters() if not p.grad.any() and "key.bias" not in n}
    assert unused == set()


def test_features_of_a_question_do_not_depend_on_its_labels(
    bert: BertModel, tokenize: Tokenize
) -> None:
    backbone = PhraseLanguageBackbone(bert=bert, freeze=True)

    def hidden(labels: list[str]) -> torch.Tensor:
        tokens = tokenize("a red cat on the sea", labels=[labels])
        question = replace(tokens.prompts[0], is_question=True)
        return backbone(replace(tokens, prompts=(question,))).hidden

    torch.testing.assert_close(hidden(["red cat", "sea"]), hidden([]))


def test_nouns_of_a_question_are_encoded_separately(bert: BertModel, tokenize: Tokenize) -> None:
    backbone = PhraseLanguageBackbone(bert=bert, freeze=True)
    tokens = tokenize("a red cat on the sea", labels=[["red cat"]])
    question = replace(tokens.prompts[0], is_question=True, nouns=tokens.prompts[0].spans[0])
    named = replace(tokens, prompts=(question,), noun_maps=tokens.positive_maps)
    plain = replace(named, prompts=(replace(question, nouns=()),), noun_maps=tokens.noun_maps)
    is_noun = tokens.positive_maps[0][0]
    hidden = backbone(named).hidden[0]
    torch.testing.assert_close(hidden[~is_noun], backbone(plain).hidden[0, ~is_noun])
    torch.testing.assert_close(hidden[is_noun], backbone(tokens).hidden[0, is_noun])
