from __future__ import annotations

from dataclasses import replace

from glipv2_d2.text.prompts import caption_prompt, class_prompt, demo_prompt
from glipv2_d2.text.tokenizer import Tokenizer


def test_words_are_the_tokens_between_the_special_tokens() -> None:
    tokens = Tokenizer()([class_prompt(["cat", "dog"]), caption_prompt("a cat", [])])
    # [CLS] cat . dog [SEP] and [CLS] a cat [SEP] [PAD]
    assert tokens.is_word.tolist() == [
        [False, True, True, True, False],
        [False, True, True, False, False],
    ]


def test_only_prompts_of_class_names_are_class_lists() -> None:
    assert class_prompt(["cat"]).is_class_list
    assert demo_prompt(["cat"]).is_class_list
    assert not caption_prompt("cat", [[(0, 3)]]).is_class_list


def test_a_masked_batch_moves_with_its_targets() -> None:
    tokens = Tokenizer()([class_prompt(["cat"])])
    masked = replace(tokens, mlm_targets=tokens.input_ids)
    assert masked.to("meta").mlm_targets.device.type == "meta"
