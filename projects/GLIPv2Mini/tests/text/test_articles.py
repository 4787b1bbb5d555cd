"""Articles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_mini.text.articles import agree_articles, article_of

WORDS = ("a", "an", "An", "owl", "dog", "Igloo", "unicorn", "hour", "than", "3", ",")


@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))
def test_only_articles_change_and_once_is_enough(text: str) -> None:
    changed = agree_articles(text)
    assert agree_articles(changed) == changed
    pairs = zip(text.split(), changed.split(), strict=True)
    assert all(x == y or x.lower() in ("a", "an") for x, y in pairs)


@pytest.mark.parametrize(("word", "article"), [("euro", "a"), ("uncle", "an"), ("house", "a")])
def test_the_sound_decides(word: str, article: str) -> None:
    assert article_of(word) == article
