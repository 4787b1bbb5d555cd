"""Permuted class names: labels stay, spans move."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import NEGATIVE
from glipv2_d2.text import Tokenizer, class_prompts
from glipv2_d2.text.names import clean_name
from glipv2_d2.text.permutations import permuted_prompts

SEPARATOR = ". "


def prompt_of(names: list[str], tokenizer: Tokenizer, **options) -> Prompt:
    (prompt,) = class_prompts(names, tokenizer, separator=SEPARATOR, **options)
    return prompt


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(
        st.text("abcd ._()é犬", min_size=1, max_size=8).filter(
            # Names are cleaned of parentheses.
            lambda name: any(c.isalpha() for c in clean_name(name))
        ),
        min_size=1,
        max_size=9,
        unique_by=lambda name: " ".join(name.replace("_", " ").split()).casefold(),
    ),
    count=st.integers(1, 6),
)
def test_every_order_has_the_same_labels(names, count, tokenizer):
    prompt = prompt_of(names, tokenizer)
    for other in permuted_prompts(prompt, separator=SEPARATOR, count=count):
        assert other.phrases == prompt.phrases
        assert other.classes == prompt.classes
        assert other.is_class_list
        assert sorted(other.text.split(SEPARATOR)) == sorted(prompt.text.split(SEPARATOR))


def test_orders_differ_and_the_first_is_the_prompt(tokenizer):
    prompt = prompt_of([f"name {i}" for i in range(30)], tokenizer)
    orders = permuted_prompts(prompt, separator=SEPARATOR, count=8)
    assert orders[0] == prompt
    assert len({order.text for order in orders}) == 8


@pytest.mark.parametrize("num_names", [1, 2, 3])
def test_all_orders_of_few_names(num_names, tokenizer):
    names = ["cat", "dog", "hot dog"][:num_names]
    orders = permuted_prompts(prompt_of(names, tokenizer), separator=SEPARATOR, count=50)
    expected = {SEPARATOR.join(order) for order in itertools.permutations(names)}
    assert {order.text for order in orders} == expected


def test_the_same_prompt_has_the_same_orders(tokenizer):
    prompt = prompt_of(["cat", "dog", "cow", "hen"], tokenizer)
    orders = [permuted_prompts(prompt, separator=SEPARATOR, count=4) for _ in range(2)]
    assert orders[0] == orders[1]


def test_fewer_orders_are_a_prefix_of_more(tokenizer):
    prompt = prompt_of(["cat", "dog", "cow", "hen"], tokenizer)
    five = permuted_prompts(prompt, separator=SEPARATOR, count=5)
    assert permuted_prompts(prompt, separator=SEPARATOR, count=3) == five[:3]


def test_negatives_stay_negatives(tokenizer):
    prompt = prompt_of(["cat", "dog"], tokenizer, negatives=["wolf"])
    for other in permuted_prompts(prompt, separator=SEPARATOR, count=6):
        labels = dict(zip(other.phrases, other.classes, strict=True))
        assert labels == {"cat": 0, "dog": 1, "wolf": NEGATIVE}
