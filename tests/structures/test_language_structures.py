from __future__ import annotations

from glipv2_d2.text.prompts import caption_prompt, class_prompt, demo_prompt
from glipv2_d2.text.tokenizer import Tokenizer


def test_words_are_what_stands_between_the_special_tokens() -> None:
    tokens = Tokenizer()([class_prompt(["cat", "dog"]), caption_prompt("a cat", [])])
    # [CLS] cat . dog [SEP] and [CLS] a cat [SEP] [PAD]
    assert tokens.is_word.tolist() == [
        [False, True, True, True, False],
        [False, True, True, False, False],
    ]


def test_only_lists_of_names_are_class_lists() -> None:
    assert class_prompt(["cat"]).is_class_list
    assert demo_prompt(["cat"]).is_class_list
    assert not caption_prompt("cat", [[(0, 3)]]).is_class_list
